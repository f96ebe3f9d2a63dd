"""What `muster alerts` shows."""

from typing import Any

from muster.alerts import facts, shown
from muster.tables import plain

NOW = "2026-11-22T12:00:00+00:00"


def alert(summary: str, severity: str, since: str) -> dict[str, Any]:
    return {
        "labels": {"alertname": "X", "severity": severity},
        "annotations": {"summary": summary, "fix": "mend it"},
        "activeAt": since,
        "state": "firing",
    }


def silence(state: str, **matchers: str) -> dict[str, Any]:
    return {
        "status": {"state": state}, "endsAt": "2026-11-22T13:30:00.000Z", "createdBy": "anna", "comment": "new disk",
        "matchers": [
            {"name": name, "value": value, "isRegex": False, "isEqual": True} for name, value in matchers.items()
        ],
    }  # fmt: skip


def alerts(firing: list[dict[str, Any]], silences: list[dict[str, Any]]) -> str:
    """The screen."""
    return plain(shown(facts(firing, silences, NOW)))


def test_nothing_wrong_is_one_line() -> None:
    assert alerts([], [silence("expired", host="old")]) == "No alerts"


def test_the_worst_comes_first_with_since_when_and_what_to_do() -> None:
    firing = [
        alert("the disk is nearly full", "warning", "2026-11-22T10:00:00.123456789Z"),
        alert("the head is down", "critical", "2026-11-22T11:59:15.5Z"),
    ]
    assert alerts(firing, [silence("active", host="server1", alertname="DiskFull")]).splitlines() == [
        "2 alerts",
        "",
        "critical: the head is down, for 44 s",
        "  What to do: mend it",
        "",
        "warning: the disk is nearly full, for 1 h 59 min",
        "  What to do: mend it",
        "",
        "silenced                          for         by    why",
        "host=server1, alertname=DiskFull  1 h 30 min  anna  new disk",
    ]
