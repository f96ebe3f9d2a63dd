"""Train a small neural network with Ray Train: several workers, a checkpoint per epoch, held-out metrics.

It goes on after its last epoch when a worker is killed, and when the whole job is started again under its id.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, Field

from ray_jobs import boosting, command, models, network, tables, together, track
from ray_jobs.command import JobError
from ray_jobs.models import Name


class Torch(command.Parameters):
    """What to learn from what. Without data, a made-up set of 20,000 rows: to try the cluster."""

    data: str = Field(default="", description="CSV or Parquet file, or a folder of Parquet files")
    target: str = Field(default="label", description="column of the classes to tell apart")
    features: list[str] = Field(default=[], description="columns to learn from; empty: all that are numbers")
    hidden: list[Annotated[int, Field(ge=1, le=65_536)]] = Field(default=[64, 32], description="size of each layer")
    epochs: int = Field(default=20, ge=1, le=100_000)
    batch_size: int = Field(default=128, ge=1, description="rows per step, shared by the workers")
    learning_rate: float = Field(default=0.001, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    test_share: float = Field(default=0.2, gt=0, lt=1, description="rows for the metrics, which no epoch sees")
    validation_share: float = Field(default=0.2, gt=0, lt=1, description="of the others: rows that choose the epoch")
    seed: int = Field(default=0, ge=0, lt=2**32)
    workers: int = Field(default=2, ge=1, description="processes of a CPU each, on one server")
    models: str = Field(default="", description="folder of models; empty: the model is not kept")
    name: Name = "torch"
    version: Name | None = Field(default=None, description="of the model; empty: the run's, or made from the time")


class Trained(BaseModel):
    """What came out. Metrics are of the best epoch, and of rows that no epoch has seen."""

    accuracy: float
    balanced_accuracy: float
    f1_macro: float
    validation_loss: float
    best_epoch: int
    last_epoch: int
    starts: list[int] = Field(description="the epoch that each start began with: more than one when something died")
    train_rows: int
    validation_rows: int
    test_rows: int
    features: list[str]
    classes: list[str]
    workers: int
    seconds: float
    model: str | None


def load(parameters: Torch) -> tuple[Any, Any, list[str], list[Any]]:
    """Features, the number of each row's class, the features' names and the classes."""
    import numpy as np

    if parameters.data:
        table = tables.read(parameters.data, parameters.target)
    else:
        table = tables.made_up(parameters.target, parameters.seed)
    names, _ = tables.features(table, parameters.features, parameters.target)
    column = table[parameters.target]
    values = column.astype("str") if tables.kind(column) == "text" else column
    try:
        classes, numbers, rows = np.unique(values.to_numpy(), return_inverse=True, return_counts=True)
    except TypeError as error:
        raise JobError(f"target: {parameters.target} has values that are no classes: {error}") from error
    if len(classes) < 2:
        raise JobError(f"target: {parameters.target} has {len(classes)} classes; it takes two to tell apart")
    if rows.min() < 3:
        raise JobError(
            f"target: {classes[rows.argmin()]} stands in {rows.min()} rows of {parameters.target}; training, validation"
            " and test need one each. Leave such rows out, or choose a column of classes"
        )
    plain = [label if isinstance(label, bool | int | float | str) else str(label) for label in classes.tolist()]
    return tables.matrix(table, names), numbers, names, plain


def divide(x: Any, y: Any, parameters: Torch) -> list[tuple[Any, Any]]:
    """Rows and classes for training, for validation and for the test, with the classes' shares in each."""
    from sklearn.model_selection import train_test_split

    try:
        x, x_test, y, y_test = train_test_split(
            x, y, test_size=parameters.test_share, random_state=parameters.seed, stratify=y
        )
        x, x_valid, y, y_valid = train_test_split(
            x, y, test_size=parameters.validation_share, random_state=parameters.seed, stratify=y
        )
    except ValueError as error:
        raise JobError(f"data: too few rows for test_share and validation_share: {error}") from error
    return [(x, y), (x_valid, y_valid), (x_test, y_test)]


class Prepared(NamedTuple):
    """Rows as the network takes them, those for the test as they were read, and how to learn."""

    # For training: features and classes; then the same of the rows that choose the epoch.
    parts: list[Any]
    test: tuple[Any, Any]
    # As in model.json: features, classes, and how numbers were standardised.
    about: dict[str, Any]
    plan: network.Plan


def plan(parameters: Torch, classes: int) -> network.Plan:
    """How to learn, of what the user says."""
    return network.Plan(classes=classes, hidden=tuple(parameters.hidden), epochs=parameters.epochs,
                        batch_size=parameters.batch_size, learning_rate=parameters.learning_rate,
                        weight_decay=parameters.weight_decay, seed=parameters.seed)  # fmt: skip


def prepare(parameters: Torch) -> Prepared:
    """Read the data, and say which rows are for what."""
    x, y, names, classes = load(parameters)
    (x, y), (x_valid, y_valid), test = divide(x, y, parameters)
    mean, deviation = network.measure(x)
    parts = [network.scale(x, mean, deviation), y, network.scale(x_valid, mean, deviation), y_valid]
    about = {"features": names, "classes": classes, "mean": mean.tolist(), "deviation": deviation.tolist()}
    return Prepared(parts, test, about, plan(parameters, len(classes)))


def fingerprint(parts: list[Any], plan: network.Plan | boosting.Plan) -> str:
    """What is learnt from what, as one word."""
    digest = hashlib.sha256(json.dumps(asdict(plan)).encode())
    for part in parts:
        digest.update(f"{part.dtype} {part.shape}".encode() + part.tobytes())
    return digest.hexdigest()[:12]


def save(best: network.State, about: dict[str, Any], parameters: Torch) -> str:
    """The network's weights, and what it is."""
    import torch

    run = command.folder()
    # The run's name stays when the job is started again: no second version of the same.
    version = parameters.version or (run.name if run else None)
    return models.save(
        parameters.models, parameters.name, version, about,
        lambda folder: torch.save(best["network"], folder / network.WEIGHTS),
    )  # fmt: skip


def run(parameters: Torch, local: bool = False) -> Trained:
    """Train, measure the best epoch on rows that none has seen, keep the model."""
    command.needs("torch", "sklearn", "pandas")

    start = time.perf_counter()
    kept, node = command.folder(), None
    if not local:
        import ray

        node = None if kept else ray.get_runtime_context().get_node_id()
        together.room(parameters.workers, node)
    if parameters.models:
        models.writable(parameters.models)
    parts, (x_test, y_test), about, learning = prepare(parameters)
    with ExitStack() as stack:
        home = kept or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="train-torch-")))
        # Of other rows or another plan nothing may be gone on with: they would have seen the test.
        folder = home / "checkpoints" / fingerprint(parts, learning)
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "log.jsonl"
        if local:
            network.alone(parts, learning, folder, log, lambda figures: together.tell(figures, learning.epochs))
            state = network.read(folder)
        else:
            state = together.fit(parts, learning, parameters.workers, folder, log, node)
        lines = network.notes(log)
        starts = [item["start"] for item in lines if item.get("rank") == 0]
        for item in lines:
            if "loss" in item:
                track.point(item["epoch"], loss=item["loss"], validation_loss=item["validation_loss"])
    if state is None or state["epoch"] + 1 < learning.epochs or state["best"] is None:
        epoch = state["epoch"] + 1 if state else 0
        raise JobError(f"learning_rate: the loss is no number any more in epoch {epoch}; set a smaller one")
    best = state["best"]
    guessed = network.classify(best["network"], learning, network.scale(x_test, about["mean"], about["deviation"]))
    metrics = boosting.agreement(y_test, guessed)
    about |= {"kind": "torch", "plan": asdict(learning), "metrics": metrics, "parameters": parameters.model_dump()}
    return Trained(
        **metrics,
        validation_loss=best["loss"],
        best_epoch=best["epoch"],
        last_epoch=state["epoch"],
        starts=starts,
        train_rows=len(parts[1]),
        validation_rows=len(parts[3]),
        test_rows=len(y_test),
        features=about["features"][:200],
        classes=[str(label) for label in about["classes"]][:200],
        workers=1 if local else parameters.workers,
        seconds=round(time.perf_counter() - start, 3),
        model=save(best, about, parameters) if parameters.models else None,
    )


JOB = command.Job("train_torch", __doc__ or "", Torch, run, tracked=True)

if __name__ == "__main__":
    raise SystemExit(JOB.main())
