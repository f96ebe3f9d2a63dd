"""Train XGBoost on a table: classes or numbers, held-out metrics, importances, the model saved for ray_jobs.predict.

As a job:    ray job submit -- python -m ray_jobs.train_boosted -p data=/srv/muster/datasets/a.parquet -p target=price
As a module: ray_jobs.train_boosted.run(ray_jobs.train_boosted.Boosted(data=..., target=...))

One task on one server trains, with all of its CPUs. Not Ray Train's XGBoostTrainer: XGBoost on several hosts talks
through a tracker on a port that is another each time, and between hosts the firewall opens planned ports only. A
server's CPUs are enough for what fits into its memory. The other nodes do what needs no talking: with `folds`, the same
training is repeated on other shares of the rows, one fold per task, which says how far the metrics can be trusted.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field, model_validator

from ray_jobs import boosting, command, guests, models, outcome, tables, track
from ray_jobs.boosting import Learned, Parts, Plan
from ray_jobs.command import JobError
from ray_jobs.models import Name

# `auto` takes numbers with more different values than this for amounts, not for names of classes.
MOST_CLASSES = 20


class Boosted(command.Parameters):
    """What to learn from what. Without data, a made-up set of 20,000 rows: to try the cluster."""

    data: str = Field(default="", description="CSV or Parquet file, or a folder of Parquet files")
    target: str = "label"
    task: Literal["auto", "classification", "regression"] = Field(
        default="auto", description=f"auto: numbers with fractions, or more than {MOST_CLASSES} of them, are regression"
    )
    features: list[str] = Field(default=[], description="columns to learn from; empty: all numbers, and text")
    most_labels: int = Field(default=1000, ge=2, description="text columns with more different values are left out")
    rounds: int = Field(default=500, ge=1, le=100_000, description="trees at most (per class, if more than two)")
    patience: int = Field(default=20, ge=1, description="rounds without a better validation part before it stops")
    learning_rate: float = Field(default=0.1, gt=0, le=1)
    max_depth: int = Field(default=6, ge=1, le=30)
    min_child_weight: float = Field(default=1, ge=0)
    subsample: float = Field(default=1, gt=0, le=1, description="share of the rows for each tree")
    column_share: float = Field(default=1, gt=0, le=1, description="share of the columns for each tree")
    test_share: float = Field(default=0.2, gt=0, lt=1)
    validation_share: float = Field(default=0.2, gt=0, lt=1, description="for the decision when to stop")
    folds: int = Field(default=0, ge=0, le=100, description="of a cross-validation without the test part; 0: none")
    cpus: int = Field(default=0, ge=0, description="to train with; 0: those of the largest server")
    seed: int = Field(default=0, ge=0)
    models: str = Field(default="", description="folder of models; empty: the model is not kept")
    name: Name = "boosted"
    version: Name | None = Field(default=None, description="of the model; empty: made from the time")

    @model_validator(mode="after")
    def _fits(self) -> Boosted:
        if self.test_share + self.validation_share >= 1:
            raise ValueError("test_share and validation_share leave no row to train with")
        if self.folds == 1:
            raise ValueError("folds: 0, or at least 2")
        return self


class Spread(BaseModel):
    """A metric over the folds."""

    mean: float
    deviation: float


class Trained(BaseModel):
    """What came out; every metric is of rows that neither the trees nor the decision to stop have seen."""

    task: str
    metrics: dict[str, float]
    cross_validation: dict[str, Spread]
    train_rows: int
    validation_rows: int
    test_rows: int
    rounds: int
    features: list[str]
    left_out: list[str]
    classes: list[str]
    importances: dict[str, float] = Field(description="share of what the trees gained by a column; the largest 50")
    cpus: int
    seconds: float
    model: str | None


def aim(column: Any, task: str, name: str) -> tuple[str, Any, list[Any]]:
    """What is to be done, the target as numbers, and the classes."""
    import numpy
    import pandas

    is_a = tables.kind(column)
    if is_a is None:
        raise JobError(f"target: {name} is neither numbers nor text")
    if is_a == "text" and task == "regression":
        raise JobError(f"target: {name} is text; regression needs numbers")
    values = column.astype("str") if is_a == "text" else pandas.to_numeric(column.infer_objects())
    if task == "auto":
        amounts = is_a == "number" and (values.nunique() > MOST_CLASSES or (values % 1 != 0).any())
        task = "regression" if amounts else "classification"
    if task == "regression":
        return task, tables.numbers(column.to_frame(name), name), []
    classes, codes = numpy.unique(values.to_numpy(), return_inverse=True)
    if len(classes) < 2:
        raise JobError(f"target: {name} is the same in all rows: there is nothing to learn")
    return task, codes, classes.tolist()


def parted(y: Any, parameters: Boosted, classes: list[Any]) -> tuple[Parts, list[Parts]]:
    """Rows for the training, and for each fold. No fold has test rows: who chooses by folds has not seen them."""
    import numpy
    from sklearn.model_selection import KFold, StratifiedKFold, train_test_split

    def cut(rows: Any, share: float) -> tuple[Any, Any]:
        stratify = y[rows] if classes else None
        left, taken = train_test_split(rows, test_size=share, random_state=seed, stratify=stratify)
        return left, taken

    seed, share = parameters.seed, parameters.validation_share / (1 - parameters.test_share)
    try:
        rest, test = cut(numpy.arange(len(y)), parameters.test_share)
        whole = Parts(*cut(rest, share), test)
        if not parameters.folds:
            return whole, []
        if classes and (fewest := min(numpy.bincount(y[rest], minlength=len(classes)))) < parameters.folds:
            raise ValueError(f"{parameters.folds} folds, but one class has only {fewest} rows for them")
        splitter = (StratifiedKFold if classes else KFold)(parameters.folds, shuffle=True, random_state=seed)
        folds = [(rest[others], rest[held]) for others, held in splitter.split(rest, y[rest])]
        return whole, [Parts(*cut(others, share), held) for others, held in folds]
    except ValueError as error:
        raise JobError(f"data: {len(y)} rows cannot be split for training, validation and test: {error}") from error


def plan(parameters: Boosted, task: str, classes: list[Any], names: list[str], texts: list[str]) -> Plan:
    """The same for the training and the folds."""
    settings = {
        **boosting.objective(task, len(classes)), "tree_method": "hist", "seed": parameters.seed,
        "learning_rate": parameters.learning_rate, "max_depth": parameters.max_depth,
        "min_child_weight": parameters.min_child_weight, "subsample": parameters.subsample,
        "colsample_bytree": parameters.column_share,
    }  # fmt: skip
    about = {"kind": "boosted", "task": task, "features": names, "classes": classes}
    return Plan(about, texts, settings, parameters.rounds, parameters.patience)


def processors(wanted: int, local: bool) -> int:
    """How many CPUs the training takes."""
    if local:
        return wanted or os.cpu_count() or 1
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    largest = max((int(node.get("CPU", 0)) for node in nodes if guests.LAPTOP not in node), default=0)
    if largest and wanted > largest:
        raise JobError(f"cpus: {wanted}, but the largest server has {largest}: one server trains")
    return wanted or max(1, largest)


def followed(
    steps: Iterable[boosting.Round | Learned], say: Callable[[boosting.Round], object] = lambda _: None
) -> Learned:
    """The model that a training ends with; what comes before is said."""
    for step in steps:
        if isinstance(step, Learned):
            return step
        track.point(step.number, validation_loss=step.score)
        say(step)
    raise AssertionError("a training ends with a model")


def train(
    table: Any, y: Any, whole: Parts, folds: list[Parts], wanted: Plan, cpus: int
) -> tuple[Learned, list[dict[str, float]]]:
    """The training on one server; the folds wherever there is room, at the same time."""
    import ray

    here = [ray.put(table), ray.put(y)]
    outcome.progress(0, wanted.rounds, f"rounds; they begin when one server has {cpus} free CPUs")
    # It bears repetition: the same rows, seed and CPUs make the same trees.
    options = guests.at_home(num_cpus=cpus, retries=3, num_returns="streaming")
    said = ray.remote(boosting.learn).options(**options).remote(*here, whole, wanted, cpus)
    measured = guests.each(
        boosting.fold,
        [(*here, fold, wanted) for fold in folds],
        done=lambda count: outcome.progress(count, len(folds), "folds; the training goes on beside them"),
    )

    def say(step: boosting.Round) -> None:
        note = f"rounds; {step.score:.5g} on the validation rows"
        outcome.progress(step.number, wanted.rounds, note, validation_loss=step.score)

    learned = followed((ray.get(reference) for reference in said), say)
    outcome.progress(learned.rounds, learned.rounds, "rounds; the model is complete")
    return learned, measured


class Prepared(NamedTuple):
    """Rows and how to learn from them. The parts and the folds are numbers of rows."""

    table: Any
    y: Any
    whole: Parts
    folds: list[Parts]
    plan: Plan
    left_out: list[str]


def prepare(parameters: Boosted) -> Prepared:
    """Read the data, and say which rows and columns are for what."""
    if parameters.data:
        table = tables.read(parameters.data, parameters.target)
    else:
        table = tables.made_up(parameters.target, parameters.seed, parameters.task == "regression")
    task, y, classes = aim(table[parameters.target], parameters.task, parameters.target)
    names, texts = tables.features(table, parameters.features, parameters.target, parameters.most_labels)
    others = [str(name) for name in table if name not in (*names, parameters.target)]
    return Prepared(table[names], y, *parted(y, parameters, classes), plan(parameters, task, classes, names, texts),
                    [] if parameters.features else others)  # fmt: skip


def run(parameters: Boosted, local: bool = False) -> Trained:
    """Train, measure on held-out rows, keep the model."""
    command.needs("xgboost", "sklearn", "pandas", "pyarrow")
    start = time.perf_counter()
    cpus = processors(parameters.cpus, local)
    if parameters.models:
        models.writable(parameters.models)
    table, y, whole, folds, wanted, left_out = prepare(parameters)
    if local:
        learned = followed(boosting.learn(table, y, whole, wanted, cpus))
        measured = [boosting.fold(table, y, fold, wanted) for fold in folds]
    else:
        learned, measured = train(table, y, whole, folds, wanted, cpus)
    spread = {
        name: Spread(
            mean=statistics.fmean(fold[name] for fold in measured),
            deviation=statistics.stdev(fold[name] for fold in measured),
        )
        for name in (measured[0] if measured else ())
    }
    kept = None
    if parameters.models:
        about = {
            **wanted.about, "labels": learned.labels, "rounds": learned.rounds, "importances": learned.importances,
            "parameters": parameters.model_dump(), "metrics": learned.metrics,
        }  # fmt: skip
        kept = models.save(
            parameters.models, parameters.name, parameters.version, about,
            lambda folder: (folder / boosting.FILE).write_bytes(learned.model),
        )  # fmt: skip
    return Trained(
        task=wanted.about["task"],
        metrics=learned.metrics,
        cross_validation=spread,
        train_rows=len(whole.train),
        validation_rows=len(whole.validation),
        test_rows=len(whole.test),
        rounds=learned.rounds,
        features=wanted.about["features"][:200],
        left_out=left_out[:200],
        classes=[str(label) for label in wanted.about["classes"]][:200],
        importances={name: round(share, 4) for name, share in list(learned.importances.items())[:50]},
        cpus=cpus,
        seconds=round(time.perf_counter() - start, 3),
        model=kept,
    )


JOB = command.Job("train_boosted", __doc__ or "", Boosted, run, tracked=True)

if __name__ == "__main__":
    raise SystemExit(JOB.main())
