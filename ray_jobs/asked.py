"""What is asked of a served model: rows as JSON, each with the model's features and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

# Of a request. More at once is a file and work for `predict`.
MOST_BYTES, MOST_ROWS = 8 * 2**20, 1000
FORM = 'send {"rows": [{column: value, ...}, ...]}'


class RefusedError(Exception):
    """What the client has to mend, in one line, with the HTTP status that says so."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


def size(length: int) -> None:
    """Whether so many bytes are too many."""
    if length > MOST_BYTES:
        raise RefusedError(413, f"a request may have {MOST_BYTES // 2**20} MiB at most: send fewer rows at once")


def rows(body: bytes, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a request, checked against what the model was trained with."""
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(422, f"the body is not JSON: {FORM}") from error
    if not isinstance(sent, dict) or set(sent) != {"rows"} or not isinstance(sent["rows"], list) or not sent["rows"]:
        raise RefusedError(422, f"the body has no rows, or something else beside them: {FORM}")
    if len(sent["rows"]) > MOST_ROWS:
        raise RefusedError(413, f"{len(sent['rows'])} rows, {MOST_ROWS} at most in one request: send several")
    features, texts = about["features"], about.get("labels", {})
    return [_row(row, number, features, texts) for number, row in enumerate(sent["rows"])]


def _row(row: Any, number: int, features: list[str], texts: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise RefusedError(422, f"row {number} is no object: {FORM}")
    if missing := [name for name in features if name not in row]:
        raise RefusedError(422, f"row {number}: no column {missing[0]} (null says that a value is missing)")
    if len(row) > len(features):
        known = set(features)
        unknown = next(name for name in row if name not in known)
        raise RefusedError(422, f"row {number}: the model knows no column {unknown[:100]}")
    return {name: _value(row[name], f"row {number}, column {name}", name in texts) for name in features}


def _value(value: Any, where: str, text: bool) -> Any:
    if value is None:
        return None if text else math.nan
    if text:
        if isinstance(value, str):
            return value
        raise RefusedError(422, f"{where}: text is wanted")
    if not isinstance(value, int | float):
        raise RefusedError(422, f"{where}: a number is wanted")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RefusedError(422, f"{where}: a finite number is wanted (null says that it is missing)")
    return number
