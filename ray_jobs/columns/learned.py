"""What is learned of a column from all its rows: how to scale it, and a number for each of its labels.

Learned per file and merged, so that no file has to fit into memory, nor all of them on one node.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from ray_jobs.command import JobError

Scaling = Literal["standard", "minmax"]
# A column with more different values than this holds no labels; and all of them are kept in memory.
MOST_LABELS = 100_000


class Figures(BaseModel):
    """Of numbers: how many, their mean, the squares of the distances from it, the smallest, the largest."""

    count: int = 0
    mean: float = 0
    squares: float = 0
    low: float = math.inf
    high: float = -math.inf

    def and_of(self, other: Figures) -> Figures:
        """Of both together (Chan, Golub and LeVeque: no sum of squares of large numbers)."""
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        return Figures(
            count=count,
            mean=self.mean + apart * other.count / count,
            squares=self.squares + other.squares + apart**2 * self.count * other.count / count,
            low=min(self.low, other.low),
            high=max(self.high, other.high),
        )


class Learned(BaseModel):
    """Of the rows so far: figures by column to scale, and the values of each column of labels."""

    figures: dict[str, Figures] = {}
    labels: dict[str, set[int | str]] = {}

    def take(self, table: Any, training: Any, scaled: Iterable[str], encoded: Iterable[str]) -> None:
        """Learn from more rows. How to scale is learned from those to train with only: the others are for the test."""
        for name in scaled:
            self.figures[name] = self.figures.get(name, Figures()).and_of(figures(table[name], training))
        for name in encoded:
            self.add(name, table[name].unique().drop_null().to_pylist())

    def and_of(self, other: Learned) -> Learned:
        """What was learned from these rows and from those."""
        both = Learned(figures=dict(self.figures), labels=dict(self.labels))
        for name, more in other.figures.items():
            both.figures[name] = both.figures.get(name, Figures()).and_of(more)
        for name, labels in other.labels.items():
            both.add(name, labels)
        return both

    def add(self, name: str, labels: Iterable[int | str]) -> None:
        found = self.labels.get(name, set()) | set(labels)
        if len(found) > MOST_LABELS:
            raise JobError(f"encode: {name} has more than {MOST_LABELS:,} different values: it holds no labels")
        self.labels[name] = found


def figures(values: Any, training: Any) -> Figures:
    """Of a column's rows to train with; empty values do not count."""
    import numpy

    if training is not None:
        values = values.filter(training)
    numbers = values.drop_null().to_numpy(zero_copy_only=False).astype(float)
    if not len(numbers):
        return Figures()
    mean = float(numbers.mean())
    return Figures(
        count=len(numbers), mean=mean, squares=float(numpy.square(numbers - mean).sum()),
        low=float(numbers.min()), high=float(numbers.max()),
    )  # fmt: skip


class Scale(BaseModel):
    """A value becomes (value - offset) / width."""

    how: Scaling
    offset: float
    width: float

    def apply(self, values: Any) -> Any:
        from pyarrow import compute

        return compute.divide(compute.subtract(compute.cast(values, "float64", safe=False), self.offset), self.width)


def scale(name: str, how: Scaling, found: Figures) -> Scale:
    """How to scale a column of which this is known. One that is the same everywhere becomes 0."""
    if not found.count:
        raise JobError(f"scale: {name} has no value to learn from")
    if how == "standard":
        return Scale(how=how, offset=found.mean, width=math.sqrt(found.squares / found.count) or 1)
    return Scale(how=how, offset=found.low, width=(found.high - found.low) or 1)


def encoded(name: str, values: Any, labels: Sequence[int] | Sequence[str]) -> Any:
    """The number of each label, by its place in the list."""
    import pyarrow
    from pyarrow import compute

    found = compute.index_in(values, pyarrow.array(labels, values.type), skip_nulls=True)
    if found.null_count != values.null_count:
        raise JobError(f"encode: {name} has values it did not have a moment ago: a file was changed meanwhile")
    return compute.cast(found, "int64")
