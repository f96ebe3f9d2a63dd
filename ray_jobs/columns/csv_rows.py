"""Rows of CSV. Arrow reads what is beyond doubt, ten times faster; Python's csv module, which is strict, all else.

Arrow takes the rest of a file for one value when a quote is not closed, says nothing about a quote in the wrong place,
and does not count empty lines. So it only gets blocks of whole rows whose quotes are as RFC 4180 wants them.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ray_jobs.columns.rows import BadFileError, Batch, Header

BLOCK = 8 * 2**20
CHUNK = 50_000
LONGEST_LINE = 2**20
NEWLINE, RETURN, QUOTE = b'\n\r"'


def header(path: Path, delimiter: str) -> Header:
    """The names in the first row."""
    with path.open("rb") as file:
        start = 3 if file.read(3) == codecs.BOM_UTF8 else 0

    def lines() -> Iterator[str]:
        nonlocal start
        while line := text.readline(LONGEST_LINE):
            start += len(line.encode())
            yield line

    with path.open(newline="", encoding="utf-8-sig") as text:
        try:
            names = next(csv.reader(lines(), delimiter=delimiter, strict=True), [])
        except (csv.Error, UnicodeDecodeError) as error:
            raise BadFileError(f"{path.name} is not CSV in UTF-8: {error}") from error
    return Header([name.strip() for name in names], start=start)


def batches(path: Path, found: Header, delimiter: str) -> Iterator[Batch]:
    """The rows, numbered as csv.reader would: the header is row 1."""
    number, rest = 2, b""
    with path.open("rb") as file:
        file.seek(found.start)
        while True:
            fresh = file.read(BLOCK)
            data = rest + fresh
            if not data:
                return
            size, count = whole(data, len(fresh) < BLOCK, delimiter)
            if not size:
                # Where rows end is in doubt from here on.
                file.seek(-len(data), io.SEEK_CUR)
                yield from exact(file, path, found.names, number, delimiter)
                return
            block, rest = data[:size], data[size:]
            batch = fast(block, found.names, number, count, delimiter)
            if batch is None:
                number = yield from exact(io.BytesIO(block), path, found.names, number, delimiter)
            else:
                yield batch
                number += count


def whole(data: bytes, last: bool, delimiter: str) -> tuple[int, int]:
    """How many bytes from the start are whole rows, and how many rows; no bytes where that is in doubt."""
    import numpy

    end = len(data) if last else data.rfind(b"\n") + 1
    if not end or not delimiter.isascii():
        return 0, 0
    if b'"' not in data:
        return end, data.count(b"\n", 0, end) + (data[end - 1] != NEWLINE)
    values = numpy.frombuffer(data, numpy.uint8)
    quotes = numpy.flatnonzero(values == QUOTE)
    # A newline between quotes ends no row: back to one that does.
    while (before := int(numpy.searchsorted(quotes, end))) % 2:
        end = 0 if last else data.rfind(b"\n", 0, int(quotes[before - 1])) + 1
    if not end:
        return 0, 0
    quotes = quotes[:before]
    beside = numpy.zeros(256, bool)
    beside[[NEWLINE, RETURN, QUOTE, ord(delimiter)]] = True
    framed = numpy.concatenate(([NEWLINE], values[:end], [NEWLINE]))
    if not (beside[framed[quotes[::2]]].all() and beside[framed[quotes[1::2] + 2]].all()):
        return 0, 0
    newlines = numpy.flatnonzero(values[:end] == NEWLINE)
    outside = int((numpy.searchsorted(quotes, newlines) % 2 == 0).sum())
    return end, outside + (data[end - 1] != NEWLINE)


def fast(block: bytes, names: list[str], number: int, count: int, delimiter: str) -> Batch | None:
    """The rows as Arrow reads them; None when it did not see as many as there are: an empty line is in between."""
    import numpy
    import pyarrow
    from pyarrow import csv as arrow_csv

    bad: list[Any] = []

    def refuse(row: Any) -> str:
        bad.append((row.number, row.actual_columns, row.text))
        return "skip"

    try:
        table = arrow_csv.read_csv(
            pyarrow.py_buffer(block),
            arrow_csv.ReadOptions(column_names=names, use_threads=False, block_size=len(block) + 1),
            arrow_csv.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if b'"' in block else False,
                newlines_in_values=True,
                invalid_row_handler=refuse,
            ),
            arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pyarrow.string()),
                null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=True,
            ),
        )  # fmt: skip
    except (pyarrow.ArrowInvalid, UnicodeDecodeError):
        return None
    if table.num_rows + len(bad) != count:
        return None
    numbers = numpy.arange(number, number + count)
    refused = []
    for row, values, text in bad:
        parsed = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
        refused.append((number + row - 1, f"{values} values, {len(names)} columns", parsed))
    columns = {name: table.column(name).combine_chunks() for name in names}
    return Batch(columns, numpy.delete(numbers, [row - 1 for row, _, _ in bad]), refused)


def exact(file: Any, path: Path, names: list[str], number: int, delimiter: str) -> Generator[Batch, None, int]:
    """The rows as Python reads them; returns the number of the row after the last."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    numbered = enumerate(csv.reader(text, delimiter=delimiter, strict=True), start=number)
    while True:
        try:
            chunk = list(islice(numbered, CHUNK))
        except (csv.Error, UnicodeDecodeError) as error:
            raise BadFileError(f"{path.name} is not CSV in UTF-8: {error}") from error
        if not chunk:
            text.detach()
            return number
        number = chunk[-1][0] + 1
        yield gathered(chunk, names)


def gathered(chunk: Iterable[tuple[int, list[str]]], names: list[str]) -> Batch:
    """Rows as columns; those of another length apart, empty lines nowhere."""
    import numpy
    import pyarrow

    fitting = [(number, row) for number, row in chunk if len(row) == len(names)]
    refused = [
        (number, f"{len(row)} values, {len(names)} columns", row)
        for number, row in chunk
        if row and len(row) != len(names)
    ]
    columns = list(zip(*(row for _, row in fitting), strict=True)) or [()] * len(names)
    return Batch(
        {name: pyarrow.array(values, pyarrow.string()) for name, values in zip(names, columns, strict=True)},
        numpy.array([number for number, _ in fitting], dtype=int),
        refused,
    )
