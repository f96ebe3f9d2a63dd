"""track: what a real MLflow server knows of runs afterwards, and that one which is away costs a job a line only."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import track, train_boosted, train_torch, tune
from ray_jobs.command import JobError
from ray_jobs.library import code_hash

SMALL: dict[str, Any] = {"rounds": 6, "trials": 2}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow on loopback, with SQLite, and with the options of roles/mlflow."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    argv = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    argv += [f"--artifacts-destination={folder}/artifacts", "--static-prefix=/mlflow"]
    argv += [f"--allowed-hosts=127.0.0.1:{port}"]
    environment = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    log = folder / "log"
    with (
        log.open("w") as said,
        subprocess.Popen(
            argv, cwd=folder, env=environment, stdout=said, stderr=said, start_new_session=True
        ) as process,
    ):
        try:
            deadline = time.monotonic() + 600
            while time.monotonic() < deadline:
                assert process.poll() is None, log.read_text()
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/mlflow/health", timeout=5):
                        break
                except OSError:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/mlflow"
        finally:
            # With the workers that it started.
            os.killpg(process.pid, 15)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine all is slow; and what track sets shall not stay."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(track, "LIMIT", 600.0)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small table on a shared storage."""
    import numpy
    import pandas

    monkeypatch.setenv("MUSTER_DATA", str(tmp_path))
    x = numpy.random.default_rng(0).normal(size=(300, 3))
    pandas.DataFrame(x, columns=list("abc")).assign(label=x[:, 0] > x[:, 1]).to_parquet(tmp_path / "table.parquet")
    return str(tmp_path / "table.parquet")


def known(job: str) -> list[Any]:
    """The runs that the server knows of, the newest first."""
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name(job)
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def history(run: Any, name: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    return [(item.step, item.value) for item in MlflowClient().get_metric_history(run.info.run_id, name)]


def test_a_search_is_a_run_with_a_run_for_each_trial(
    server: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    made = tune.JOB.perform(tune.Tune(data=data, models=str(tmp_path / "models"), **SMALL), local=True)
    assert isinstance(made, tune.Tuned)
    runs = known("tune")
    (above,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert above.info.status == "FINISHED"
    assert above.data.params["trials"] == "2" and above.data.params["data"] == data
    assert above.data.metrics["accuracy"] == made.metrics["accuracy"]
    assert above.data.tags["code"] == code_hash() and above.data.tags["model"] == made.model
    (folder,) = tmp_path.glob("results/tune/*")
    assert above.data.tags["folder"] == str(folder) and above.info.run_name == folder.name
    # Of the winner's training.
    assert [step for step, _ in history(above, "validation_loss")][:2] == [1, 2]
    below = [run for run in runs if run is not above]
    assert len(below) == 2 and {run.data.tags["mlflow.parentRunId"] for run in below} == {above.info.run_id}
    assert min(run.data.metrics["score"] for run in below) == pytest.approx(made.validation_loss)
    assert {run.data.params.keys() >= made.settings.keys() for run in below} == {True}
    # One may have been stopped after its first round.
    assert max(len(history(run, "score")) for run in below) >= 2


def test_epochs_are_a_curve_and_a_run_that_failed_is_known(
    server: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    made = train_torch.JOB.perform(train_torch.Torch(data=data, epochs=3), local=True)
    with pytest.raises(JobError, match="no number any more"):
        train_torch.JOB.perform(train_torch.Torch(data=data, learning_rate=1e30), local=True)
    failed, good = known("train_torch")
    assert (failed.info.status, good.info.status) == ("FAILED", "FINISHED")
    assert failed.data.params["learning_rate"] == "1e+30"
    assert good.data.metrics["accuracy"] == made.model_dump()["accuracy"]
    assert [step for step, _ in history(good, "loss")] == [0, 1, 2]


@pytest.mark.parametrize("away", ["shut", "silent"])
def test_a_server_that_is_away_costs_one_line(
    data: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], away: str
) -> None:
    monkeypatch.setattr(track, "PATIENCE", 1)
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if away == "shut":
            listener.close()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        made = train_boosted.JOB.perform(train_boosted.Boosted(data=data, rounds=3, cpus=1), local=True)
    assert made.model_dump()["metrics"]["accuracy"] > 0.5
    error = capsys.readouterr().err
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "1"
    assert error.startswith("MLflow does not know of this run: ") and error.count("\n") == 1


def test_without_an_address_nothing_is_told(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(track, "_tell", lambda *_: pytest.fail("told"))
    train_boosted.JOB.perform(train_boosted.Boosted(data=data, rounds=2, cpus=1), local=True)


def test_a_node_without_mlflow_says_so(
    data: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(track, "find_spec", lambda _: None)
    train_boosted.JOB.perform(train_boosted.Boosted(data=data, rounds=2, cpus=1), local=True)
    assert re.search("mlflow is not installed here.*`ml` image", capsys.readouterr().err)


def test_figures_are_numbers_only() -> None:
    answer = {"rows": 3, "task": "x", "good": True, "metrics": {"rmse": 1.5}, "spread": {"rmse": {"mean": 2}}, "l": [1]}
    assert track.figures(answer) == {"rows": 3, "rmse": 1.5, "spread/rmse/mean": 2}
