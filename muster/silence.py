"""What playbooks/silence.yml is told, judged before anything is changed, and what Alertmanager is asked for then."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypedDict

from muster.errors import MusterError
from muster.expressions import RULES, of_rules
from muster.known import ROOT
from muster.laptops import arguments, owned
from muster.problems import meant

ARGUMENTS = ("host", "alert", "hours", "why")
HOURS, MOST_HOURS = "2", 30 * 24
HostVars = Mapping[str, Mapping[str, Any]]
Groups = Mapping[str, Sequence[str]]


class Silence(TypedDict):
    """Which alerts send no messages, and for how long; no hours at all end it."""

    about: str
    matchers: list[dict[str, Any]]
    hours: float
    why: str


def silence(
    given: Mapping[str, Any], extra: Collection[str], known: Collection[str], hostvars: HostVars, groups: Groups
) -> Silence:
    """The silence that is meant; every mistake is one line that says what to do."""
    words = arguments(given, extra, known, ARGUMENTS)
    host, alert = words.get("host", ""), words.get("alert", "")
    if not host and not alert:
        raise MusterError("nobody is named", fix="add -e host=server1, or -e alert=DiskFull, or both")
    if not groups.get("alertmanager"):
        raise MusterError("nobody sends messages: the group alertmanager is empty", fix="put a host into alertmanager")
    host = member(host, hostvars, groups) if host else ""
    if alert and alert not in (names := alert_names()):
        close = meant(alert, names)
        fix = f"write {close}" if close else "give one of those"
        raise MusterError(f"there is no alert {alert} in {RULES}/*.yml", fix=fix)
    labels = {name: value for name, value in (("alertname", alert), ("host", host)) if value}
    return Silence(
        about=" on ".join(labels.values()),
        matchers=[{"name": name, "value": labels[name], "isRegex": False, "isEqual": True} for name in labels],
        hours=_hours(words.get("hours", HOURS)),
        why=words.get("why", "maintenance"),
    )


def calls(wanted: Silence, there: Sequence[Mapping[str, Any]], now: str, who: str) -> list[dict[str, Any]]:
    """What brings Alertmanager there: the silence that means the same gets its new end; there is one, or none."""
    same = [one for one in there if one["status"]["state"] == "active" and _means(one) == _means(wanted)]
    body: dict[str, Any] = {}
    if wanted["hours"]:
        moment = datetime.fromisoformat(now)
        # One that goes on must keep its beginning, or Alertmanager makes a second.
        body = {"startsAt": now, **{name: one[name] for one in same[:1] for name in ("id", "startsAt")}}
        body["endsAt"] = (moment + timedelta(hours=wanted["hours"])).isoformat(timespec="seconds")
        body |= {"matchers": wanted["matchers"], "createdBy": who, "comment": wanted["why"]}
    found = [{"method": "POST", "path": "silences", "body": body}] if body else []
    return found + [{"method": "DELETE", "path": f"silence/{one['id']}"} for one in same[1 if body else 0 :]]


def alert_names(root: Path = ROOT) -> list[str]:
    """Every alert that Prometheus knows."""
    return [one.place.removeprefix("alert ") for one in of_rules(root) if one.is_alert]


def member(host: str, hostvars: HostVars, groups: Groups) -> str:
    """A host's name, by its name or its address."""
    names = groups.get("cluster", ())
    if host in names:
        return host
    owners = [name for name in names if owned(name, hostvars) == host]
    if not owners:
        close = meant(host, names)
        fix = f"write {close}" if close else "give its name, as in -e host=server1"
        raise MusterError(f"the inventory has no host {host}", fix=fix)
    return owners[0]


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = -1
    # What is no number at all, as nan, is not within either.
    if not 0 <= hours <= MOST_HOURS:
        raise MusterError(
            f"hours is {text!r}", fix=f"give a number from 0 to {MOST_HOURS}, as in -e hours=2; 0 ends it"
        )
    return hours


def _means(one: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """What it is about, whatever the order; one without isEqual is from a time when there was nothing else."""
    return sorted((each["name"], each["value"], each["isRegex"], each.get("isEqual", True)) for each in one["matchers"])
