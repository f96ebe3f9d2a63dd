"""The screen of `muster laptops`: how each one is, as the broker knows it. No laptop is asked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from muster.tables import Screen

MINUTE, HOUR, DAY = 60, 3600, 86_400
SHOWN_TASKS = 2
# A server's, while somebody wants no work there.
DRAINED = ("draining", "drained")
RETURN = "ansible-playbook playbooks/undrain.yml"


def span(seconds: float) -> str:
    """How long something has lasted, with the two units that matter."""
    left = max(0, int(seconds))
    if left < MINUTE:
        return f"{left} s"
    parts = []
    for size, unit in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min")):
        if left >= size:
            parts.append(f"{left // size} {unit}")
            left %= size
        elif parts:
            break
    return " ".join(parts[:2])


def tasks(held: Sequence[Mapping[str, str]], most: int) -> str:
    """Names and the beginning of the ids of tasks; "-" for none."""
    named = [f"{task['task']} {task['id'][:8]}" for task in held]
    more = f" and {len(named) - most} more" if len(named) > most else ""
    return ", ".join(named[:most]) + more or "-"


def absent(celery: Mapping[str, Any] | None, laptops: Collection[str]) -> dict[str, tuple[str, str]]:
    """Laptops that take no work now, and drained servers: state and one line about each. Only a lost one is missing."""
    found = {}
    for name, host in (celery or {}).get("hosts", {}).items():
        guest = host["kind"] == "laptop" and name in laptops
        if host["state"] == "ready" or not (guest or host["state"] in DRAINED):
            continue
        since = f" for {span(celery['now'] - host['since'])}" if celery and host["since"] is not None else ""
        why = f" ({host['why']})" if host["why"] else ""
        if host["state"] == "lost":
            line = f"missing: {name} is lost{since}{why}: wake it, or {removal(name)}"
        elif host["state"] == "drained":
            line = f"drained: {name}{since}{why}; back to work: {RETURN} -e host={name}"
        else:
            line = f"{host['state']}: {name}{since}{why}"
        found[name] = (host["state"], line)
    return found


def removal(name: str) -> str:
    """How one is removed that is gone for good."""
    return f"ansible-playbook remove-laptop.yml -e host={name} -e lost=true"


def facts(planned: Mapping[str, str], seen: Mapping[str, Any]) -> dict[str, Any]:
    """planned: address by name, from the inventory; seen: what `python -m celery_app.status` said."""
    now, hosts = float(seen["now"]), seen["hosts"]
    known = {name: host for name, host in hosts.items() if host["kind"] == "laptop"}
    laptops, notes = [], []
    for name in [*planned, *sorted(set(known) - set(planned))]:
        host = known.get(name)
        since = host["since"] if host else None
        laptops.append(
            {
                "name": name,
                "state": host["state"] if host else "unknown",
                "for_seconds": None if since is None else max(0.0, now - since),
                "why": host["why"] if host else "it never reported",
                "battery_percent": host["battery"] if host else None,
                "plugged": host["plugged"] if host else None,
                "address": (host["address"] if host else "") or planned.get(name) or "",
                "tasks": [dict(task) for task in host["tasks"]] if host else [],
            }
        )
        if host is None and name in hosts:
            notes.append(f"{name}: it is a laptop here and was a server: run site.yml --limit {name}")
        elif host is None:
            notes.append(f"{name}: it never reported: when it is on, run site.yml --limit {name}")
        elif name not in planned:
            notes.append(
                f"{name}: not a laptop of this inventory: name the right one with -i, or revoke what is left of it: "
                + removal(name)
            )
        elif host["state"] == "lost":
            notes.append(f"{name}: lost: if it does not come back, revoke its credentials: {removal(name)}")
    return {"laptops": laptops, "notes": notes}


def shown(facts: Mapping[str, Any]) -> Screen:
    """A line for each, then what to do."""
    if not facts["laptops"]:
        return ["There are no laptops. Add one: ansible-playbook add-laptop.yml -e host=ADDRESS"]
    rows = [("laptop", "state", "for", "why", "battery", "address", "works on")]
    rows += [
        (
            laptop["name"],
            laptop["state"],
            "-" if laptop["for_seconds"] is None else span(laptop["for_seconds"]),
            laptop["why"] or "-",
            power(laptop),
            laptop["address"] or "-",
            tasks(laptop["tasks"], SHOWN_TASKS),
        )
        for laptop in facts["laptops"]
    ]
    return [rows, *facts["notes"]]


def power(laptop: Mapping[str, Any]) -> str:
    """As in "80 %, plugged in"; of a laptop that is silent, as it last said."""
    level = f"{laptop['battery_percent']:.0f} %" if laptop["battery_percent"] is not None else ""
    mains = {True: "plugged in", False: "unplugged"}.get(laptop["plugged"], "")
    return ", ".join(part for part in (level, mains) if part) or "-"
