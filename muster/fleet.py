"""The screen of `muster laptops`: how each one is, as the broker knows it. No laptop is asked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

MINUTE, HOUR, DAY = 60, 3600, 86_400
SHOWN_TASKS = 2


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


def columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows as lines with aligned columns."""
    table = [list(map(str, row)) for row in rows]
    widths = [max(len(row[index]) for row in table) for index in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def tasks(held: Sequence[Mapping[str, str]], most: int) -> str:
    """Names and the beginning of the ids of tasks; "-" for none."""
    named = [f"{task['task']} {task['id'][:8]}" for task in held]
    more = f" and {len(named) - most} more" if len(named) > most else ""
    return ", ".join(named[:most]) + more or "-"


def absent(celery: Mapping[str, Any] | None, names: Collection[str]) -> dict[str, tuple[str, str]]:
    """Laptops that take no work now: state and one line about each. Only a lost one is missing."""
    found = {}
    for name, host in (celery or {}).get("hosts", {}).items():
        if name not in names or host["kind"] != "laptop" or host["state"] == "ready":
            continue
        since = f" for {span(celery['now'] - host['since'])}" if celery and host["since"] is not None else ""
        why = f" ({host['why']})" if host["why"] else ""
        if host["state"] == "lost":
            line = f"missing: {name} is lost{since}{why}: wake it, or {removal(name)}"
        else:
            line = f"{host['state']}: {name}{since}{why}"
        found[name] = (host["state"], line)
    return found


def removal(name: str) -> str:
    """How one is removed that is gone for good."""
    return f"ansible-playbook remove-laptop.yml -e host={name} -e lost=true"


def laptops(planned: Mapping[str, str], seen: Mapping[str, Any]) -> str:
    """The screen. planned: address by name, from the inventory; seen: what `python -m celery_app.status` said."""
    now, hosts = float(seen["now"]), seen["hosts"]
    known = {name: host for name, host in hosts.items() if host["kind"] == "laptop"}
    names = [*planned, *sorted(set(known) - set(planned))]
    if not names:
        return "There are no laptops. Add one: ansible-playbook add-laptop.yml -e host=ADDRESS"
    rows: list[tuple[str, ...]] = [("laptop", "state", "for", "why", "battery", "address", "works on")]
    hints = []
    for name in names:
        host = known.get(name)
        if host is None:
            rows.append((name, "unknown", "-", "it never reported", "-", planned[name] or "-", "-"))
            if name in hosts:
                hints.append(f"{name}: it is a laptop here and was a server: run site.yml --limit {name}")
            else:
                hints.append(f"{name}: it never reported: when it is on, run site.yml --limit {name}")
            continue
        rows.append(
            (
                name,
                host["state"],
                span(now - host["since"]) if host["since"] is not None else "-",
                host["why"] or "-",
                power(host),
                host["address"] or planned.get(name) or "-",
                tasks(host["tasks"], SHOWN_TASKS),
            )
        )
        if name not in planned:
            hints.append(
                f"{name}: not a laptop of this inventory: name the right one with -i, or revoke what is left of it: "
                + removal(name)
            )
        elif host["state"] == "lost":
            hints.append(f"{name}: lost: if it does not come back, revoke its credentials: {removal(name)}")
    return "\n".join([*columns(rows), *([""] if hints else []), *hints])


def power(host: Mapping[str, Any]) -> str:
    """As in "80 %, plugged in"; of a laptop that is silent, as it last said."""
    level = f"{host['battery']:.0f} %" if host["battery"] is not None else ""
    mains = {True: "plugged in", False: "unplugged"}.get(host["plugged"], "")
    return ", ".join(part for part in (level, mains) if part) or "-"
