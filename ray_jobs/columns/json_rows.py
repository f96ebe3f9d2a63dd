"""Rows of JSON lines: one object per line, numbered from 1. Columns are the keys of the first rows.

Python's own reader: Arrow's stops at the first line that is not as the others, and does not say which.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ray_jobs.columns.kinds import kind_of
from ray_jobs.columns.rows import SAMPLE, BadFileError, Batch, Header

CHUNK = 50_000


def no_number(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


DECODER = json.JSONDecoder(parse_constant=no_number)


def objects(path: Path, count: int) -> Iterator[tuple[list[tuple[int, dict[str, Any]]], list[tuple[int, str]]]]:
    """Objects and what is none, each with its line's number, so many lines at a time; empty lines are no rows."""
    with path.open(encoding="utf-8-sig") as text:
        numbered = enumerate(text, start=1)
        while True:
            try:
                lines = list(islice(numbered, count))
            except UnicodeDecodeError as error:
                raise BadFileError(f"{path.name} is not JSON lines in UTF-8: {error}") from error
            if not lines:
                return
            good, bad = [], []
            for number, line in lines:
                line = line.strip()
                try:
                    value = DECODER.decode(line) if line else None
                except (ValueError, RecursionError):
                    value = line
                if isinstance(value, dict):
                    good.append((number, value))
                elif line:
                    bad.append((number, line))
            yield good, bad


def column(values: list[Any]) -> Any:
    """Values as an Arrow column: of their type when they have one, else each as text."""
    import pyarrow

    try:
        found = pyarrow.array(values)
        if kind_of(found.type) is not None:
            return found
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError):
        pass
    return pyarrow.array(
        [value if value is None or isinstance(value, str) else json.dumps(value) for value in values], pyarrow.string()
    )


def header(path: Path) -> Header:
    """The keys of the first rows, and the types they have there."""
    sample = [value for _, value in next(objects(path, SAMPLE), ([], []))[0]]
    names = list(dict.fromkeys(key for value in sample for key in value))
    if not names:
        raise BadFileError(f"{path.name} has no JSON object in its first {SAMPLE:,} lines")
    columns = {name: column([value.get(name) for value in sample]) for name in names}
    kinds = {name: kind_of(values.type) for name, values in columns.items() if values.null_count < len(values)}
    return Header(names, {name: kind for name, kind in kinds.items() if kind})


def batches(path: Path, found: Header) -> Iterator[Batch]:
    """The rows; one with a key that none of the first had is refused rather than cut."""
    import numpy

    known = set(found.names)
    for good, bad in objects(path, CHUNK):
        refused = [(number, "not a JSON object", [line]) for number, line in bad]
        for number, value in good:
            if new := [key for key in value if key not in known]:
                refused.append((number, f"no column {new[0]} in the first {SAMPLE:,} rows", [json.dumps(value)]))
        rows = [(number, value) for number, value in good if known.issuperset(value)]
        columns = {name: column([value.get(name) for _, value in rows]) for name in found.names}
        yield Batch(columns, numpy.array([number for number, _ in rows], dtype=int), refused)
