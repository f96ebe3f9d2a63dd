"""Rows of a file, many at a time, whatever its format: CSV, Parquet, or JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_jobs.columns.kinds import Kind
from ray_jobs.command import JobError

# Types are guessed from so many rows, and a key of JSON lines has to be in one of them.
SAMPLE = 10_000
PARQUET, JSON = (".parquet",), (".jsonl", ".ndjson")
ENDINGS = (".csv", *PARQUET, *JSON)


class BadFileError(JobError):
    """The file itself is no use: not what its name says, no header, hardly a good row."""


@dataclass
class Header:
    """The columns of a file: their names, the types the file itself knows, and where its first row begins."""

    names: list[str]
    kinds: dict[str, Kind] = field(default_factory=dict)
    start: int = 0


@dataclass
class Batch:
    """Some rows as Arrow columns, each with its number in the file, and those that are no rows at all."""

    columns: dict[str, Any]
    numbers: Any
    refused: list[tuple[int, str, list[str]]] = field(default_factory=list)


def header(path: Path, delimiter: str) -> Header:
    """The file's columns, checked."""
    from ray_jobs.columns import csv_rows, json_rows, parquet_rows

    if path.suffix in PARQUET:
        found = parquet_rows.header(path)
    elif path.suffix in JSON:
        found = json_rows.header(path)
    else:
        found = csv_rows.header(path, delimiter)
    if not found.names or not all(found.names) or len(set(found.names)) < len(found.names):
        raise BadFileError(f"{path.name} has no header with a name of its own for every column")
    return found


def batches(path: Path, found: Header, delimiter: str) -> Iterator[Batch]:
    """The file's rows. CSV comes as text; the others as what they are, or as text where types are mixed."""
    from ray_jobs.columns import csv_rows, json_rows, parquet_rows

    if path.suffix in PARQUET:
        return parquet_rows.batches(path, found)
    if path.suffix in JSON:
        return json_rows.batches(path, found)
    return csv_rows.batches(path, found, delimiter)
