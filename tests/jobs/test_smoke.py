"""smoke, where a job has all CPUs."""

from __future__ import annotations

from typing import Any

import pytest

from ray_jobs import nodes, smoke


def test_a_cluster_that_is_busy_is_no_cluster_that_is_broken(
    ray_here: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    (there,) = ray.nodes()
    node = nodes.Node("server1/worker-1", there["NodeID"], "alive", "", 2, 0, 2**30, 2**28, 0)
    monkeypatch.setattr(smoke, "wait_for_nodes", lambda *_: ([node], []))
    monkeypatch.setattr(smoke, "refusals", lambda: ({}, []))
    monkeypatch.setattr(ray, "init", lambda **_: None)

    @ray.remote(num_cpus=2)
    class Busy:
        def begun(self) -> bool:
            return True

    job: Any = Busy.remote()  # type: ignore[attr-defined]
    assert ray.get(job.begun.remote())
    try:
        assert smoke.main(["--tasks", "2", "--iterations", "1"]) == 0
        assert "All CPUs are at work" in capsys.readouterr().out
    finally:
        ray.kill(job)
