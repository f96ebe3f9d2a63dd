"""One screen that says what runs where, and what is missing against the inventory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from muster import fleet, queues
from muster.tables import Rows, Screen

GIB = 2**30
HEAD_SILENT = "The head does not answer: see `docker compose logs` in ray_head on its host."
COLUMNS = ("node", "ray", "cpus", "memory", "objects", "container", "image")


def containers(listing: str) -> dict[str, dict[str, str]]:
    """Containers of one host by `project/service`, from lines of `docker ps --format json`."""
    found = {}
    for line in listing.splitlines():
        item = json.loads(line)
        labels = dict(part.split("=", 1) for part in item.get("Labels", "").split(",") if "=" in part)
        project, service = labels.get("com.docker.compose.project"), labels.get("com.docker.compose.service")
        found[f"{project}/{service}" if project else item["Names"]] = {
            "status": item["Status"],
            "image": item["Image"].rsplit("/", 1)[-1],
        }
    return found


def facts(
    planned: Mapping[str, Any],
    hosts: Mapping[str, str | None],
    ray: Mapping[str, Any] | None,
    celery: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """planned: of muster.planned; hosts: what `docker ps` said there, None when it was not reached; ray: what
    `python -m ray_jobs.nodes` said, None when the head did not answer; celery: what `python -m celery_app.status` said.
    """
    alive = {node["name"]: node for node in (ray or {}).get("nodes", []) if node["state"] == "alive"}
    absent = fleet.absent(celery, planned["laptops"])
    there = {host: containers(listing) for host, listing in hosts.items() if listing is not None}
    names = [f"{host}/{node}" for host, nodes in planned["nodes"].items() for node in nodes]
    strangers = sorted(set(alive) - set(names))
    nodes, notes = [], []
    for name in names:
        host, node = name.split("/", 1)
        project = "ray_head" if node == "head" else "ray_worker"
        container = there.get(host, {}).get(f"{project}/{node}", {})
        state = "alive" if name in alive else absent[host][0] if host in absent else "missing"
        nodes.append(_node(name, alive.get(name), state, container, "none" if host in there else "host away"))
        if name not in alive and host not in absent:
            notes.append(_reason(name, host, container, host in there, host in planned["laptops"], ray is not None))
    nodes += [_node(name, alive[name], "alive", {}, "none") for name in strangers]
    notes += [line for host, (_, line) in absent.items() if host in hosts]
    notes += [f"not planned: {name}: run site.yml --tags ray" for name in strangers]
    away = [host for host in hosts if hosts[host] is None and not planned["nodes"].get(host) and host not in absent]
    notes += [f"away: {host}" for host in away]
    notes += skew(there)
    if celery is None and planned["workers"]:
        notes.append(queues.BROKER_SILENT)
    return {
        "ray": None if ray is None else _ray(ray["version"], names, alive),
        "nodes": nodes,
        "containers": [
            {"host": host, "name": name, "state": item["status"], "image": item["image"]}
            for host, items in there.items()
            for name, item in items.items()
            if not name.startswith(("ray_head/", "ray_worker/"))
        ],
        "notes": notes,
        "celery": None if celery is None else queues.facts(celery, planned),
    }


def skew(there: Mapping[str, Mapping[str, Mapping[str, str]]]) -> list[str]:
    """Hosts whose containers are of another build than the head's: nodes and clients of two Rays do not work together.

    Builds of different profiles (`ml-0123`, `core-4567`) cannot be compared; the first to come stands for its own.
    """
    images = {
        (host, name): item["image"]
        for host, items in there.items()
        for name, item in items.items()
        if item["image"].startswith("node:")
    }
    heads = [image for (_, name), image in images.items() if name == "ray_head/head"]
    first: dict[str, str] = {}
    for image in [*heads, *images.values()]:
        first.setdefault(image.rpartition("-")[0], image)
    other: dict[tuple[str, str, str], list[str]] = {}
    for (host, name), image in images.items():
        if image != (wanted := first[image.rpartition("-")[0]]):
            other.setdefault((host, image, wanted), []).append(name)
    return [
        f"skew: {host}: {', '.join(sorted(names))} run {image}, others {wanted}: run playbooks/upgrade.yml"
        for (host, image, wanted), names in other.items()
    ]


def shown(facts: Mapping[str, Any]) -> Screen:
    """Ray nodes, other containers, what is missing, and Celery."""
    rows = [COLUMNS]
    for node in facts["nodes"]:
        cpus = "-" if node["cpus"] is None else f"{node['cpus']:g}"
        sizes = (size(node["memory_bytes"]), size(node["object_store_bytes"]))
        rows.append((node["name"], node["state"], cpus, *sizes, node["container"], node["image"] or "-"))
    screen: list[str | Rows] = [_summary(facts["ray"]), rows]
    if facts["containers"]:
        others = [tuple(item[key] for key in ("host", "name", "state", "image")) for item in facts["containers"]]
        screen.append([("host", "other containers", "state", "image"), *others])
    screen += facts["notes"]
    if facts["celery"]:
        screen += ["", *queues.short(facts["celery"])]
    return screen


def size(number: float | None) -> str:
    """Bytes, for people."""
    return "-" if number is None else f"{number / GIB:.1f}G"


def _ray(version: str, names: Sequence[str], alive: Mapping[str, Any]) -> dict[str, Any]:
    nodes = alive.values()
    return {
        "version": version,
        "planned": len(names),
        "alive": len(set(names) & set(alive)),
        "cpus": sum(node["cpus"] for node in nodes),
        "gpus": sum(node["gpus"] for node in nodes),
        "memory_bytes": sum(node["memory"] for node in nodes),
        "object_store_bytes": sum(node["object_store"] for node in nodes),
    }


def _summary(ray: Mapping[str, Any] | None) -> str:
    if ray is None:
        return HEAD_SILENT
    return (
        f"Ray {ray['version']}: {ray['alive']} of {ray['planned']} planned nodes are alive; {ray['cpus']:g} CPUs, "
        + (f"{ray['gpus']:g} GPUs, " if ray["gpus"] else "")
        + f"{ray['memory_bytes'] / GIB:.1f} GiB for tasks, {ray['object_store_bytes'] / GIB:.1f} GiB for objects"
    )


def _node(
    name: str, node: Mapping[str, Any] | None, state: str, container: Mapping[str, str], unknown: str
) -> dict[str, Any]:
    return {
        "name": name,
        "host": name.partition("/")[0],
        "state": state,
        "cpus": node["cpus"] if node else None,
        "memory_bytes": node["memory"] if node else None,
        "object_store_bytes": node["object_store"] if node else None,
        "container": container.get("status", unknown),
        "image": container.get("image"),
    }


def _reason(
    name: str, host: str, container: Mapping[str, str], reached: bool, may_sleep: bool, head_answers: bool
) -> str:
    if not reached:
        return f"missing: {name}: {host} does not answer" + (", as laptops do" if may_sleep else " to SSH")
    if not container:
        return f"missing: {name}: it has no container: run site.yml --tags ray --limit {host}"
    if not head_answers:
        return f"missing: {name}: its container says {container['status']}, the head says nothing"
    return f"missing: {name}: its container says {container['status']}: see `docker compose logs` on {host}"
