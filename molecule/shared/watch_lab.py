"""Ask a lab's Prometheus what it knows, and break things to see that it notices."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from ray_lab import Lab, until

# What an alert may take beyond its `for`: a scrape, an evaluation, and a machine that does other things.
SLACK = 60


class Watch:
    """Prometheus of a lab, asked on its own host."""

    def __init__(self, lab: Lab, address: str) -> None:
        self.lab, self.url = lab, f"http://{address}:9090/prometheus/api/v1"

    def ask(self, path: str) -> Any:
        """The data of an answer; an AssertionError says what went wrong."""
        said = self.lab.on("head", "curl", "-sS", "-m", "10", "--noproxy", "*", f"{self.url}/{path}", check=False)
        answer = json.loads(said)
        assert answer["status"] == "success", said
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression has now."""
        result = self.ask(f"query?query={quote(expression)}")["result"]
        return result if isinstance(result, list) and all(isinstance(row, dict) for row in result) else [{"": result}]

    def targets(self) -> dict[tuple[str, str, str], str]:
        """How each target is, by job, host and node."""
        found = self.ask("targets?state=active")["activeTargets"]
        names = ("job", "host", "node")
        return {tuple(one["labels"].get(name, "") for name in names): one["health"] for one in found}  # type: ignore[misc]

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]

    def firing(self) -> set[tuple[str, str]]:
        """Name and host of all alerts that fire."""
        alerts = self.ask("alerts")["alerts"]
        return {
            (one["labels"]["alertname"], one["labels"].get("host", "")) for one in alerts if one["state"] == "firing"
        }


@dataclass
class Fault:
    """Something to break, the alert that must come of it, how to mend it, and how long until it is as bad as that."""

    alert: str
    host: str
    make: Callable[[], object]
    mend: Callable[[], object]
    takes: float = 0
    since: float = field(default=0.0)


def drill(watch: Watch, faults: Sequence[Fault]) -> Iterator[str]:
    """Break all, wait for each alert within its `for` and some slack, mend all, wait for silence; say how long."""
    lasts = {rule["name"]: rule["duration"] for rule in watch.rules() if rule["type"] == "alerting"}
    waits = {fault.alert: fault.takes + lasts[fault.alert] for fault in faults}
    mended = []
    try:
        for fault in faults:
            mended.append(fault)
            fault.make()
            fault.since = time.monotonic()
        for fault in sorted(faults, key=lambda one: waits[one.alert]):
            left = fault.since + waits[fault.alert] + SLACK - time.monotonic()
            until(max(left, 1), f"{fault.alert} of {fault.host}", lambda f=fault: (f.alert, f.host) in watch.firing())  # type: ignore[misc]
            yield f"{fault.alert} after {time.monotonic() - fault.since:.0f} s (due: {waits[fault.alert]:.0f} s)"
    finally:
        for fault in mended:
            fault.mend()
    mine = {(fault.alert, fault.host) for fault in faults}
    until(180, "all of them clear", lambda: not mine & watch.firing())
