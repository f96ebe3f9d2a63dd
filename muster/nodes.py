"""The screen of `muster nodes`: every host and every Ray node, as the head, Prometheus and the broker know them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from muster import fleet
from muster.figures import Figures
from muster.queues import BROKER_SILENT
from muster.status import HEAD_SILENT, size
from muster.tables import Screen

# Keys of the facts, and the names of the page's queries.
USED = {"cpu_used": "cpu", "memory_used": "memory", "disk_used": "disk", "object_store_used": "store"}
SHOWN_MESSAGE = 70


def facts(
    planned: Mapping[str, Any],
    ray: Mapping[str, Any] | None,
    answer: Sequence[Mapping[str, Any]] | None,
    celery: Mapping[str, Any] | None,
    now: float,
) -> dict[str, Any]:
    """planned: of muster.planned; ray: what `python -m ray_jobs.nodes` said; answer: of Prometheus; celery: what
    `python -m celery_app.status` said. Each is None when it did not answer."""
    # What is known of hosts without figures: the broker's word, or that Ray works there.
    known = {
        node["name"].partition("/")[0]: "ready" for node in (ray or {}).get("nodes", []) if node["state"] == "alive"
    }
    known |= {name: host["state"] for name, host in (celery or {}).get("hosts", {}).items()}
    hosts = _hosts(planned, None if answer is None else Figures(answer), known)
    states = {
        host["name"]: host["state"]
        for host in hosts
        if host["state"] != "ready" and (host["kind"] == "laptop" or host["state"] in fleet.DRAINED)
    }
    nodes = _nodes(planned, ray, states, now)
    notes = []
    if ray is None:
        notes.append(HEAD_SILENT)
    if answer is None:
        notes.append("Prometheus does not answer: there are no figures. See `docker compose logs` in prometheus.")
    if celery is None and planned["workers"]:
        notes.append(BROKER_SILENT)
    for node in nodes:
        if node["state"] == "missing":
            said = textwrap.shorten(node["message"], SHOWN_MESSAGE, placeholder=" ...")
            why = f"Ray says: {said}" if said else "Ray has not seen it"
            notes.append(f"missing: {node['name']}: {why}: run site.yml --tags ray --limit {node['host']}")
    notes += [f"not planned: {node['name']}: run site.yml --tags ray" for node in nodes if not node["planned"]]
    return {"hosts": hosts, "nodes": nodes, "notes": notes}


def _hosts(planned: Mapping[str, Any], figures: Figures | None, known: Mapping[str, str]) -> list[dict[str, Any]]:
    found = figures or Figures([])
    seen = {labels["host"]: labels for name in ("up", "state") for labels in found.labels(name)}
    said = {labels["host"]: labels["state"] for labels in found.labels("state")}
    up, battery, tasks = found.by("host", "up"), found.by("host", "battery"), found.by("host", "tasks")
    used = {key: found.by("host", name) for key, name in USED.items()}
    hosts = []
    for name in [*planned["nodes"], *sorted(set(seen) - set(planned["nodes"]))]:
        laptop = name in planned["laptops"] or seen.get(name, {}).get("kind") == "laptop"
        here = up.get(name) == 1
        # As the page decides it.
        if figures is None:
            state = known.get(name, "unknown")
        elif laptop:
            state = said.get(name, "ready" if here else "unknown")
        elif said.get(name) in fleet.DRAINED:
            state = said[name]
        else:
            state = "ready" if here else "down"
        hosts.append(
            {
                "name": name,
                "kind": "laptop" if laptop else "server",
                "state": state,
                "battery_percent": battery.get(name),
                **{key: values.get(name) if here else None for key, values in used.items()},
                "tasks": int(tasks[name]) if name in tasks else None,
            }
        )
    return hosts


def _nodes(
    planned: Mapping[str, Any], ray: Mapping[str, Any] | None, absent: Mapping[str, str], now: float
) -> list[dict[str, Any]]:
    # Ray remembers dead ones under the same name, and lists the oldest first; the last one counts.
    seen = ray["nodes"] if ray else []
    last = {node["name"]: node for node in seen}
    alive = {node["name"]: node for node in seen if node["state"] == "alive"}
    names = [f"{host}/{node}" for host, nodes in planned["nodes"].items() for node in nodes]
    result = []
    for name in [*names, *sorted(set(alive) - set(names))]:
        host, node = name.partition("/")[0], alive.get(name)
        state = "alive" if node else "unknown" if ray is None else absent.get(host, "missing")
        result.append(
            {
                "name": name,
                "host": host,
                "planned": name in names,
                "state": state,
                "cpus": node["cpus"] if node else None,
                "gpus": node["gpus"] if node else None,
                "memory_bytes": node["memory"] if node else None,
                "object_store_bytes": node["object_store"] if node else None,
                "alive_seconds": max(0.0, now - node["started"]) if node else None,
                "message": "" if node or name not in last else last[name]["message"],
            }
        )
    return result


def shown(facts: Mapping[str, Any]) -> Screen:
    """Hosts, then Ray nodes, then what to do."""
    hosts, nodes = facts["hosts"], facts["nodes"]
    ready = [host for host in hosts if host["state"] == "ready"]
    alive = [node for node in nodes if node["state"] == "alive"]
    machines = [("host", "kind", "state", "CPU", "memory", "disk", "objects", "tasks", "battery")]
    machines += [
        (
            host["name"],
            host["kind"],
            host["state"],
            *(_percent(host[key]) for key in USED),
            "-" if host["tasks"] is None else str(host["tasks"]),
            "-" if host["battery_percent"] is None else f"{host['battery_percent']:.0f} %",
        )
        for host in hosts
    ]
    rows = [("Ray node", "state", "CPUs", "GPUs", "memory", "objects", "for")]
    rows += [
        (
            node["name"],
            node["state"],
            *("-" if node[key] is None else f"{node[key]:g}" for key in ("cpus", "gpus")),
            *(size(node[key]) for key in ("memory_bytes", "object_store_bytes")),
            "-" if node["alive_seconds"] is None else fleet.span(node["alive_seconds"]),
        )
        for node in nodes
    ]
    first = f"{len(ready)} of {len(hosts)} hosts are ready, {len(alive)} of {len(nodes)} Ray nodes are alive"
    return [first, machines, rows, *facts["notes"]]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"
