"""What bench/jobs.py times, each in a process of its own: prints one line of JSON.

jobs_inside.py make FOLDER ROWS           CSV files to read
jobs_inside.py process|local|pandas|polars SOURCE TARGET    three computed columns more, as Parquet
jobs_inside.py sums TARGET                what came out, for the comparison
jobs_inside.py train WORKERS ROWS EPOCHS  train_torch
jobs_inside.py tune FOLDER TRIALS         boosted trees; what was tried is kept in FOLDER/tried.json
jobs_inside.py grid FOLDER                scikit-learn's own search through these
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# As many as there are CPUs twice over: each is a task of `process`.
FILES = 4
# Trees of a trial at most.
ROUNDS = 300
COMPUTED = {
    "sum": "feature_1 + feature_2",
    "product": "feature_1 * feature_2",
    "larger": "where(feature_1 > feature_2, feature_1, feature_2)",
}


def cluster() -> None:
    """A Ray of two CPUs, as the lab's workers have."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)


def make(folder: Path, rows: int) -> dict[str, float]:
    import numpy
    import pyarrow
    from pyarrow import csv

    folder.mkdir()
    random = numpy.random.default_rng(0)
    size = rows // FILES
    for number in range(FILES):
        columns = {
            "id": numpy.arange(size) + number * size,
            "feature_1": random.standard_normal(size).round(6),
            "feature_2": random.standard_normal(size).round(6),
            "label": random.integers(0, 2, size),
        }
        csv.write_csv(pyarrow.table(columns), folder / f"{number}.csv")
    return {"rows": size * FILES, "MB": round(sum(path.stat().st_size for path in folder.iterdir()) / 1e6)}


def process(source: Path, target: Path, local: bool) -> float:
    from ray_jobs import process

    if not local:
        cluster()
    wanted = process.Process(source=os.fspath(source), target=os.fspath(target), computed=COMPUTED)
    start = time.perf_counter()
    process.run(wanted, local)
    return time.perf_counter() - start


# Compressed as process does it: zstd, of which pyarrow's level is 1.
def with_pandas(source: Path, target: Path) -> float:
    import numpy
    import pandas

    target.mkdir()
    start = time.perf_counter()
    for path in sorted(source.iterdir()):
        table = pandas.read_csv(path)
        one, other = table["feature_1"], table["feature_2"]
        table["sum"], table["product"], table["larger"] = one + other, one * other, numpy.where(one > other, one, other)
        table.to_parquet(target / f"{path.stem}.parquet", index=False, compression="zstd")
    return time.perf_counter() - start


def with_polars(source: Path, target: Path) -> float:
    import polars

    target.mkdir()
    one, other = polars.col("feature_1"), polars.col("feature_2")
    larger = polars.when(one > other).then(one).otherwise(other)
    start = time.perf_counter()
    for path in sorted(source.iterdir()):
        table = polars.scan_csv(path).with_columns(sum=one + other, product=one * other, larger=larger)
        table.sink_parquet(target / f"{path.stem}.parquet", compression="zstd", compression_level=1)
    return time.perf_counter() - start


def sums(target: Path) -> dict[str, float]:
    from pyarrow import compute, parquet

    table = parquet.read_table(target)
    return {"rows": len(table)} | {name: round(compute.sum(table[name]).as_py(), 3) for name in COMPUTED}


def train(workers: int, rows: int, epochs: int) -> dict[str, float]:
    """Between the first epoch and the last: the start of the workers is no part of it."""
    import numpy
    import pandas

    from ray_jobs import outcome, train_torch

    random = numpy.random.default_rng(0)
    table = pandas.DataFrame(random.standard_normal((rows, 20)).astype("float32"), columns=[f"x{n}" for n in range(20)])
    table["label"] = (table["x0"] * table["x1"] + table["x2"] > 0).astype(int)
    cluster()
    told: list[tuple[float, float]] = []
    tell = outcome.progress

    def heard(done: float, total: float, note: str = "", **shown: float) -> None:
        told.append((time.perf_counter(), done))
        tell(done, total, note, **shown)

    outcome.progress = heard
    with tempfile.TemporaryDirectory() as folder:
        table.to_parquet(Path(folder, "rows.parquet"))
        wanted = train_torch.Torch(
            data=folder, workers=workers, epochs=epochs, hidden=[256, 256], batch_size=4096
        )  # fmt: skip
        begin = time.perf_counter()
        trained = train_torch.run(wanted)
    (first, done), (last, end) = told[0], told[-1]
    return {
        "seconds per epoch": round((last - first) / (end - done), 2),
        "seconds before the first": round(first - begin, 1),
        "accuracy": round(trained.accuracy, 4),
    }


def searched(folder: Path, trials: int) -> dict[str, float]:
    """As a run of its own does it: the search, and the winner trained and measured."""
    from ray_jobs import search, tune

    os.environ |= {"MUSTER_DATA": os.fspath(folder), "MUSTER_RAY_JOB": "bench"}
    cluster()
    start = time.perf_counter()
    made = tune.JOB.perform(tune.Tune(trials=trials, rounds=ROUNDS), local=False)
    seconds = time.perf_counter() - start
    assert isinstance(made, tune.Tuned)
    (log,) = folder.glob("results/tune/*/trials-*.jsonl")
    tried = [search.plain(json.loads(line)["config"]) for line in log.read_text().splitlines()]
    (folder / "tried.json").write_text(json.dumps(tried))
    share = made.rounds / made.rounds_without_stopping
    return {
        "seconds": seconds, "accuracy": made.metrics["accuracy"], "log_loss": made.metrics["log_loss"], "rounds": share
    }  # fmt: skip


def grid(folder: Path) -> dict[str, float]:
    """The same settings, rows and trees, each by one CPU and two at once; it knows no trial that may end early."""
    import numpy
    import xgboost
    from sklearn import metrics
    from sklearn.model_selection import GridSearchCV, PredefinedSplit

    from ray_jobs import train_boosted

    tried = [
        {{"column_share": "colsample_bytree"}.get(name, name): [value] for name, value in settings.items()}
        for settings in json.loads((folder / "tried.json").read_text())
    ]
    table, y, parts, *_ = train_boosted.prepare(train_boosted.Boosted())
    x, seen = table.to_numpy(), numpy.concatenate([parts.train, parts.validation])
    fold = numpy.repeat([-1, 0], [len(parts.train), len(parts.validation)])
    model = xgboost.XGBClassifier(n_estimators=ROUNDS, tree_method="hist", n_jobs=1, random_state=0)
    start = time.perf_counter()
    found = GridSearchCV(model, tried, scoring="neg_log_loss", cv=PredefinedSplit(fold), n_jobs=2).fit(x[seen], y[seen])
    seconds = time.perf_counter() - start
    said = found.predict_proba(x[parts.test])
    return {
        "seconds": seconds, "accuracy": float((said.argmax(axis=1) == y[parts.test]).mean()),
        "log_loss": float(metrics.log_loss(y[parts.test], said)), "rounds": 1.0,
    }  # fmt: skip


def main(what: str, *words: str) -> Any:
    if what == "tune":
        return searched(Path(words[0]), int(words[1]))
    if what == "grid":
        return grid(Path(words[0]))
    if what == "train":
        return train(*map(int, words))
    if what == "make":
        return make(Path(words[0]), int(words[1]))
    if what == "sums":
        return sums(Path(words[0]))
    source, target = map(Path, words)
    if what == "pandas":
        return with_pandas(source, target)
    if what == "polars":
        return with_polars(source, target)
    return process(source, target, local=what == "local")


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
