"""The port plan as a table: what `muster plan` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from muster import inventory, ports
from muster.load import load_inventory

LOOPBACK = "the host itself"


def plan_lines(sources: Sequence[str]) -> list[str]:
    """One line per port or range, host by host."""
    rows = [("HOST", "PORTS", "WHAT", "FROM"), *_rows(sources)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return ["  ".join([*(text.ljust(size) for text, size in zip(row, widths, strict=False)), row[3]]) for row in rows]


def _rows(sources: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
    hostvars, groups = load_inventory(sources)
    peers = inventory.read_peers(hostvars, groups)
    for name in dict.fromkeys([*groups.get("cluster", []), *groups.get("builder", [])]):
        table = hostvars[name]["muster_ports"]
        host = inventory.read_host(name, hostvars, groups, table)
        planned = ports.plan_host(table, host)
        for entry in planned.services.values():
            allowed = ports.sources(entry, host, peers)
            yield name, ports.as_ports(entry.first, entry.last), entry.name, _who(allowed)
        for node in planned.ray_nodes:
            ray = ports.read_table(table)[ports.RAY_NODE]
            allowed = ports.sources(ray, host, peers)
            yield name, ports.as_ports(node.first, node.last), f"Ray node {node.name}", _who(allowed)


def _who(allowed: Sequence[str]) -> str:
    return ", ".join(allowed) or LOOPBACK
