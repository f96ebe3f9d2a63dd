"""A problem as the operator reads it: where, what, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from muster.errors import MusterError

INVENTORY = "inventory"
COMMAND_LINE = "-e"
SHOWN_HOSTS = 3


@dataclass(frozen=True)
class Problem:
    """One finding on one host, or on the inventory as a whole."""

    host: str
    problem: str
    fix: str

    @classmethod
    def of(cls, error: MusterError, host: str = INVENTORY) -> Problem:
        """What an exception says."""
        return cls(error.host or host, error.problem, error.fix)


def merged(problems: Iterable[Problem]) -> list[Problem]:
    """The same finding on many hosts becomes one line that names them."""
    hosts: dict[tuple[str, str], list[str]] = {}
    for found in problems:
        names = hosts.setdefault((found.problem, found.fix), [])
        if found.host not in names:
            names.append(found.host)
    return [Problem(_names(names), problem, fix) for (problem, fix), names in hosts.items()]


def report(problems: Iterable[Problem]) -> list[str]:
    """One line per problem."""
    return [f"{found.host}: {found.problem}. Fix: {found.fix}." for found in merged(problems)]


def meant(name: str, known: Iterable[str]) -> str:
    """The known name that somebody who wrote this one most likely meant."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.75)
    return close[0] if close else ""


def _names(hosts: list[str]) -> str:
    rest = len(hosts) - SHOWN_HOSTS
    if rest <= 1:
        return ", ".join(hosts)
    return f"{', '.join(hosts[:SHOWN_HOSTS])} and {rest} more"
