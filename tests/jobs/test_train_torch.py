"""train_torch: what it learns, what it keeps, and that it goes on when a worker or the whole job is killed."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import network, outcome, train_torch
from ray_jobs.command import JobError
from ray_jobs.models import load

from ..conftest import ROOT

# Epochs of some tenths of a second: long enough to be killed in.
LONG = train_torch.Torch(epochs=8, batch_size=64)
ARGUMENTS = ["-p", "epochs=8", "-p", "batch_size=64"]


def table(folder: Path, rows: int = 600, noise: bool = False) -> Path:
    """Six columns and a label of words; `noise`: the label has nothing to do with them."""
    numpy, pandas = importlib.import_module("numpy"), importlib.import_module("pandas")
    from sklearn.datasets import make_classification

    x, y = make_classification(
        n_samples=rows, n_features=6, n_informative=6, n_redundant=0, class_sep=2, random_state=1
    )
    if noise:
        y = numpy.random.default_rng(0).permutation(y)
    frame = pandas.DataFrame(x * 1000 + 5000, columns=list("abcdef")).assign(
        same=1, text="x", label=["yes" if value else "no" for value in y]
    )
    frame.loc[3, "a"] = None
    frame.to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def log_of(root: Path) -> Path | None:
    """The log of the one training whose run is kept below a folder."""
    found = list(root.glob("results/train_torch/*/checkpoints/*/log.jsonl"))
    assert len(found) < 2
    return found[0] if found else None


def wait_for(root: Path, right: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """The log as soon as it says this; a deadline keeps a broken test from waiting for ever."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        lines = network.notes(path) if (path := log_of(root)) else []
        if right(lines):
            return lines
        time.sleep(0.01)
    raise AssertionError(f"not in the log: {lines}")


def epochs_of(lines: list[dict[str, Any]]) -> list[int]:
    return [line["epoch"] for line in lines if "loss" in line]


def went_on(root: Path, made: train_torch.Trained) -> None:
    """Each start did the epochs from its own first one on, and the last did all that were left."""
    path = log_of(root)
    assert path is not None
    done: list[list[int]] = []
    for line in network.notes(path):
        if line.get("rank") == 0:
            done.append([])
        elif "loss" in line:
            done[-1].append(line["epoch"])
    assert done == [list(range(start, start + len(epochs))) for start, epochs in zip(made.starts, done, strict=True)]
    assert done[-1] == list(range(made.starts[-1], LONG.epochs))


@pytest.fixture
def plain() -> train_torch.Trained:
    """What comes out of LONG when nothing is killed."""
    return train_torch.run(LONG, local=True)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shared storage, and an id for the run."""
    monkeypatch.setenv("MUSTER_DATA", str(tmp_path))
    monkeypatch.setenv("MUSTER_RAY_JOB", "torch-1")
    return tmp_path


def same(one: train_torch.Trained, other: train_torch.Trained) -> None:
    """The same network, but for the last digits: sums have another order with more workers."""
    assert (one.last_epoch, one.best_epoch, one.test_rows) == (other.last_epoch, other.best_epoch, other.test_rows)
    assert one.validation_loss == pytest.approx(other.validation_loss, rel=1e-3)
    assert one.accuracy == pytest.approx(other.accuracy, abs=0.002)
    assert one.f1_macro == pytest.approx(other.f1_macro, abs=0.002)


def killed_and_again(root: Path, *more: str, **environment: str) -> train_torch.Trained:
    """The job as a process of its own, killed after two epochs, and what comes out of its second start."""
    argv = [sys.executable, "-m", "ray_jobs.train_torch", *ARGUMENTS, *more]
    whole = os.environ | environment
    with (
        (root / "first").open("w") as said,
        subprocess.Popen(argv, cwd=ROOT, env=whole, stdout=said, stderr=said) as job,
    ):
        try:
            before = wait_for(root, lambda lines: len(epochs_of(lines)) >= 2 or job.poll() is not None)
        finally:
            job.kill()
    assert job.returncode == -signal.SIGKILL, (root / "first").read_text()
    second = subprocess.run(argv, cwd=ROOT, env=whole, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    (run,) = root.glob("results/train_torch/*/run.json")
    assert json.loads(run.read_text())["starts"] == 2
    made = train_torch.Trained.model_validate(outcome.last(outcome.RESULT, second.stdout))
    first, again = made.starts
    # What was in the log may be one epoch ahead of what Train had taken notice of.
    assert first == 0 and max(1, epochs_of(before)[-1] - 1) <= again < LONG.epochs
    went_on(root, made)
    return made


def test_importing_it_costs_nothing() -> None:
    code = (
        "import sys, ray_jobs.train_torch, ray_jobs.network, ray_jobs.together;"
        "sys.exit(any(name in sys.modules for name in ('ray', 'torch', 'numpy', 'pandas', 'sklearn')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_it_learns_and_what_it_keeps_says_the_same(tmp_path: Path) -> None:
    pandas = importlib.import_module("pandas")
    data, models = table(tmp_path), tmp_path / "models"
    wanted = train_torch.Torch(data=str(data), epochs=60, batch_size=32, models=str(models), version="v1")
    made = train_torch.run(wanted, local=True)
    assert made.accuracy > 0.85
    assert (made.train_rows, made.validation_rows, made.test_rows) == (384, 96, 120)
    assert (made.features, made.classes) == ([*"abcdef", "same"], ["no", "yes"])
    assert made.model == str(models / "torch/v1")
    assert sorted(path.name for path in (models / "torch").iterdir()) == ["latest", "v1"]
    latest = models / "torch/latest"
    frame = pandas.read_csv(data)
    guessed = load(latest)[1](frame)
    assert (guessed == frame.label).mean() > 0.85
    # The same version again keeps what is there.
    before = (latest / "model.pt").stat().st_mtime_ns
    assert train_torch.run(wanted, local=True).model == made.model
    assert (latest / "model.pt").stat().st_mtime_ns == before


def test_metrics_are_of_rows_that_no_epoch_saw(kept: Path) -> None:
    wanted = train_torch.Torch(
        data=str(table(kept, noise=True)), epochs=200, batch_size=32, hidden=[128, 128], learning_rate=0.003,
        models=str(kept / "models"),
    )  # fmt: skip
    made = train_torch.JOB.perform(wanted, local=True)
    assert isinstance(made, train_torch.Trained) and made.model is not None
    path, model = log_of(kept), Path(made.model)
    assert path is not None
    # It knows the rows it learnt from by heart, and there was nothing to learn.
    assert network.notes(path)[-1]["loss"] < 0.1
    assert made.accuracy < 0.65
    # By heart is not best: the validation rows tell.
    assert made.best_epoch < 100 and made.last_epoch == 199
    x, y, _, classes = train_torch.load(wanted)
    (x, y), _, (x_test, y_test) = train_torch.divide(x, y, wanted)

    def right(rows: Any, numbers: Any) -> float:
        said = network.predict(network.load(model / network.WEIGHTS), load(model)[0], rows)
        return float(sum(classes[number] == word for number, word in zip(numbers, said, strict=True)) / len(said))

    assert made.accuracy == pytest.approx(right(x_test, y_test)) != pytest.approx(right(x, y))


def test_the_parts_have_no_row_in_common() -> None:
    numpy = importlib.import_module("numpy")
    x, y = numpy.arange(100.0).reshape(-1, 1), numpy.arange(100) % 2
    parts = train_torch.divide(x, y, train_torch.Torch())
    assert [len(rows) for rows, _ in parts] == [64, 16, 20]
    assert sorted(value for rows, _ in parts for value in rows[:, 0]) == list(range(100))


def test_columns_are_measured_without_what_is_missing() -> None:
    numpy = importlib.import_module("numpy")
    x = numpy.array([[1.0, 7, numpy.nan], [3, 7, numpy.nan], [numpy.nan, 7, numpy.nan], [numpy.inf, 7, numpy.nan]])
    mean, deviation = network.measure(x)
    assert mean.tolist() == [2, 7, 0] and deviation.tolist() == [1, 1, 1]
    assert network.scale(x, mean, deviation).tolist() == [[-1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_the_same_seed_is_the_same_network(tmp_path: Path) -> None:
    data = str(table(tmp_path))
    first, second, other = (
        train_torch.run(train_torch.Torch(data=data, epochs=3, seed=seed), local=True) for seed in (1, 1, 2)
    )
    assert first.validation_loss == second.validation_loss != other.validation_loss


def test_killed_without_a_cluster_it_goes_on(kept: Path, plain: train_torch.Trained) -> None:
    same(killed_and_again(kept, "--local"), plain)


def test_other_data_under_the_same_id_is_learnt_from_the_start(kept: Path) -> None:
    wanted = train_torch.Torch(data=str(table(kept)), epochs=2)
    answers = [train_torch.JOB.perform(wanted, local=True) for _ in range(2)]
    table(kept, rows=601)
    answers.append(train_torch.JOB.perform(wanted, local=True))
    assert [answer.model_dump()["starts"] for answer in answers] == [[0], [0, 2], [0]]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"data": "/nowhere.csv"}, "not there"),
        ({"target": "colour"}, "no column 'colour'"),
        ({"target": "same"}, "1 classes; it takes two"),
        ({"target": "b"}, "stands in 1 rows of b"),
        ({"features": ["a", "text"]}, "text is not numbers; leave it out"),
        ({"test_share": 0.001}, "too few rows"),
        ({"learning_rate": 1e30}, "the loss is no number any more in epoch 0"),
        ({"models": "{here}/table.csv"}, "cannot be made"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, wrong: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"data": str(table(tmp_path)), "epochs": 2, **wrong}
    values = {key: value.format(here=tmp_path) if isinstance(value, str) else value for key, value in values.items()}
    assert train_torch.JOB.main(["--local", "--params", json.dumps(values)]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_wrong_parameter_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_torch.JOB.main(["-p", "hidden=[0]", "-p", "workers=0", "-p", "name=../up"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(name in error for name in ("hidden.0", "workers", "name"))


def test_more_workers_than_a_server_has_cpus_is_one_line(ray_here: None) -> None:
    with pytest.raises(JobError, match=r"3 CPUs, 2 at most: set workers=2"):
        train_torch.run(train_torch.Torch(workers=3))


def test_killed_workers_are_started_again_and_go_on(ray_here: None, kept: Path, plain: train_torch.Trained) -> None:
    """First the one that does not write checkpoints, then the one that does."""
    killed: list[int] = []

    def due(lines: list[dict[str, Any]]) -> bool:
        """Two epochs since the last kill, by workers that were started after it."""
        started = len([line for line in lines if "pid" in line])
        return started == 2 * len(killed) + 2 and len(set(epochs_of(lines))) >= 2 * len(killed) + 2

    def kill() -> None:
        for rank in (1, 0):
            lines = wait_for(kept, due)
            pid = next(line["pid"] for line in reversed(lines) if line.get("rank") == rank)
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    made = train_torch.JOB.perform(LONG, local=False)
    assert isinstance(made, train_torch.Trained)
    assert len(set(killed)) == 2
    first, second, third = made.starts
    assert first == 0 < second < third < LONG.epochs
    went_on(kept, made)
    same(made, plain)


@pytest.mark.skipif("SOAK" not in os.environ, reason="takes minutes; without Ray it is killed in every run")
def test_the_whole_job_killed_goes_on_under_its_id(ray_here: None, kept: Path, plain: train_torch.Trained) -> None:
    import ray

    models = kept / "models"
    made = killed_and_again(kept, "-p", f"models={models}", RAY_ADDRESS=ray.get_runtime_context().gcs_address)
    same(made, plain)
    # Started once more after its end, it does nothing again, and keeps no second version.
    again = train_torch.JOB.perform(LONG.model_copy(update={"models": str(models)}), local=False)
    assert again.model_dump()["starts"] == [*made.starts, LONG.epochs]
    assert again.model_dump()["model"] == made.model
    assert len(list((models / "torch").iterdir())) == 2


@pytest.mark.skipif("SOAK" not in os.environ, reason="takes a minute, and shows what happens once in a long while")
def test_a_snapshot_that_was_cut_off_does_not_stop_the_job(ray_here: None, kept: Path) -> None:
    wanted = train_torch.Torch(data=str(table(kept)), epochs=2)
    train_torch.JOB.perform(wanted, local=False)
    (snapshot,) = kept.glob("results/train_torch/*/checkpoints/*/checkpoint_manager_snapshot.json")
    snapshot.write_text(snapshot.read_text()[:40])
    assert train_torch.JOB.perform(wanted, local=False).model_dump()["starts"] == [0, 0]


@pytest.fixture
def laptop(ray_here: None) -> Iterator[str]:
    """A laptop's node that offers CPUs, as one that is set up wrongly; its id."""
    import ray

    argv = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=8", "--labels=class=laptop"]
    argv += [f"--address={ray.get_runtime_context().gcs_address}", "--object-store-memory=100000000"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as node:
        try:
            deadline = time.monotonic() + 600
            while not (
                found := [item for item in ray.nodes() if item["Alive"] and "laptop" in item["Labels"].values()]
            ):
                assert node.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            yield str(found[0]["NodeID"])
        finally:
            node.terminate()


def test_two_workers_learn_what_one_process_learns_and_none_is_on_a_laptop(
    laptop: str, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    with pytest.raises(JobError, match="3 CPUs, 2 at most"):
        train_torch.run(train_torch.Torch(workers=3))
    # 385 rows: the last batch has one, which only one of the workers gets.
    wanted = train_torch.Torch(data=str(table(kept, rows=603)), epochs=5, batch_size=32)
    alone = train_torch.run(wanted, local=True)
    capsys.readouterr()
    made = train_torch.JOB.perform(wanted, local=False)
    assert isinstance(made, train_torch.Trained)
    assert made.train_rows % 32 == 1
    assert (made.workers, made.starts, alone.workers) == (2, [0], 1)
    same(made, alone)
    told = outcome.last(outcome.PROGRESS, capsys.readouterr().out)
    assert told is not None and (told["done"], told["total"]) == (5, 5)
    path = log_of(kept)
    assert path is not None
    assert {line["node"] for line in network.notes(path) if "node" in line} == {ray.get_runtime_context().get_node_id()}
