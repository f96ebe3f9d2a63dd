"""The state of a host, from what was last heard of it. No I/O, and the one table of times.

A laptop says itself how it is (its agent writes to LAPTOPS); silence is sleep, as long as nobody gives it up. A server
says nothing but renews its workers' leases (which write to SERVERS); silence is a failure, unless somebody drained it
(playbooks/drain.yml writes to DRAINED). Times are Redis' own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

# Hash: a laptop's name and its report. Sorted set: a server's name and when one of its leases was last renewed. Hash: a
# server's name, since when it is drained and why.
LAPTOPS, SERVERS, DRAINED = "muster:laptops", "muster:servers", "muster:drained"
State = Literal["ready", "draining", "drained", "asleep", "lost"]
Kind = Literal["laptop", "server"]
# From good to bad.
STATES: tuple[State, ...] = ("ready", "draining", "drained", "asleep", "lost")
DAY = 86_400.0
LONGEST_TEXT = 200
NOTHING: Mapping[str, str] = {}


@dataclass(frozen=True)
class Patience:
    """Seconds of silence after which a host counts as asleep, and as lost."""

    asleep: float
    lost: float


PATIENCE: dict[Kind, Patience] = {
    "laptop": Patience(asleep=30, lost=14 * DAY),
    # It does not sleep.
    "server": Patience(asleep=math.inf, lost=60),
}
# A server that nobody has missed for so long was taken away; what the inventory still names is missed elsewhere.
SERVER_FORGOTTEN = 14 * DAY


@dataclass(frozen=True)
class Report:
    """What a laptop last said."""

    state: State
    why: str
    since: float
    at: float
    battery: float | None = None
    plugged: bool | None = None
    lid: str | None = None
    address: str = ""


@dataclass(frozen=True)
class Verdict:
    """How a host is, why, and since when; one that is silent, since it was last heard."""

    state: State
    why: str
    since: float | None


def parse(text: str, now: float) -> Report | None:
    """A report as the agent writes it; None for anything else, since every login of the app may write there."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("state") not in ("ready", "draining", "asleep"):
        return None
    at, since, battery = _number(found.get("at")), _number(found.get("since")), _number(found.get("battery"))
    # From the future it would never grow old. Redis' clock may be set back, by little.
    if at is None or not 0 <= at <= now + PATIENCE["laptop"].asleep:
        return None
    return Report(
        state=found["state"],
        why=plain(found.get("why")),
        since=since if since is not None and 0 <= since <= at else at,
        at=at,
        battery=battery if battery is not None and 0 <= battery <= 100 else None,
        plugged=found.get("plugged") if isinstance(found.get("plugged"), bool) else None,
        lid=found["lid"] if found.get("lid") in ("open", "closed") else None,
        address=plain(found.get("address")),
    )


def plain(value: object) -> str:
    """Text of others, as one short line without control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in str(value or "")[:LONGEST_TEXT]).strip()


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def laptop(report: Report | None, leases: Collection[float], now: float) -> Verdict:
    """A laptop's state. `leases` are until when its workers' are good: one that works is not asleep."""
    works = any(until > now for until in leases)
    patience = PATIENCE["laptop"]
    if report is None:
        if works:
            return Verdict("ready", "it works, but its agent has said nothing: systemctl status muster-laptop", None)
        return Verdict("lost", "its agent never said anything that can be read", None)
    silent = now - report.at
    if silent < patience.asleep:
        return Verdict(report.state, report.why, report.since)
    if works and report.state != "asleep":
        return Verdict(report.state, "it works, but its agent is silent: systemctl status muster-laptop", report.since)
    # It went to sleep when it said so, or when it was heard for the last time.
    since = report.since if report.state == "asleep" else report.at
    if now - since >= patience.lost:
        return Verdict("lost", f"away for more than {patience.lost / DAY:.0f} days", since)
    return Verdict("asleep", report.why if report.state == "asleep" else "silent", since)


def server(heard: float | None, leases: Collection[float], now: float, mark: str | None = None) -> Verdict:
    """A server's state; `heard` is when one of its leases was last renewed, `mark` what was said of its drain."""
    works = any(until > now for until in leases)
    if mark is not None:
        since, why = drained(mark)
        return Verdict("draining" if works else "drained", why, since)
    if works:
        return Verdict("ready", "", None)
    if heard is not None and now - heard < PATIENCE["server"].lost:
        return Verdict("ready", f"its workers are silent for {max(0.0, now - heard):.0f} s", None)
    return Verdict("lost", "none of its workers has a lease", heard)


def drained(mark: str) -> tuple[float | None, str]:
    """Since when, and why; every login of the app may write there."""
    try:
        found = json.loads(mark)
        return _number(found.get("at")), plain(found.get("why"))
    except (ValueError, RecursionError, AttributeError):
        return None, ""


def described(
    reports: dict[str, str],
    heard: dict[str, float],
    leases: dict[str, float],
    now: float,
    marks: Mapping[str, str] = NOTHING,
) -> dict[str, dict[str, Any]]:
    """All hosts that are heard of: by name their kind, state, and what a laptop says of itself.

    `leases` are of workers ("host/name"), `marks` of servers that somebody drained. A worker without a lease and a
    renewal of its own makes no host: a laptop that was removed leaves nothing behind that could be lost.
    """
    of_host: dict[str, list[float]] = {}
    for worker, until in leases.items():
        of_host.setdefault(worker.partition("/")[0], []).append(until)
    servers = {host for host, at in heard.items() if now - at < SERVER_FORGOTTEN} | set(marks)
    servers -= set(reports)
    others = {host for host, untils in of_host.items() if any(until > now for until in untils)}
    found = {}
    for host in sorted(servers | set(reports) | others):
        kind: Kind = "server" if host in servers else "laptop"
        report = parse(reports[host], now) if host in reports else None
        mine = of_host.get(host, [])
        verdict = server(heard.get(host), mine, now, marks.get(host)) if kind == "server" else laptop(report, mine, now)
        found[host] = {
            "kind": kind,
            "state": verdict.state,
            "why": verdict.why,
            "since": verdict.since,
            "heard": heard.get(host) if kind == "server" else report.at if report else None,
            "battery": report.battery if report else None,
            "plugged": report.plugged if report else None,
            "lid": report.lid if report else None,
            "address": report.address if report else "",
        }
    return found
