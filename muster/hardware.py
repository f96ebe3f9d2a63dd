"""The table of what the cluster is made of: the report that a hardware audit wants."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

COLUMNS = ("host", "class", "os", "arch", "cpus", "memory", "disk", "free", "gpus", "docker")


def row(host: str, groups: Collection[str], probe: Mapping[str, Any]) -> dict[str, str]:
    """One host as the table shows it."""
    gpus = Counter(str(gpu) for gpu in probe["gpus"])
    kinds = [name for name in ("server", "laptop", "builder") if name in groups]
    return {
        "host": host,
        "class": " ".join(kinds[:1]),
        "os": str(probe["os"]),
        "arch": str(probe["architecture"]),
        "cpus": str(probe["cpus"]),
        "memory": f"{probe['memory_mb'] / 1024:.1f}G",
        "disk": f"{probe['disk_gb']:.0f}G",
        "free": f"{probe['disk_free_gb']:.0f}G",
        "gpus": ", ".join(f"{number} x {name}" for name, number in gpus.items()) or "-",
        "docker": str(probe["docker"] or "-"),
    }


def merge(old: str, rows: Sequence[Mapping[str, str]], hosts: Sequence[str]) -> list[dict[str, str]]:
    """New rows over those of an earlier report, for a run that saw only some of the hosts."""
    try:
        found = {str(one["host"]): dict(one) for one in json.loads(old or "[]")}
    except (ValueError, TypeError, KeyError):
        found = {}
    found.update({one["host"]: dict(one) for one in rows})
    return [found[host] for host in dict.fromkeys(hosts) if host in found]


def lines(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The table for a terminal."""
    width = {name: max(len(name), *(len(one.get(name, "")) for one in rows)) if rows else 0 for name in COLUMNS}
    shown = [dict(zip(COLUMNS, COLUMNS, strict=True)), *rows]
    return ["  ".join(one.get(name, "").ljust(width[name]) for name in COLUMNS).rstrip() for one in shown]


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """The table as a page."""
    text = ["# Hardware", "", f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    text += [f"| {' | '.join(one.get(name, '') for name in COLUMNS)} |" for one in rows]
    return "\n".join(text) + "\n"
