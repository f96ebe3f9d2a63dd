"""Batch prediction with a model of train_forest or train_boosted: CSV or Parquet in, Parquet with the answer out."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

from pydantic import BaseModel, Field

from ray_jobs import command, figures, models, tables
from ray_jobs.columns.files import here, on_ray
from ray_jobs.command import JobError


class Predict(command.Parameters):
    """Which model says something about which rows. Load only models that you trust: a forest is a program."""

    model: str = Field(description="folder of the model, as in /srv/muster/models/forest/latest")
    data: str = Field(description="CSV or Parquet file, or a folder of them")
    target: str = Field(description="folder for the Parquet files, one per file of data")
    column: str = "prediction"


class Predicted(BaseModel):
    """What was written where."""

    rows: int
    files: list[str]
    seconds: float


def one(model: str, source: str, target: str, column: str) -> tuple[str, int]:
    """Predict one file; what is written appears complete or not at all."""
    about, answers = models.load(Path(model))
    table = tables.file(Path(source), about.get("labels", ()))
    try:
        table[column] = answers(table) if len(table) else []
    except JobError as error:
        raise JobError(f"{error} ({source})") from error
    final = Path(target) / f"{Path(source).name.rsplit('.', 1)[0]}.parquet"
    partial = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
    table.to_parquet(partial, index=False)
    partial.replace(final)
    figures.add(rows=len(table))
    return os.fspath(final), len(table)


def run(parameters: Predict, local: bool = False) -> Predicted:
    """Predict every file, each as a task that may be repeated."""
    command.needs("pandas", "pyarrow")
    start = time.perf_counter()
    source, model = Path(parameters.data), Path(parameters.model).resolve()
    models.about(model)
    files = sorted(p for p in source.iterdir() if p.suffix in (".csv", ".parquet")) if source.is_dir() else [source]
    files = [path for path in files if path.is_file()]
    if not files:
        raise JobError(f"data: no CSV or Parquet file at {source}")
    if len({path.stem for path in files}) < len(files):
        raise JobError(f"data: files in {source} differ only in their ending; each needs a result of its own")
    Path(parameters.target).mkdir(parents=True, exist_ok=True)
    arguments = [(os.fspath(model), os.fspath(path), parameters.target, parameters.column) for path in files]
    written = (here if local else on_ray)(one, arguments, "predicted")
    return Predicted(
        rows=sum(rows for _, rows in written),
        files=[path for path, _ in written][:500],
        seconds=round(time.perf_counter() - start, 3),
    )


JOB = command.Job("predict", __doc__ or "", Predict, run)

if __name__ == "__main__":
    raise SystemExit(JOB.main())
