"""Rows of Parquet, numbered from 1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray_jobs.columns.kinds import kind_of
from ray_jobs.columns.rows import BadFileError, Batch, Header

ROWS = 131_072


def opened(path: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise BadFileError(f"{path.name} is not Parquet: {str(error).splitlines()[0]}") from error


def header(path: Path) -> Header:
    """The columns and their types; one that holds lists or the like is none of ours."""
    with opened(path) as file:
        schema = file.schema_arrow
    kinds = {}
    for column in schema:
        kind = kind_of(column.type)
        if kind is None:
            raise BadFileError(
                f"{path.name}: the column {column.name} is {column.type}: not a number, text, date or bool"
            )
        kinds[column.name] = kind
    return Header(list(schema.names), kinds)


def batches(path: Path, found: Header) -> Iterator[Batch]:
    """The rows, as many at a time as memory bears."""
    import numpy
    import pyarrow

    number = 1
    with opened(path) as file:
        try:
            for part in file.iter_batches(batch_size=ROWS, use_threads=False):
                columns = {name: part.column(name) for name in found.names}
                yield Batch(columns, numpy.arange(number, number + part.num_rows))
                number += part.num_rows
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise BadFileError(f"{path.name} is damaged: {str(error).splitlines()[0]}") from error
