"""Jobs' figures, where Prometheus reads them: the port of a real Ray node."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import figures, process, together, train_boosted

from ..conftest import ROOT

SERIES = re.compile(r"ray_muster_job_(\w+)\{(.*)\} (\S+)")


@pytest.fixture(autouse=True)
def _nobody_s() -> Iterator[None]:
    yield
    figures.begin({})


def shown(run: str) -> dict[str, float]:
    """A run's figures, each summed over its processes."""
    import ray

    url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=30) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {}
    for name, labels, value in SERIES.findall(text):
        if f'run="{run}"' in labels:
            found[name] = found.get(name, 0) + float(value)
    return found


def until(what: Callable[[], Any]) -> None:
    end = time.monotonic() + 120
    while not what():
        assert time.monotonic() < end, "not within two minutes"
        time.sleep(0.3)


def test_rows_are_counted_where_they_are_written(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / f"in/{name}.csv").write_text("x\n" + "1\n" * 500)
    monkeypatch.setenv("MUSTER_RAY_JOB", "process-1")
    wanted = process.Process(source=os.fspath(tmp_path / "in"), target=os.fspath(tmp_path / "out"))
    process.JOB.perform(wanted, local=False)
    until(lambda: shown("process-1") == {"done": 2, "total": 2, "rows": 1000})


def test_losses_are_shown_beside_how_far_it_is(ray_here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSTER_RAY_JOB", "boosted-1")
    train_boosted.JOB.perform(train_boosted.Boosted(rounds=3, max_depth=2), local=False)
    until(lambda: {"done": 3, "total": 3}.items() <= shown("boosted-1").items())
    assert 0 < shown("boosted-1")["validation_loss"] < 2
    figures.begin({"job_name": "train_torch", "run": "torch-1"})
    together.tell({"epoch": 4, "loss": 0.5, "validation_loss": 0.75}, 10)
    until(lambda: shown("torch-1") == {"done": 5, "total": 10, "loss": 0.5, "validation_loss": 0.75})


def test_nothing_is_left_of_a_process_that_ended(ray_here: None) -> None:
    """Or each run would stay a series as long as its node lives."""
    import ray

    child = """
import ray
from ray_jobs import figures, outcome
ray.init(address="auto", log_to_driver=False)
figures.begin({"job_name": "a", "run": "ended-1"})
outcome.progress(1, 2, score=3)
figures.add(rows=5)
input()
"""
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with subprocess.Popen(
        [sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=ROOT, env=environment
    ) as run:
        until(lambda: shown("ended-1") == {"done": 1, "total": 2, "score": 3, "rows": 5})
        run.communicate(b"\n")
    assert run.returncode == 0
    until(lambda: not shown("ended-1"))


def test_without_a_cluster_nothing_is_done() -> None:
    alone = """
import sys
from ray_jobs import figures, outcome
figures.begin({"job_name": "a", "run": "b"})
outcome.progress(1, 2, loss=3)
figures.add(rows=5)
assert "ray" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", alone], cwd=ROOT, check=True)
