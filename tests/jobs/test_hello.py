"""hello, with a real Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ray_jobs import command, hello


def test_the_cluster_ran_every_task(ray_here: None) -> None:
    said = hello.run(hello.Hello(tasks=7, iterations=10))
    assert sum(said.nodes.values()) == 7
    assert all("Ray 2." in versions for versions in said.versions.values())


def test_a_run_is_written_down_and_never_over_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MUSTER_DATA", str(tmp_path))
    for _ in range(2):
        assert hello.JOB.main(["--local", "-p", "tasks=2", "-p", "iterations=3"]) == 0
    assert "2 tasks of 3 iterations" in capsys.readouterr().out
    first, second = (json.loads(path.read_text()) for path in tmp_path.glob("results/hello/*/run.json"))
    assert first["id"] != second["id"]
    assert first["state"] == "succeeded"
    assert first["parameters"] == {"tasks": 2, "iterations": 3}
    assert first["metrics"]["tasks"] == 2
    assert len(first["code"]) == 12 and "ray" in first["versions"]


def test_a_job_that_is_started_again_finds_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSTER_DATA", str(tmp_path))
    monkeypatch.setenv("MUSTER_RAY_JOB", "hello-1")
    folders = []

    def fails(parameters: hello.Hello, local: bool) -> hello.Said:
        folders.append(command.folder())
        raise command.JobError("the node is gone")

    job = command.Job("hello", "Says hello.", hello.Hello, fails)
    for _ in range(2):
        assert job.main(["--local"]) == 1
    assert folders[0] == folders[1] is not None
    (run,) = tmp_path.glob("results/hello/*/run.json")
    about = json.loads(run.read_text())
    assert (about["state"], about["error"], about["starts"]) == ("failed", "the node is gone", 2)
