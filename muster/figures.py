"""What the status page asks Prometheus (roles/gateway/files/page/queries.json), for the terminal: the same figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

LABEL = "figure"


def question(queries: Mapping[str, str]) -> str:
    """All of them as one, since every request costs Ansible half a second; a label says which is which."""
    return " or ".join(f'label_replace({query}, "{LABEL}", "{name}", "", "")' for name, query in queries.items())


class Figures:
    """The answer, by the names of the page's queries."""

    def __init__(self, answer: Sequence[Mapping[str, Any]]) -> None:
        self.answer = answer

    def labels(self, name: str) -> list[Mapping[str, str]]:
        """The labels of all that one query found."""
        return [row["metric"] for row in self.answer if row["metric"].get(LABEL) == name]

    def by(self, label: str, name: str) -> dict[str, float]:
        """A query's values by one of its labels; what is no number is not there."""
        rows = [row for row in self.answer if row["metric"].get(LABEL) == name and label in row["metric"]]
        found = {row["metric"][label]: float(row["value"][1]) for row in rows}
        return {key: value for key, value in found.items() if math.isfinite(value)}
