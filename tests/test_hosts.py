"""The state machine of hosts, as a table, and what holds for every report."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_app import hosts
from celery_app.hosts import DAY, Report, Verdict

NOW = 1_800_000_000.0
SILENT = "it works, but its agent is silent: systemctl status muster-laptop"


def said(state: Any, ago: float, why: str = "as said", since: float = 100) -> Report:
    return Report(state, why, NOW - ago - since, NOW - ago)


@pytest.mark.parametrize(
    ("report", "leases", "expected"),
    [
        (said("ready", 0), [], Verdict("ready", "as said", NOW - 100)),
        (said("ready", 29), [], Verdict("ready", "as said", NOW - 129)),
        (said("draining", 29, "on battery"), [], Verdict("draining", "on battery", NOW - 129)),
        (said("asleep", 5, "lid closed"), [], Verdict("asleep", "lid closed", NOW - 105)),
        # The lease of a worker outlasts the lid by some seconds.
        (said("asleep", 5, "lid closed"), [NOW + 20], Verdict("asleep", "lid closed", NOW - 105)),
        (said("asleep", 40, "lid closed"), [NOW + 20], Verdict("asleep", "lid closed", NOW - 140)),
        # A battery that died, with no word.
        (said("ready", 30), [], Verdict("asleep", "silent", NOW - 30)),
        (said("ready", 30), [NOW - 1], Verdict("asleep", "silent", NOW - 30)),
        (said("draining", 31, "on battery"), [], Verdict("asleep", "silent", NOW - 31)),
        # The agent died, the worker lives.
        (said("ready", 300), [NOW - 1, NOW + 20], Verdict("ready", SILENT, NOW - 400)),
        (said("draining", 300), [NOW + 20], Verdict("draining", SILENT, NOW - 400)),
        (said("ready", 13.9 * DAY), [], Verdict("asleep", "silent", NOW - 13.9 * DAY)),
        (said("ready", 14 * DAY), [], Verdict("lost", "away for more than 14 days", NOW - 14 * DAY)),
        (said("asleep", 14 * DAY), [], Verdict("lost", "away for more than 14 days", NOW - 14 * DAY - 100)),
        (None, [NOW + 20], Verdict("ready", SILENT.replace("is silent", "has said nothing"), None)),
        (None, [], Verdict("lost", "its agent never said anything that can be read", None)),
    ],
)
def test_laptops(report: Report | None, leases: list[float], expected: Verdict) -> None:
    assert hosts.laptop(report, leases, NOW) == expected


@pytest.mark.parametrize(
    ("heard", "leases", "expected"),
    [
        (NOW, [NOW + 30], Verdict("ready", "", None)),
        # A lease that is longer than a server's patience, and one of several workers.
        (NOW - 200, [NOW - 1, NOW + 100], Verdict("ready", "", None)),
        (NOW - 45, [NOW - 15], Verdict("ready", "its workers are silent for 45 s", None)),
        (NOW - 60, [NOW - 30], Verdict("lost", "none of its workers has a lease", NOW - 60)),
        (NOW - 60, [], Verdict("lost", "none of its workers has a lease", NOW - 60)),
        (None, [], Verdict("lost", "none of its workers has a lease", None)),
    ],
)
def test_servers(heard: float | None, leases: list[float], expected: Verdict) -> None:
    assert hosts.server(heard, leases, NOW) == expected


times = st.floats(0, 40 * DAY)


@given(st.sampled_from(["ready", "draining", "asleep"]), times, times)
def test_silence_only_makes_it_worse_and_a_report_heals(state: Any, first: float, more: float) -> None:
    report = said(state, 0)

    def rank(seconds: float) -> int:
        return hosts.STATES.index(hosts.laptop(report, [], NOW + seconds).state)

    assert rank(0) <= rank(first) <= rank(first + more)
    later = NOW + first + more
    assert hosts.laptop(Report(state, "", later, later), [], later).state == state


@given(times, times)
def test_a_silent_server_is_never_asleep_and_never_better(first: float, more: float) -> None:
    seen = [hosts.server(NOW, [NOW + 30], NOW + seconds).state for seconds in (0, first, first + more)]
    assert set(seen) <= {"ready", "lost"}
    assert seen == sorted(seen, key=hosts.STATES.index)


GOOD = {"state": "draining", "why": "on battery", "since": NOW - 60, "at": NOW - 3, "battery": 71.5, "plugged": False,
        "lid": "open", "address": "10.0.0.85"}  # fmt: skip


def test_a_report_is_read() -> None:
    expected = Report("draining", "on battery", NOW - 60, NOW - 3, 71.5, False, "open", "10.0.0.85")
    assert hosts.parse(json.dumps(GOOD), NOW) == expected
    bare = json.dumps({"state": "ready", "at": NOW})
    assert hosts.parse(bare, NOW) == Report("ready", "", NOW, NOW)


@pytest.mark.parametrize(
    "text",
    [
        "", "no json", "[]", "null", "1e999", "[" * 100_000,
        *(json.dumps({**GOOD, **bad}) for bad in (
            {"state": "lost"}, {"state": "broken"}, {"state": ["ready"]}, {"state": None}, {"at": None},
            {"at": "now"}, {"at": True}, {"at": float("nan")}, {"at": float("inf")}, {"at": NOW + 31}, {"at": -1},
            {"at": 10**400},
        )),
    ],
)  # fmt: skip
def test_what_is_no_report_is_none(text: str) -> None:
    assert hosts.parse(text, NOW) is None


@given(
    st.dictionaries(
        st.sampled_from(sorted(GOOD)),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=2),
    )
)
def test_whatever_a_report_says_something_sane_is_made_of_it(changes: dict[str, Any]) -> None:
    found = hosts.described({"x": json.dumps({**GOOD, **changes})}, {}, {}, NOW)["x"]
    assert found["state"] in hosts.STATES
    assert found["battery"] is None or 0 <= found["battery"] <= 100
    assert found["since"] is None or 0 <= found["since"] <= NOW + 30
    assert found["lid"] in (None, "open", "closed") and found["plugged"] in (None, True, False)
    for text in (found["why"], found["address"]):
        assert len(text) <= 200 and (text.isprintable() or not text)


def test_hosts_are_told_apart() -> None:
    reports = {"laptop1": json.dumps(GOOD), "laptop2": "garbage", "both": json.dumps(GOOD)}
    heard = {"server1": NOW - 5, "server2": NOW - 70, "both": NOW - 5, "old": NOW - 15 * DAY}
    leases = {
        "server1/a": NOW + 20, "server1/b": NOW - 5, "laptop1/a": NOW + 20, "new/a": NOW + 20, "removed/a": NOW - 20,
    }  # fmt: skip
    found = hosts.described(reports, heard, leases, NOW)
    assert {name: (host["kind"], host["state"]) for name, host in found.items()} == {
        "both": ("laptop", "draining"),
        "laptop1": ("laptop", "draining"),
        "laptop2": ("laptop", "lost"),
        "new": ("laptop", "ready"),
        "server1": ("server", "ready"),
        "server2": ("server", "lost"),
    }
    assert (found["server2"]["heard"], found["laptop1"]["heard"], found["new"]["heard"]) == (NOW - 70, NOW - 3, None)


def test_a_drained_server_is_not_lost() -> None:
    mark = json.dumps({"at": NOW - 3600, "why": "new\ndisk"})
    marks = {"server1": mark, "server2": mark, "off": mark, "odd": "[1]", "laptop1": mark}
    heard = {"server1": NOW - 5, "server2": NOW - 3000, "server3": NOW - 3000}
    found = hosts.described(
        {"laptop1": json.dumps(GOOD)}, heard, {"server1/a": NOW + 20, "server2/a": NOW - 20}, NOW, marks
    )
    assert {name: (host["state"], host["why"], host["since"]) for name, host in found.items()} == {
        "laptop1": ("draining", "on battery", NOW - 60),
        "odd": ("drained", "", None),
        "off": ("drained", "new disk", NOW - 3600),
        "server1": ("draining", "new disk", NOW - 3600),
        "server2": ("drained", "new disk", NOW - 3600),
        "server3": ("lost", "none of its workers has a lease", NOW - 3000),
    }
