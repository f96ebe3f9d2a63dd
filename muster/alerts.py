"""The screen of `muster alerts`, from what Prometheus and Alertmanager say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from muster.fleet import span
from muster.tables import Rows, Screen

WORST = ("critical", "warning")


def facts(firing: Sequence[Mapping[str, Any]], silences: Sequence[Mapping[str, Any]], now: str) -> dict[str, Any]:
    """firing: alerts as Prometheus has them; silences: as Alertmanager has them; now: as text with a time zone."""
    moment = datetime.fromisoformat(now)
    alerts = [
        {
            "name": alert["labels"]["alertname"],
            "severity": alert["labels"].get("severity", "unknown"),
            "summary": alert["annotations"].get("summary", alert["labels"]["alertname"]),
            "fix": alert["annotations"].get("fix", ""),
            "since": alert["activeAt"],
            "for_seconds": (moment - datetime.fromisoformat(alert["activeAt"])).total_seconds(),
            "labels": dict(alert["labels"]),
        }
        for alert in sorted(firing, key=lambda one: (rank(one), one["activeAt"], str(one["labels"])))
    ]
    active = sorted((one for one in silences if one["status"]["state"] == "active"), key=lambda one: str(one["endsAt"]))
    return {
        "alerts": alerts,
        "silences": [
            {
                "matchers": [
                    {
                        "name": matcher["name"],
                        "value": matcher["value"],
                        "regex": matcher["isRegex"],
                        "equal": matcher.get("isEqual", True),
                    }
                    for matcher in one["matchers"]
                ],
                "until": one["endsAt"],
                "for_seconds": (datetime.fromisoformat(one["endsAt"]) - moment).total_seconds(),
                "by": one["createdBy"],
                "why": one["comment"],
            }
            for one in active
        ],
    }


def shown(facts: Mapping[str, Any]) -> Screen:
    """What is wrong, the worst first, since when and what to do; then who is silenced until when."""
    firing = facts["alerts"]
    screen: list[str | Rows] = [count(len(firing), "alert") if firing else "No alerts"]
    for alert in firing:
        screen += ["", f"{alert['severity']}: {alert['summary']}, for {span(alert['for_seconds'])}"]
        screen += [f"  What to do: {alert['fix']}"] if alert["fix"] else []
    rows = [("silenced", "for", "by", "why")]
    for one in facts["silences"]:
        who = ", ".join(f"{matcher['name']}{_sign(matcher)}{matcher['value']}" for matcher in one["matchers"])
        rows.append((who, span(one["for_seconds"]), one["by"], one["why"]))
    return [*screen, rows] if facts["silences"] else screen


def _sign(matcher: Mapping[str, Any]) -> str:
    """As Alertmanager writes it."""
    return {(False, True): "=", (False, False): "!=", (True, True): "=~", (True, False): "!~"}[
        matcher["regex"], matcher["equal"]
    ]


def rank(alert: Mapping[str, Any]) -> int:
    """The worst first; what says nothing of that is worse than it looks."""
    severity = alert["labels"].get("severity", "")
    return WORST.index(severity) if severity in WORST else 0


def count(number: int, what: str) -> str:
    """`1 alert`, `2 alerts`."""
    return f"{number} {what}{'' if number == 1 else 's'}"
