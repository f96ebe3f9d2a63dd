"""Good rows of a file, typed and with their computed columns, and the others with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.columns import formula, rows
from ray_jobs.columns.kinds import Kind, arrow, typed
from ray_jobs.columns.rows import Batch, Header
from ray_jobs.command import JobError

Refuse = Callable[[int, str, Sequence[Any]], object]


@dataclass(frozen=True)
class Sieve:
    """What is asked of every row."""

    kinds: Mapping[str, Kind]
    required: Sequence[str]
    computed: Mapping[str, str]
    delimiter: str

    def good(self, path: Path, found: Header, refuse: Refuse) -> Iterator[Any]:
        """Tables of good rows; `refuse` is told of each of the others: number, reason, values."""
        for batch in rows.batches(path, found, self.delimiter):
            for one in batch.refused:
                refuse(*one)
            if len(batch.numbers):
                yield self.sift(batch, refuse)

    def sift(self, batch: Batch, refuse: Refuse) -> Any:
        """One table of good rows."""
        import numpy
        import pyarrow
        from pyarrow import compute

        bad = numpy.zeros(len(batch.numbers), bool)
        reasons: dict[int, str] = {}

        def blame(wrong: Any, reason: str) -> None:
            # The first reason stands.
            reasons.update(dict.fromkeys(numpy.flatnonzero(wrong & ~bad).tolist(), reason))
            bad[wrong] = True

        def fit(name: str, values: Any) -> None:
            columns[name], wrong = typed(values, self.kinds[name])
            if wrong is not None:
                blame(wrong.fill_null(False).to_numpy(zero_copy_only=False), f"{name} is not {self.kinds[name]}")

        columns: dict[str, Any] = {}
        for name, values in batch.columns.items():
            fit(name, values)
        for name in self.required:
            blame(compute.is_null(columns[name]).to_numpy(zero_copy_only=False), f"{name} is empty")
        for name, text in self.computed.items():
            columns[name], wrong = formula.column(formula.parse(text), columns, len(bad))
            blame(wrong, f"{name} cannot be computed: {text}")
            fit(name, columns[name])
        table = pyarrow.table(columns)
        if not reasons:
            return table
        order = sorted(reasons)
        values = [column.take(pyarrow.array(order)).to_pylist() for column in batch.columns.values()]
        for index, row in zip(order, zip(*values, strict=True), strict=True):
            refuse(int(batch.numbers[index]), reasons[index], row)
        return table.filter(pyarrow.array(~bad))


def made(computed: Mapping[str, str], kinds: Mapping[str, Kind], asked: Mapping[str, Kind]) -> dict[str, Kind]:
    """The types of computed columns; a formula that these columns do not suit is an error."""
    import pyarrow

    known, found = dict(kinds), {}
    for name, text in computed.items():
        tree = formula.parse(text)
        for used in formula.names(tree):
            if used not in known:
                raise JobError(f"computed: {name}: there is no column {used}")
            if known[used] in ("str", "datetime"):
                raise JobError(f"computed: {name}: the column {used} is {known[used]}, not a number")
        values = {column: pyarrow.nulls(0, arrow(known[column])) for column in formula.names(tree)}
        result = formula.column(tree, values, 0)[0].type
        known[name] = found[name] = asked.get(name) or ("bool" if pyarrow.types.is_boolean(result) else "float")
    return found
