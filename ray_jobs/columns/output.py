"""What is written for one file: Parquet, one for training and one for the test when rows are split, and bad rows."""

from __future__ import annotations

import csv
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Output:
    """Files that appear complete, when `publish` was called, or not at all."""

    def __init__(self, final: Path, names: Sequence[str], split: bool) -> None:
        self.parts = [final]
        if split:
            self.parts = [final.parent / part / final.name for part in ("train", "test")]
        self.rejected = final.with_name(f"{final.stem}.rejected.csv")
        self.rows = [0] * len(self.parts)
        self.bad = 0
        self.schema: Any = None
        self._names = names
        self._mark = uuid.uuid4().hex
        self._writers: list[Any] = []

    def _partial(self, path: Path) -> Path:
        return path.with_name(f".{path.name}.{self._mark}")

    def __enter__(self) -> Output:
        for path in self.parts:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._text = self._partial(self.rejected).open("w", newline="", encoding="utf-8")
        self._refused = csv.writer(self._text)
        self._refused.writerow(["row", "reason", *self._names])
        return self

    def __exit__(self, *error: object) -> None:
        self._close()
        for path in (*self.parts, self.rejected):
            self._partial(path).unlink(missing_ok=True)

    def _close(self) -> None:
        self._text.close()
        while self._writers:
            self._writers.pop().close()

    def refuse(self, number: int, reason: str, values: Sequence[Any]) -> None:
        """Set a row aside."""
        self._refused.writerow([number, reason, *values])
        self.bad += 1

    def write(self, table: Any, test: Any) -> None:
        """Add good rows; `test` says which of them are for the test."""
        import pyarrow
        from pyarrow import parquet

        if not self._writers:
            self.schema = table.schema
            # A dictionary pays for what repeats itself: text.
            text = [column.name for column in table.schema if pyarrow.types.is_string(column.type)]
            for path in self.parts:
                self._writers.append(
                    parquet.ParquetWriter(self._partial(path), table.schema, compression="zstd", use_dictionary=text)
                )
        masks = [None] if len(self.parts) == 1 else [~test, test]
        for index, mask in enumerate(masks):
            part = table if mask is None else table.filter(pyarrow.array(mask))
            self._writers[index].write_table(part)
            self.rows[index] += part.num_rows

    def publish(self) -> None:
        """Give what was written its names."""
        self._close()
        if self.bad:
            self._partial(self.rejected).replace(self.rejected)
        else:
            # Of an earlier run.
            self.rejected.unlink(missing_ok=True)
        for path in reversed(self.parts):
            self._partial(path).replace(path)
