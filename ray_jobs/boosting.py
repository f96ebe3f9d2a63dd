"""XGBoost on one machine: rounds until rows set aside for that get no better, and metrics of rows not seen at all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ray_jobs import tables

# Not model.json, which is XGBoost's own name and ours for something else.
FILE = "model.ubj"


class Parts(NamedTuple):
    """Numbers of rows: to learn from, to say when it is enough, and to measure by."""

    train: Any
    validation: Any
    test: Any


@dataclass(frozen=True)
class Plan:
    """What the training and each fold have in common."""

    # As in model.json: task, features, classes.
    about: dict[str, Any]
    texts: list[str]
    settings: dict[str, Any]
    rounds: int
    patience: int


@dataclass(frozen=True)
class Round:
    """How far a training is."""

    number: int
    score: float


@dataclass(frozen=True)
class Learned:
    """A model, and what it is worth."""

    model: bytes
    labels: dict[str, list[str]]
    rounds: int
    metrics: dict[str, float]
    importances: dict[str, float]


def objective(task: str, classes: int) -> dict[str, Any]:
    """What XGBoost makes small, and measures after each round."""
    if task == "regression":
        return {"objective": "reg:squarederror", "eval_metric": "rmse"}
    if classes == 2:
        return {"objective": "binary:logistic", "eval_metric": "logloss"}
    return {"objective": "multi:softprob", "eval_metric": "mlogloss", "num_class": classes}


def rows(table: Any, about: Mapping[str, Any], y: Any = None, threads: int | None = None) -> Any:
    """A table as XGBoost takes it."""
    import xgboost

    types = ["c" if name in about["labels"] else "q" for name in about["features"]]
    x = tables.matrix(table, about["features"], about["labels"])
    return xgboost.DMatrix(x, y, feature_types=types, enable_categorical=True, nthread=threads)


def chosen(said: Any) -> Any:
    """The class that is most likely, from what the booster says of each row."""
    return said.argmax(axis=1) if said.ndim == 2 else (said > 0.5).astype(int)


def load(path: Path) -> Any:
    """A booster from its file."""
    import xgboost

    return xgboost.Booster(model_file=path)


def predict(booster: Any, table: Any, about: Mapping[str, Any]) -> Any:
    """A number or a class for each row."""
    import pandas

    said = booster.predict(rows(table, about))
    if about["task"] == "regression":
        return said.astype(float)
    return pandas.Index(about["classes"]).take(chosen(said))


def agreement(y: Any, guessed: Any) -> dict[str, float]:
    """How often the classes that somebody guesses are right."""
    from sklearn import metrics

    return {
        "accuracy": float(metrics.accuracy_score(y, guessed)),
        "balanced_accuracy": float(metrics.balanced_accuracy_score(y, guessed)),
        "f1_macro": float(metrics.f1_score(y, guessed, average="macro")),
    }


def measure(task: str, y: Any, said: Any, classes: int) -> dict[str, float]:
    """Metrics of what a booster says."""
    from sklearn import metrics

    if task == "regression":
        found = {
            "rmse": metrics.root_mean_squared_error(y, said),
            "mae": metrics.mean_absolute_error(y, said),
            "r2": metrics.r2_score(y, said),
        }
    else:
        found = {
            **agreement(y, chosen(said)),
            "log_loss": metrics.log_loss(y, said, labels=list(range(classes))),
        }
    return {name: float(value) for name, value in found.items()}


def learn(table: Any, y: Any, parts: Parts, plan: Plan, threads: int) -> Iterator[Round | Learned]:
    """Train, and say so every few rounds; the last that comes is the model.

    A generator, because Ray hands on what a task yields while it runs: so the job's log tells how far it is.
    """
    import xgboost

    train, validation, test = (table.iloc[part] for part in parts)
    # Of the training rows only: a label that just others have is as unknown as one that comes later.
    about = {**plan.about, "labels": tables.labels(train, plan.texts)}
    learning = rows(train, about, y[parts.train], threads)
    watching = rows(validation, about, y[parts.validation], threads)
    booster = xgboost.Booster({**plan.settings, "nthread": threads}, [learning, watching])
    best, best_round = math.inf, 0
    for number in range(plan.rounds):
        booster.update(learning, number)
        score = float(booster.eval(watching, "validation", number).rsplit(":", 1)[1])
        if score < best:
            best, best_round = score, number
        elif number - best_round >= plan.patience:
            break
        if number % max(1, plan.rounds // 20) == 0:
            yield Round(number + 1, score)
    booster = booster[: best_round + 1]
    gains = booster.get_score(importance_type="total_gain")
    total = sum(gains.values()) or 1.0
    importances = {name: gains.get(f"f{index}", 0.0) / total for index, name in enumerate(about["features"])}
    said = booster.predict(rows(test, about, threads=threads))
    yield Learned(
        model=bytes(booster.save_raw("ubj")),
        labels=about["labels"],
        rounds=best_round + 1,
        metrics=measure(about["task"], y[parts.test], said, len(about["classes"])),
        importances=dict(sorted(importances.items(), key=lambda pair: -pair[1])),
    )


def fold(table: Any, y: Any, parts: Parts, plan: Plan) -> dict[str, float]:
    """The metrics of one fold, with one CPU."""
    *_, last = learn(table, y, parts, plan, 1)
    assert isinstance(last, Learned)
    return last.metrics
