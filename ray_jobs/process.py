"""CSV in, typed Parquet out: rows that do not fit are set aside with the reason, and counted.

As a job:    ray job submit -- python -m ray_jobs.process -p source=/srv/muster/datasets/raw -p target=/srv/.../typed
As a module: ray_jobs.process.convert(Path("a.csv"), Path("a.parquet"), {"price": "float"})
"""

from __future__ import annotations

import csv
import os
import time
import uuid
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from ray_jobs import command, guests, outcome
from ray_jobs.command import JobError

Kind = Literal["int", "float", "bool", "datetime", "str"]
CHUNK = 50_000
SAMPLE = 10_000
TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")


class Process(command.Parameters):
    """What to read, where to write, and what the columns are."""

    source: str = Field(description="a CSV file, or a folder of them")
    target: str = Field(description="folder for the Parquet files, one per file of the source")
    columns: dict[str, Kind] = Field(default={}, description="type by column; those not named are guessed")
    required: list[str] = Field(default=[], description="columns that may not be empty")
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    bad_share: float = Field(default=0.5, ge=0, le=1, description="with more bad rows than this the file is refused")


class File(BaseModel):
    """What became of one file."""

    source: str
    target: str
    rows: int
    bad_rows: int
    rejected: str | None
    columns: dict[str, Kind]


class Processed(BaseModel):
    """What became of all of them."""

    rows: int
    bad_rows: int
    files: list[File]
    seconds: float


class BadFileError(JobError):
    """The file itself is no use: not CSV, no header, hardly a good row."""


def guess(values: Any) -> Kind:
    """The narrowest type that holds every value that is not empty."""
    import pandas

    filled = values[values != ""]
    if not len(filled):
        return "str"
    numbers = pandas.to_numeric(filled, errors="coerce")
    if numbers.notna().all():
        whole = filled.str.fullmatch(r"[+-]?\d{1,18}").all()
        # A leading zero is part of a name: a postcode, an article number.
        named = filled.str.fullmatch(r"[+-]?0\d+").any()
        if whole:
            return "str" if named else "int"
        return "str" if named else "float"
    if filled.str.lower().isin([*TRUE[:2], *FALSE[:2]]).all():
        return "bool"
    if filled.str.match(r"\d{4}-\d\d-\d\d").all():
        return (
            "datetime"
            if pandas.to_datetime(filled, errors="coerce", utc=True, format="ISO8601").notna().all()
            else "str"
        )
    return "str"


def typed(values: Any, kind: Kind) -> tuple[Any, Any]:
    """The column as its type, and which of its values do not fit. An empty value is a missing one."""
    import pandas

    empty = values == ""
    if kind == "str":
        return values.mask(empty, None), values != values
    if kind == "bool":
        lower = values.str.lower()
        known = lower.isin([*TRUE, *FALSE])
        return lower.isin(TRUE).astype("boolean").mask(~known), ~known & ~empty
    if kind == "datetime":
        result = pandas.to_datetime(values, errors="coerce", utc=True, format="ISO8601")
        return result, result.isna() & ~empty
    if kind == "float":
        result = pandas.to_numeric(values, errors="coerce").astype("float64")
        return result, ~(result.abs() < float("inf")) & ~empty
    fits = values.str.fullmatch(r"[+-]?\d{1,18}")
    return pandas.to_numeric(values.where(fits), errors="coerce").astype("Int64"), ~fits & ~empty


def chunks(rows: Iterator[list[str]], source: Path) -> Iterator[list[tuple[int, list[str]]]]:
    """Rows with their number in the file, many at a time."""
    numbered = enumerate(rows, start=2)
    while True:
        try:
            chunk = list(islice(numbered, CHUNK))
        except (csv.Error, UnicodeDecodeError) as error:
            raise BadFileError(f"{source.name} is not CSV in UTF-8: {error}") from error
        if not chunk:
            return
        yield [(number, row) for number, row in chunk if row]


def header_of(rows: Iterator[list[str]], source: Path, parameters: Process) -> list[str]:
    """The columns' names, checked."""
    try:
        header = [name.strip() for name in next(rows, [])]
    except (csv.Error, UnicodeDecodeError) as error:
        raise BadFileError(f"{source.name} is not CSV in UTF-8: {error}") from error
    if not header or not all(header) or len(set(header)) < len(header):
        raise BadFileError(f"{source.name} has no header with a name of its own for every column")
    if missing := [name for name in [*parameters.columns, *parameters.required] if name not in header]:
        raise BadFileError(f"{source.name} lacks the column {', '.join(missing)}")
    return header


def convert(source: Path, final: Path, parameters: Process) -> File:
    """Convert one file. Parquet and rejected rows appear complete or not at all."""
    command.needs("pandas", "pyarrow")
    import pandas
    import pyarrow
    import pyarrow.parquet

    arrow = {"int": pyarrow.int64(), "float": pyarrow.float64(), "bool": pyarrow.bool_(), "str": pyarrow.string(),
             "datetime": pyarrow.timestamp("us", "UTC")}  # fmt: skip
    mark = uuid.uuid4().hex
    partial, aside = final.with_name(f".{final.name}.{mark}"), final.with_name(f".{final.stem}.{mark}.rejected.csv")
    kinds: dict[str, Kind] = {}
    good = bad = 0
    try:
        with source.open(newline="", encoding="utf-8-sig") as text, aside.open("w", newline="") as rejected:
            rows = csv.reader(text, delimiter=parameters.delimiter, strict=True)
            header = header_of(rows, source, parameters)
            refuse = csv.writer(rejected)
            refuse.writerow(["row", "reason", *header])
            writer = None
            try:
                for chunk in chunks(rows, source):
                    fitting = [(number, row) for number, row in chunk if len(row) == len(header)]
                    for number, row in chunk:
                        if len(row) != len(header):
                            refuse.writerow([number, f"{len(row)} values, {len(header)} columns", *row])
                            bad += 1
                    if not fitting:
                        continue
                    table = pandas.DataFrame([row for _, row in fitting], columns=header, dtype="str")
                    table = table.apply(lambda column: column.str.strip())
                    if not kinds:
                        sample = table.head(SAMPLE)
                        kinds = {name: parameters.columns.get(name) or guess(sample[name]) for name in header}
                        schema = pyarrow.schema([(name, arrow[kinds[name]]) for name in header])
                        writer = pyarrow.parquet.ParquetWriter(partial, schema, compression="zstd")
                    reasons = pandas.Series("", index=table.index, dtype="str")
                    values = {}
                    for name in header:
                        values[name], wrong = typed(table[name], kinds[name])
                        reasons = reasons.mask(wrong & (reasons == ""), f"{name} is not {kinds[name]}")
                    for name in parameters.required:
                        reasons = reasons.mask((table[name] == "") & (reasons == ""), f"{name} is empty")
                    keep = reasons == ""
                    for index in keep.index[~keep]:
                        refuse.writerow([fitting[index][0], reasons[index], *fitting[index][1]])
                    bad += int((~keep).sum())
                    good += int(keep.sum())
                    clean = pandas.DataFrame(values, columns=header)[keep]
                    assert writer is not None
                    writer.write_table(pyarrow.Table.from_pandas(clean, schema=schema, preserve_index=False))
            finally:
                if writer is not None:
                    writer.close()
        if not good:
            raise BadFileError(f"{source.name} has no good row ({bad} bad)")
        if bad > parameters.bad_share * (good + bad):
            raise BadFileError(
                f"{source.name}: {bad} of {good + bad} rows are bad, more than {parameters.bad_share:.0%}"
            )
        beside = final.with_name(f"{final.stem}.rejected.csv")
        if bad:
            aside.replace(beside)
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)
        aside.unlink(missing_ok=True)
    return File(
        source=os.fspath(source), target=os.fspath(final), rows=good, bad_rows=bad,
        rejected=os.fspath(beside) if bad else None, columns=kinds,
    )  # fmt: skip


def run(parameters: Process, local: bool = False) -> Processed:
    """Convert every file, each as a task that may be repeated."""
    command.needs("pandas", "pyarrow")
    start = time.perf_counter()
    source, target = Path(parameters.source), Path(parameters.target)
    files = sorted(source.glob("*.csv")) if source.is_dir() else [source] if source.is_file() else []
    if not files:
        raise JobError(f"source: no CSV file at {source} (is the shared storage mounted on this node?)")
    target.mkdir(parents=True, exist_ok=True)
    pairs = [(path, target / f"{path.stem}.parquet") for path in files]
    if local:
        done = [convert(path, final, parameters) for path, final in pairs]
    else:
        import ray

        # It bears repetition, but the files are on the shared storage, which laptops do not have.
        remote = ray.remote(convert).options(**guests.at_home(retries=5, scheduling_strategy="SPREAD"))
        asked = [remote.remote(path, final, parameters) for path, final in pairs]
        waiting = list(asked)
        while waiting:
            _, waiting = ray.wait(waiting)
            outcome.progress(len(asked) - len(waiting), len(asked), "files")
        try:
            done = ray.get(asked)
        except ray.exceptions.RayTaskError as error:
            raise JobError(str(error.cause)) from error
    return Processed(
        rows=sum(file.rows for file in done), bad_rows=sum(file.bad_rows for file in done),
        files=done[:200], seconds=round(time.perf_counter() - start, 3),
    )  # fmt: skip


JOB = command.Job("process", __doc__ or "", Process, run)

if __name__ == "__main__":
    raise SystemExit(JOB.main())
