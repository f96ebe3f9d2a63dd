"""What the inventory wants to run, and where: the names that the screens compare with what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from muster import celery_sizing, inventory
from muster.errors import MusterError


def planned(hostvars: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Ray nodes by host, laptops, and Celery workers, as far as somebody can be asked about them."""
    head, cluster = groups.get("ray_head"), groups.get("cluster", [])
    if not head:
        raise MusterError("no host is in the group ray_head", fix="name an inventory with -i, as in -i inventory/mine")
    plan = inventory.port_plan(hostvars, groups, hostvars[head[0]]["muster_ports"], cluster)
    return {
        "nodes": {host: [node["name"] for node in plan[host]["ray_nodes"]] for host in cluster},
        "laptops": list(groups.get("laptop", [])),
        "workers": [
            f"{host}/{worker['name']}"
            for host in (groups.get("celery_worker", []) if groups.get("celery_metrics") else [])
            # How large they are depends on the hosts; their names do not.
            for worker in celery_sizing.workers_of(hostvars, groups, host, 1)
        ],
    }
