"""Trials of ray_jobs.tune: what is tried, one trial, and the search, with Ray Tune or in this process.

Every trial that has ended is a line in a log, from which a search that was cut off goes on. Not Tuner.restore: what
Tune saves of a search may be seconds old, or half written when its process is killed, and then trials that have ended
would run once more.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_jobs import boosting, guests, network, outcome, train_boosted, train_torch

# ASHA: of the trials that come as far as a rung the best third goes on to the next one, at three times as many rounds.
FACTOR = 3
# How often a trial is started again: its process was killed, or its server.
DEATHS = 2
Report = Callable[[float, int], object]


@dataclass(frozen=True)
class Range:
    """Numbers from low to high. Whole ones where these are."""

    low: float
    high: float
    log: bool = False


# Ranges by what is trained, or for `hidden` the layers to choose from.
Space = Mapping[str, Range | list[list[int]]]
SPACES: dict[str, Space] = {
    "boosted": {
        "learning_rate": Range(0.01, 0.3, log=True),
        "max_depth": Range(2, 10),
        "min_child_weight": Range(0.1, 20.0, log=True),
        "subsample": Range(0.5, 1.0),
        "column_share": Range(0.5, 1.0),
    },
    "torch": {
        "learning_rate": Range(1e-4, 0.1, log=True),
        "weight_decay": Range(1e-5, 0.1, log=True),
        "batch_size": Range(16, 512, log=True),
        "hidden": [[32], [64, 32], [128, 64], [128, 64, 32]],
    },
}


def distributions(space: Space) -> dict[str, Any]:
    """The space as Optuna takes it, which knows no lists: layers are their JSON."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for name, each in space.items():
        if isinstance(each, list):
            found[name] = CategoricalDistribution([json.dumps(layers) for layers in each])
        elif isinstance(each.low, int):
            found[name] = IntDistribution(each.low, int(each.high), log=each.log)
        else:
            found[name] = FloatDistribution(each.low, each.high, log=each.log)
    return found


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of train_boosted or train_torch from what Optuna says."""
    return {name: json.loads(value) if isinstance(value, str) else value for name, value in config.items()}


def usual(space: Space, parameters: Any) -> dict[str, Any] | None:
    """What the training takes by itself, as Optuna says it; None when that is outside of the space."""
    found = {}
    for name, each in space.items():
        value = getattr(parameters, name)
        if value not in each if isinstance(each, list) else not each.low <= value <= each.high:
            return None
        found[name] = json.dumps(value) if isinstance(each, list) else value
    return found


@dataclass(frozen=True)
class Boosted:
    """XGBoost, by the rows for training and those for validation. Rows of the test are not even here."""

    parameters: train_boosted.Boosted
    table: Any
    y: Any
    parts: boosting.Parts
    plan: boosting.Plan

    @classmethod
    def of(cls, parameters: train_boosted.Boosted) -> Boosted:
        import numpy

        table, y, whole, _, plan, _ = train_boosted.prepare(parameters)
        rows = numpy.concatenate([whole.train, whole.validation])
        train, validation = numpy.split(numpy.arange(len(rows)), [len(whole.train)])
        # What is measured at the end of a trial is the validation part.
        parts = boosting.Parts(train, validation, validation)
        return cls(parameters, table.iloc[rows].reset_index(drop=True), y[rows], parts, plan)

    @property
    def rounds(self) -> int:
        return self.parameters.rounds

    def fingerprint(self) -> str:
        from pandas.util import hash_pandas_object

        return train_torch.fingerprint([hash_pandas_object(self.table, index=False).to_numpy(), self.y], self.plan)

    def learn(self, config: Mapping[str, Any], report: Report) -> float:
        about = self.plan.about
        parameters = self.parameters.model_copy(update=dict(config))
        plan = train_boosted.plan(parameters, about["task"], about["classes"], about["features"], self.plan.texts)
        best, score = float("inf"), float("inf")
        for step in boosting.learn(self.table, self.y, self.parts, plan, 1):
            if isinstance(step, boosting.Learned):
                score = step.metrics["rmse" if about["task"] == "regression" else "log_loss"]
            else:
                best = min(best, step.score)
                report(best, step.number)
        return score


@dataclass(frozen=True)
class Torch:
    """A network, by the rows for training and those for validation."""

    parameters: train_torch.Torch
    parts: list[Any]
    plan: network.Plan

    @classmethod
    def of(cls, parameters: train_torch.Torch) -> Torch:
        ready = train_torch.prepare(parameters)
        return cls(parameters, ready.parts, ready.plan)

    @property
    def rounds(self) -> int:
        return self.parameters.epochs

    def fingerprint(self) -> str:
        return train_torch.fingerprint(self.parts, self.plan)

    def learn(self, config: Mapping[str, Any], report: Report) -> float:
        plan = train_torch.plan(self.parameters.model_copy(update=dict(config)), self.plan.classes)
        done, best = 0, float("inf")

        def keep(state: network.State, figures: dict[str, Any]) -> None:
            nonlocal done, best
            done, best = figures["epoch"] + 1, state["best"]["loss"] if state["best"] else float("inf")
            if figures["epoch"] % max(1, plan.epochs // 20) == 0 or done == plan.epochs:
                report(best, done)

        with network.one_thread():
            network.learn(self.parts, plan, network.Place(), None, keep)
        if done < plan.epochs:
            raise ArithmeticError(f"the loss is no number any more in epoch {done}")
        return best


@dataclass
class Search:
    """What is searched for, where trials are noted, and how far it is."""

    work: Boosted | Torch
    space: Space
    trials: int
    seed: int
    log: Path
    done: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.done = network.notes(self.log)

    @property
    def grace(self) -> int:
        """Rounds before a trial may be stopped."""
        return max(1, self.work.rounds // FACTOR**2)

    def first(self) -> list[dict[str, Any]]:
        """What to try first: the usual, so that the winner is no worse than that."""
        config = usual(self.space, self.work.parameters)
        return [config] if config and all(trial["config"] != config for trial in self.done) else []

    def known(self) -> list[Any]:
        """Trials that have ended, as Optuna takes them."""
        from optuna.trial import TrialState, create_trial

        space = distributions(self.space)
        return [
            create_trial(
                state=TrialState.COMPLETE if "score" in trial else TrialState.FAIL,
                value=trial.get("score"), params=trial["config"], distributions=space,
            )
            for trial in self.done
        ]  # fmt: skip

    def sampler(self) -> Any:
        """Other numbers than before it was started again: else it would try the same once more."""
        from optuna.samplers import TPESampler

        return TPESampler(seed=self.seed + len(self.done))

    def ended(self, config: Mapping[str, Any], curve: list[tuple[int, float]], **how: Any) -> None:
        """Note a trial, and say how far the search is."""
        trial = {"config": dict(config), "curve": curve, **how}
        network.note(self.log, **trial)
        self.done.append(trial)
        scores = [trial["score"] for trial in self.done if "score" in trial]
        failed = len(self.done) - len(scores)
        note = f"trials, {failed} failed" if failed else "trials"
        outcome.progress(len(self.done), self.trials, f"{note}; best {min(scores):.5g}" if scores else note)

    def finished(self, config: Mapping[str, Any], curve: list[tuple[int, float]], score: float, whole: bool) -> None:
        rounds = max((number for number, _ in curve), default=0)
        self.ended(config, curve, score=score, rounds=rounds, early=not whole and rounds < self.work.rounds)


def here(search: Search) -> None:
    """The trials one after the other in this process."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=search.grace, reduction_factor=FACTOR)
    study = optuna.create_study(sampler=search.sampler(), pruner=pruner)
    study.add_trials(search.known())
    for config in search.first():
        study.enqueue_trial(config)
    space = distributions(search.space)
    while len(search.done) < search.trials:
        trial = study.ask(space)
        curve: list[tuple[int, float]] = []

        def report(score: float, rounds: int, trial: Any = trial, curve: Any = curve) -> None:
            curve.append((rounds, score))
            trial.report(score, rounds)
            if trial.should_prune():
                raise optuna.TrialPruned

        try:
            score = search.work.learn(plain(trial.params), report)
        except optuna.TrialPruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            search.finished(trial.params, curve, curve[-1][1], whole=False)
        except Exception as error:
            # One of many: it is counted and told.
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            search.ended(trial.params, curve, reason=line(error))
        else:
            study.tell(trial, score)
            search.finished(trial.params, curve, score, whole=True)


def line(error: BaseException) -> str:
    """The first line of what went wrong."""
    # Ray's own text of it is a traceback.
    error = getattr(error, "cause", None) or error
    return next(iter(str(error).splitlines()), "")[:500] or type(error).__name__


def attempt(config: dict[str, Any], work: Boosted | Torch) -> None:
    """One trial of Ray Tune."""
    from ray import tune

    last = 0

    def report(score: float, rounds: int) -> None:
        nonlocal last
        last = rounds
        tune.report({"score": score, "rounds": rounds, "whole": False})

    score = work.learn(plain(config), report)
    tune.report({"score": score, "rounds": last, "whole": True})


def on_ray(search: Search, concurrent: int) -> None:
    """The trials on all servers, with a CPU each."""
    if len(search.done) >= search.trials:
        return
    import optuna
    from ray import cloudpickle, tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    # Files for each trial that nobody reads: what counts is in the log.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    class Watch(tune.Callback):  # type: ignore[misc]
        """Notes each trial as it ends, in the process of the job."""

        def __init__(self) -> None:
            self.curves: dict[str, list[tuple[int, float]]] = {}

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any) -> None:
            if not result["whole"]:
                self.curves.setdefault(trial.trial_id, []).append((result["rounds"], result["score"]))

        def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            self.curves.pop(trial.trial_id, None)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            last, curve = trial.last_result, self.curves.pop(trial.trial_id, [])
            search.finished(trial.config, curve, last["score"], last["whole"])

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
            search.ended(trial.config, self.curves.pop(trial.trial_id, []), reason=line(error))

        def __getstate__(self) -> dict[str, Any]:
            # Tune saves it; we never ask for it back.
            return {}

    suggest = OptunaSearch(
        distributions(search.space), metric="score", mode="min", sampler=search.sampler(),
        points_to_evaluate=search.first(),
    )  # fmt: skip
    for trial in search.done:
        suggest.add_evaluated_point(trial["config"], trial.get("score"), error="score" not in trial)
    places = tune.PlacementGroupFactory([{"CPU": 1}], bundle_label_selector=[guests.AT_HOME])
    with tempfile.TemporaryDirectory(prefix="tune-") as folder:
        tune.Tuner(
            tune.with_resources(tune.with_parameters(attempt, work=search.work), places),
            tune_config=tune.TuneConfig(
                search_alg=suggest,
                scheduler=ASHAScheduler(
                    time_attr="rounds", metric="score", mode="min", max_t=search.work.rounds,
                    grace_period=search.grace, reduction_factor=FACTOR,
                ),
                num_samples=search.trials - len(search.done),
                max_concurrent_trials=concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=folder, verbose=0, callbacks=[Watch()],
                failure_config=tune.FailureConfig(max_failures=DEATHS),
            ),
        ).fit()  # fmt: skip
