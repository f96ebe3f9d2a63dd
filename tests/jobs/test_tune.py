"""tune: it finds, stops early, goes on after a kill, and what it says of the winner is of rows that none has seen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest

from ray_jobs import models, network, outcome, search, train_boosted, train_torch, tune
from ray_jobs.command import JobError

from ..conftest import ROOT

ROUNDS = 40
# Where one setting decides: with the smallest rate a model of so few rounds has learnt next to nothing.
FAST: dict[str, Any] = {"rounds": ROUNDS, "trials": 8, "space": {"learning_rate": [0.001, 0.5], "max_depth": [1, 6]}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four columns, one of them text, and the classes that they tell."""
    chance = numpy.random.default_rng(3)
    x = chance.normal(size=(900, 3))
    city = chance.choice(["ulm", "bonn"], 900)
    label = (x[:, 0] * x[:, 1] + (city == "ulm") + chance.normal(0, 0.3, 900)) > 0.5
    path = tmp_path_factory.mktemp("tune") / "table.parquet"
    pandas.DataFrame(x, columns=list("abc")).assign(city=city, label=label).to_parquet(path)
    return str(path)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shared storage, and an id for the run."""
    monkeypatch.setenv("MUSTER_DATA", str(tmp_path))
    monkeypatch.setenv("MUSTER_RAY_JOB", "tune-1")
    return tmp_path


def wanted(data: str, **more: Any) -> tune.Tune:
    return tune.Tune.model_validate({"data": data, **FAST, **more})


def perform(parameters: tune.Tune, local: bool) -> tune.Tuned:
    made = tune.JOB.perform(parameters, local)
    assert isinstance(made, tune.Tuned)
    return made


def log_of(root: Path) -> list[dict[str, Any]]:
    """The trials of the one search that is kept below a folder."""
    found = list(root.glob("results/tune/*/trials-*.jsonl"))
    assert len(found) < 2
    return network.notes(found[0]) if found else []


def right(made: tune.Tuned, parameters: tune.Tune, trials: list[dict[str, Any]], failed: int = 0) -> None:
    """What every search has to show."""
    assert made.trials == parameters.trials == len(trials) and made.failed == failed
    assert len({json.dumps(trial["config"]) for trial in trials}) == len(trials)
    good = [trial for trial in trials if "score" in trial]
    assert made.validation_loss == min(trial["score"] for trial in good) < 0.85 * made.worst_loss
    # ASHA has stopped some, and they have used fewer rounds.
    assert made.stopped_early == sum(trial["early"] for trial in good) > 0
    assert all(trial["rounds"] < parameters.rounds for trial in good if trial["early"])
    assert made.rounds == sum(trial["rounds"] for trial in good) < len(trials) * parameters.rounds


def the_winner_is_what_was_told(made: tune.Tuned, parameters: tune.Tune) -> None:
    """Loaded as `predict` does, and asked about the rows that were held out."""
    assert made.model is not None
    about, answer = models.load(Path(made.model))
    table = pandas.read_parquet(parameters.data)
    base = tune.training(parameters, {})
    if isinstance(base, train_boosted.Boosted):
        test = train_boosted.prepare(base).whole.test
    else:
        y = train_torch.load(base)[1]
        test = train_torch.divide(numpy.arange(len(y)).reshape(-1, 1), y, base)[2][0][:, 0]
    assert len(test) == made.test_rows == 180
    said = numpy.asarray(answer(table.iloc[test]))
    assert (said == table.label.iloc[test].to_numpy()).mean() == pytest.approx(made.metrics["accuracy"])
    assert about["parameters"].items() >= made.settings.items()


def test_importing_it_costs_nothing() -> None:
    code = (
        "import sys, ray_jobs.tune;"
        "sys.exit(any(name in sys.modules for name in ('ray', 'optuna', 'torch', 'numpy', 'pandas', 'xgboost')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("kind", ["boosted", "torch"])
def test_here_it_finds_and_keeps_the_best(data: str, kept: Path, kind: str) -> None:
    more: dict[str, Any] = {"kind": kind, "models": str(kept / "models")}
    if kind == "torch":
        more |= {"rounds": 12, "space": {"learning_rate": [1e-5, 0.03], "hidden": [[32]], "batch_size": 32}}
    parameters = wanted(data, **more)
    made = perform(parameters, local=True)
    trials = log_of(kept)
    right(made, parameters, trials)
    the_winner_is_what_was_told(made, parameters)
    assert Path(made.model or "").name.endswith("-tune-1")
    if kind == "boosted":
        # The usual first: so the winner is no worse.
        usual = train_boosted.Boosted()
        assert trials[0]["config"].items() >= {"learning_rate": usual.learning_rate, "subsample": 1}.items()


def test_no_trial_has_a_row_of_the_test(data: str) -> None:
    base = train_boosted.Boosted(data=data)
    whole = train_boosted.prepare(base).whole
    work = search.Boosted.of(base)
    table = pandas.read_parquet(data)
    assert set(work.table.a) == set(table.a.iloc[numpy.concatenate([whole.train, whole.validation])])
    assert not set(work.table.a) & set(table.a.iloc[whole.test])
    assert sum(map(len, search.Torch.of(train_torch.Torch(data=data, features=["a"])).parts[::2])) == 720


class Trouble(search.Boosted):
    """Kills the process of the first trial that gets here, and fails with the usual learning rate."""

    def learn(self, config: Mapping[str, Any], report: search.Report) -> float:
        marker = Path(self.parameters.data).with_suffix(".killed")
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if config["learning_rate"] == 0.1:
            raise ValueError("the usual\nis refused")
        return super().learn(config, report)


def test_ray_finds_and_keeps_the_best_though_a_trial_is_killed_and_one_fails(
    ray_here: None, data: str, kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "Boosted", Trouble)
    parameters = wanted(data, models=str(kept / "models"))
    made = perform(parameters, local=False)
    assert Path(data).with_suffix(".killed").exists()
    trials = log_of(kept)
    right(made, parameters, trials, failed=1)
    assert [trial["reason"] for trial in trials if "score" not in trial] == ["the usual"]
    the_winner_is_what_was_told(made, parameters)
    told = [line for line in capsys.readouterr().out.splitlines() if "trials, 1 failed; best" in line]
    assert told and '"done":8,"total":8' in told[-1]


SOAKED = pytest.mark.skipif("SOAK" not in os.environ, reason="takes a minute; what goes on is the same code")


@pytest.mark.parametrize("where", ["here", pytest.param("ray", marks=SOAKED)])
def test_killed_it_goes_on_after_the_trials_that_have_ended(
    request: pytest.FixtureRequest, data: str, kept: Path, where: str
) -> None:
    argv = [sys.executable, "-m", "ray_jobs.tune", "--params", json.dumps({**FAST, "data": data, "trials": 6})]
    whole = dict(os.environ)
    if where == "ray":
        request.getfixturevalue("ray_here")
        import ray

        whole["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    else:
        argv.append("--local")
    with (
        (kept / "first").open("w") as said,
        subprocess.Popen(argv, cwd=ROOT, env=whole, stdout=said, stderr=said) as job,
    ):
        try:
            deadline = time.monotonic() + 600
            while len(before := log_of(kept)) < 2 and job.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            job.kill()
    assert job.returncode == -signal.SIGKILL, (kept / "first").read_text()
    second = subprocess.run(argv, cwd=ROOT, env=whole, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    after = log_of(kept)
    assert after[: len(before)] == before
    made = tune.Tuned.model_validate(outcome.last(outcome.RESULT, second.stdout))
    assert made.trials == len(after) == 6
    # None was tried twice.
    assert len({json.dumps(trial["config"]) for trial in after}) == 6


def test_of_other_rows_nothing_is_taken_over(data: str, kept: Path) -> None:
    table = pandas.read_parquet(data)
    for rows in (900, 800):
        table.head(rows).to_parquet(kept / "table.parquet")
        made = perform(wanted(str(kept / "table.parquet"), trials=1, rounds=2), local=True)
        assert made.test_rows == rows / 5
    assert len(list(kept.glob("results/tune/*/trials-*.jsonl"))) == 2


def test_where_all_fail_the_first_reason_is_told(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def learn(*_: Any) -> float:
        raise MemoryError("no room for it")

    monkeypatch.setattr(search.Boosted, "learn", learn)
    with pytest.raises(JobError, match=r"^all 3 trials failed; the first: no room for it$"):
        tune.run(wanted(data, trials=3), local=True)


def test_a_network_that_diverges_is_no_winner(data: str) -> None:
    with pytest.raises(JobError, match="the first: the loss is no number any more in epoch 0"):
        tune.run(tune.Tune(kind="torch", data=data, trials=1, rounds=2, space={"learning_rate": 1e30}), local=True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"space": {"depth": [1, 2]}}, "space: boosted has no depth to search for; there are learning_rate, max_depth"),
        ({"space": {"max_depth": [6, 2]}}, "max_depth takes a range from low to high"),
        ({"space": {"max_depth": [1, 2, 3]}}, "max_depth takes a range from low to high"),
        ({"space": {"learning_rate": [0.1, 2]}}, "space: learning_rate: Input should be less than or equal to 1"),
        ({"space": {"max_depth": [1.5, 3]}}, "space: max_depth: Input should be a valid integer"),
        ({"kind": "torch", "space": {"hidden": [64, 32]}}, "hidden takes a list of layers to choose from"),
        ({"kind": "torch", "space": {"hidden": [[64], [0]]}}, "space: hidden.0: Input should be greater than"),
        ({"kind": "torch", "task": "regression"}, "torch tells classes apart"),
        ({"test_share": 0.6, "validation_share": 0.4}, "leave no row to train with"),
        ({"trials": 0}, "trials: "),
        ({"name": "../up"}, "name: "),
    ],
)
def test_a_wrong_parameter_is_one_line_before_anything_starts(
    wrong: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune.JOB.main(["--params", json.dumps(wrong)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"data": "/nowhere.csv"}, "data: /nowhere.csv is not there"),
        ({"target": "colour"}, "target: no column 'colour'"),
        ({"models": "/proc/models"}, "models: /proc/models cannot be made"),
    ],
)
def test_a_mistake_is_told_before_the_first_trial(
    data: str, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(search, "here", lambda *_: pytest.fail("it has begun"))
    with pytest.raises(JobError, match=said):
        tune.run(wanted(**{"data": data, **wrong}), local=True)
