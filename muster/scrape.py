"""Whom Prometheus asks for figures: made from the port plan, in an order that stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from muster import inventory, ports


def jobs(
    hostvars: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]], table: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """A job for each line of the table that has figures, with its targets; a laptop that sleeps stays one."""
    entries = {name: entry for name, entry in ports.read_table(table).items() if entry.metrics}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in entries}
    for host in sorted(name for name, member in inventory.groups_of(groups).items() if "cluster" in member):
        plan = inventory.read_host(host, hostvars, groups, table)
        mine = ports.plan_host(table, plan)
        labels = {"host": host, "kind": "laptop" if "laptop" in plan.groups else "server"}
        for name in entries:
            if name == ports.RAY_NODE:
                for node in map(ports.RayNode.as_dict, mine.ray_nodes):
                    found[name].append(_target(plan.address, node["metrics_export"], {**labels, "node": node["name"]}))
            elif name in mine.services:
                found[name].append(_target(plan.address, entries[name].first, labels))
    return [{"name": name, "path": entry.metrics, "targets": found[name]} for name, entry in sorted(entries.items())]


def _target(address: str, port: int, labels: Mapping[str, str]) -> dict[str, Any]:
    host = f"[{address}]" if ":" in address else address
    return {"targets": [f"{host}:{port}"], "labels": dict(labels)}
