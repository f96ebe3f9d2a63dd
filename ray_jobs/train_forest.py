"""Train a random forest across the nodes: held-out metrics, the model saved for ray_jobs.predict.

As a job:    ray job submit -- python -m ray_jobs.train_forest -p data=/srv/muster/datasets/a.parquet -p target=label
As a module: ray_jobs.train_forest.run(ray_jobs.train_forest.Forest(data=..., target=...))
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from ray_jobs import boosting, command, guests, models, outcome, tables
from ray_jobs.command import JobError
from ray_jobs.models import Name


class Forest(command.Parameters):
    """What to learn from what. Without data, a made-up set of 20,000 rows: to try the cluster."""

    data: str = Field(default="", description="CSV or Parquet file, or a folder of Parquet files")
    target: str = "label"
    features: list[str] = Field(default=[], description="columns to learn from; empty: all that are numbers")
    trees: int = Field(default=200, ge=1, le=10_000)
    max_depth: int | None = Field(default=15, ge=1)
    min_samples_leaf: int = Field(default=1, ge=1)
    test_share: float = Field(default=0.2, gt=0, lt=1)
    seed: int = 0
    shards: int = Field(default=0, ge=0, description="parts to train at the same time; 0: one per CPU of the cluster")
    models: str = Field(default="", description="folder of models; empty: the model is not kept")
    name: Name = "forest"
    version: Name | None = Field(default=None, description="of the model; empty: made from the time")


class Trained(BaseModel):
    """What came out; every metric is of rows that no tree has seen."""

    accuracy: float
    balanced_accuracy: float
    f1_macro: float
    train_rows: int
    test_rows: int
    features: list[str]
    classes: list[str]
    trees: int
    shards: int
    nodes: int
    seconds: float
    model: str | None


def split(total: int, parts: int) -> list[int]:
    """So many trees for each part: as equal as can be, none empty."""
    parts = min(parts, total)
    return [total // parts + (index < total % parts) for index in range(parts)]


def load(parameters: Forest) -> tuple[Any, Any, list[str]]:
    """Features, labels and the features' names."""
    if parameters.data:
        table = tables.read(parameters.data, parameters.target)
    else:
        table = tables.made_up(parameters.target, parameters.seed)
    names, _ = tables.features(table, parameters.features, parameters.target)
    return tables.matrix(table, names), table[parameters.target].to_numpy(), names


def fit(x: Any, y: Any, trees: int, seed: int, settings: dict[str, Any]) -> tuple[Any, str]:
    """Some of the trees, and the node that grew them."""
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(n_estimators=trees, random_state=seed, n_jobs=1, **settings).fit(x, y)
    try:
        import ray

        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
    except ImportError:
        node = ""
    return forest, node


def merge(forests: Sequence[Any]) -> Any:
    """One forest of all the trees."""
    whole = forests[0]
    for part in forests[1:]:
        if list(part.classes_) != list(whole.classes_):
            raise JobError("parts of the forest know different labels")
        whole.estimators_ += part.estimators_
    whole.n_estimators = len(whole.estimators_)
    return whole


def grow(x: Any, y: Any, parameters: Forest, local: bool) -> tuple[Any, int, int]:
    """The forest, the number of its parts and of the nodes that grew them."""
    settings = {"max_depth": parameters.max_depth, "min_samples_leaf": parameters.min_samples_leaf}
    if local:
        return fit(x, y, parameters.trees, parameters.seed, settings)[0], 1, 1
    import ray

    cpus = max(1, int(ray.cluster_resources().get("CPU", 1) + guests.laptops()))
    sizes = split(parameters.trees, parameters.shards or cpus)
    x_there, y_there = ray.put(x), ray.put(y)
    seeds = [parameters.seed * 1_000_003 + index for index in range(len(sizes))]
    parts = [(x_there, y_there, trees, seed % 2**32, settings) for trees, seed in zip(sizes, seeds, strict=True)]
    # A part can be grown again from its seed, so it may run on a laptop, too.
    grown = guests.each(fit, parts, done=lambda count: outcome.progress(count, len(parts), "parts of the forest"))
    return merge([part for part, _ in grown]), len(sizes), len({node for _, node in grown})


def save(forest: Any, parameters: Forest, names: list[str], metrics: dict[str, float]) -> str:
    """Keep it for `predict`."""
    import joblib

    about = {"kind": "forest", "features": names, "parameters": parameters.model_dump(), "metrics": metrics}
    return models.save(
        parameters.models, parameters.name, parameters.version, about,
        lambda folder: joblib.dump(forest, folder / "model.joblib", compress=3),
    )  # fmt: skip


def run(parameters: Forest, local: bool = False) -> Trained:
    """Train, measure on held-out rows, keep the model."""
    command.needs("sklearn", "pandas", "joblib")
    from sklearn.model_selection import train_test_split

    start = time.perf_counter()
    if parameters.models:
        models.writable(parameters.models)
    x, y, names = load(parameters)
    try:
        x_train, x_test, y_train, y_test = train_test_split(
            x, y, test_size=parameters.test_share, random_state=parameters.seed, stratify=y
        )
    except ValueError as error:
        raise JobError(f"data: {error}") from error
    forest, shards, nodes = grow(x_train, y_train, parameters, local)
    metrics = boosting.agreement(y_test, forest.predict(x_test))
    return Trained(
        **metrics,
        train_rows=len(y_train),
        test_rows=len(y_test),
        features=names[:200],
        classes=[str(label) for label in forest.classes_][:200],
        trees=len(forest.estimators_),
        shards=shards,
        nodes=nodes,
        seconds=round(time.perf_counter() - start, 3),
        model=save(forest, parameters, names, metrics) if parameters.models else None,
    )


JOB = command.Job("train_forest", __doc__ or "", Forest, run, tracked=True)

if __name__ == "__main__":
    raise SystemExit(JOB.main())
