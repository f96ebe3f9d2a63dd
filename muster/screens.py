"""The screens of `muster`: each has a playbook of its name that finds the facts, and a function that shows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from muster import alerts, fleet, nodes, queues, status
from muster.tables import Screen, plain

SHOWN: dict[str, Callable[[Mapping[str, Any]], Screen]] = {
    "status": status.shown,
    "nodes": nodes.shown,
    "queues": queues.shown,
    "laptops": fleet.shown,
    "alerts": alerts.shown,
}


def screen(facts: Mapping[str, Any], name: str, as_facts: bool) -> Any:
    """What a playbook says at its end: text for people, the facts themselves for the command."""
    return facts if as_facts else plain(SHOWN[name](facts))
