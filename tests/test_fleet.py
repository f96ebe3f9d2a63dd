"""The screen of `muster laptops`, and what it says to do."""

from __future__ import annotations

import re
from typing import Any

import pytest

from muster import fleet
from muster.tables import plain

NOW = 1_800_000_000.0
DAY = 86_400


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h"), (3660, "1 h 1 min"),
     (7199, "1 h 59 min"), (DAY, "1 d"), (DAY + 61, "1 d"), (DAY + 3600, "1 d 1 h"), (400.5 * DAY, "400 d 12 h")],
)  # fmt: skip
def test_a_span_has_two_units_at_most(seconds: float, text: str) -> None:
    assert fleet.span(seconds) == text


def laptop(state: str, ago: float | None = 60, **more: Any) -> dict[str, Any]:
    since = NOW - ago if ago is not None else None
    host: dict[str, Any] = {"kind": "laptop", "state": state, "why": "", "since": since, "battery": None,
                            "plugged": None, "lid": None, "address": "", "tasks": []}  # fmt: skip
    return host | more


def laptops(planned: dict[str, str], seen: dict[str, Any]) -> str:
    """The screen."""
    return plain(fleet.shown(fleet.facts(planned, seen)))


SERVER = laptop("ready") | {"kind": "server"}
TASK = {"task": "app.report", "id": "0123456789", "queue": "default"}


def test_every_laptop_has_a_line_and_what_to_do() -> None:
    seen = {
        "now": NOW,
        "hosts": {
            "a": laptop("ready", 7200, battery=80.0, plugged=True, address="10.9.9.9", tasks=[TASK] * 3),
            "b": laptop("asleep", 3 * DAY, why="lid closed", battery=71.4, plugged=False),
            "c": laptop("lost", 20 * DAY, why="away for more than 14 days"),
            "stranger": laptop("draining", None, why="on battery", plugged=False),
            "server1": SERVER,
        },
    }
    planned = {"a": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.3", "new": "10.0.0.4"}
    remove = "ansible-playbook remove-laptop.yml -e host"
    lines = laptops(planned, seen).splitlines()
    assert [re.split("  +", line) for line in lines[:6]] == [
        ["laptop", "state", "for", "why", "battery", "address", "works on"],
        ["a", "ready", "2 h", "-", "80 %, plugged in", "10.9.9.9",
         "app.report 01234567, app.report 01234567 and 1 more"],
        ["b", "asleep", "3 d", "lid closed", "71 %, unplugged", "10.0.0.2", "-"],
        ["c", "lost", "20 d", "away for more than 14 days", "-", "10.0.0.3", "-"],
        ["new", "unknown", "-", "it never reported", "-", "10.0.0.4", "-"],
        ["stranger", "draining", "-", "on battery", "unplugged", "-", "-"],
    ]  # fmt: skip
    assert {line.index(" %") for line in lines[1:3]} == {lines[0].index("battery") + 2}
    assert lines[6:] == [
        "",
        f"c: lost: if it does not come back, revoke its credentials: {remove}=c -e lost=true",
        "new: it never reported: when it is on, run site.yml --limit new",
        "stranger: not a laptop of this inventory: name the right one with -i, or revoke what is left of it: "
        f"{remove}=stranger -e lost=true",
    ]


def test_when_all_is_well_there_is_nothing_to_do() -> None:
    screen = laptops({"a": ""}, {"now": NOW, "hosts": {"a": laptop("asleep"), "server1": SERVER}})
    assert len(screen.splitlines()) == 2
    assert "add-laptop.yml" in laptops({}, {"now": NOW, "hosts": {"server1": SERVER}})


def test_a_server_that_became_a_laptop() -> None:
    assert "was a server: run site.yml --limit a" in laptops({"a": ""}, {"now": NOW, "hosts": {"a": SERVER}})


def test_only_a_lost_laptop_is_missing() -> None:
    hosts = {
        "a": laptop("ready"), "b": laptop("asleep", 7200, why="lid closed"), "c": laptop("draining", why="on battery"),
        "d": laptop("lost", 15 * DAY), "e": laptop("asleep"), "server1": SERVER | {"state": "lost"},
        "server2": SERVER | {"state": "drained", "why": "new disk", "since": NOW - 7200},
    }  # fmt: skip
    assert fleet.absent({"now": NOW, "hosts": hosts}, ["a", "b", "c", "d", "server1"]) == {
        "b": ("asleep", "asleep: b for 2 h (lid closed)"),
        "c": ("draining", "draining: c for 1 min (on battery)"),
        "d": ("lost", f"missing: d is lost for 15 d: wake it, or {fleet.removal('d')}"),
        "server2": ("drained", f"drained: server2 for 2 h (new disk); back to work: {fleet.RETURN} -e host=server2"),
    }
    assert fleet.absent(None, ["a"]) == {}
