"""One screen that says what runs where, and what is missing against the inventory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from muster import fleet
from muster.fleet import columns

GIB = 2**30
SHOWN_TASKS = 4
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


def status(
    planned: Mapping[str, Sequence[str]],
    hosts: Mapping[str, str | None],
    ray: Mapping[str, Any] | None,
    may_sleep: Sequence[str] = (),
    celery: Mapping[str, Any] | None = None,
    celery_planned: Sequence[str] = (),
) -> str:
    """The screen.

    planned: names of the Ray nodes of each host; hosts: what `docker ps` said there, None when it was not reached;
    ray: what `python -m ray_jobs.nodes` said, None when the head did not answer; celery: what
    `python -m celery_app.status` said; celery_planned: names of the workers that the inventory wants.
    """
    alive = {node["name"]: node for node in (ray or {}).get("nodes", []) if node["state"] == "alive"}
    absent = fleet.absent(celery, may_sleep)
    there = {host: containers(listing) for host, listing in hosts.items() if listing is not None}
    names = [f"{host}/{node}" for host, nodes in planned.items() for node in nodes]
    rows: list[Sequence[str]] = [COLUMNS]
    missing = []
    for name in names:
        host, node = name.split("/", 1)
        project = "ray_head" if node == "head" else "ray_worker"
        container = there.get(host, {}).get(f"{project}/{node}", {})
        state = "alive" if name in alive else absent[host][0] if host in absent else "missing"
        rows.append(_row(name, alive.get(name), container, state, reached=host in there))
        if name not in alive and host not in absent:
            missing.append(_reason(name, host, container, host in there, host in may_sleep, ray is not None))
    rows += [_row(name, alive[name], {}, "alive", reached=True) for name in sorted(set(alive) - set(names))]
    missing += [line for host, (_, line) in absent.items() if host in hosts]
    others = [
        (host, name, item["status"], item["image"])
        for host, items in there.items()
        for name, item in items.items()
        if not name.startswith(("ray_head/", "ray_worker/"))
    ]
    lines = [_summary(alive, names, ray), "", *columns(rows)]
    if others:
        lines += ["", *columns([("host", "other containers", "state", "image"), *others])]
    lines += [""] if missing or set(alive) - set(names) else []
    lines += missing
    lines += [f"not planned: {name}: run site.yml --tags ray" for name in sorted(set(alive) - set(names))]
    away = [host for host in hosts if hosts[host] is None and not planned.get(host) and host not in absent]
    lines += [f"away: {host}" for host in away]
    if celery is not None or celery_planned:
        lines += ["", *celery_lines(celery, celery_planned, absent)]
    return "\n".join(lines)


def celery_lines(
    celery: Mapping[str, Any] | None, planned: Sequence[str], absent: Mapping[str, tuple[str, str]]
) -> list[str]:
    """Queues, and who works on what."""
    if celery is None:
        return ["Celery's broker does not answer: see `docker compose logs` in celery_redis and celery_metrics."]
    queues, workers, dead = celery["queues"], celery["workers"], celery["dead"]
    waiting = sum(sum(lengths.values()) for lengths in queues.values())
    held = sum(len(worker["tasks"]) for worker in workers.values())
    lines = [f"Celery: {_tasks(waiting)} waiting, {held} with workers, {dead} dead letters"]
    if queues:
        priorities = list(next(iter(queues.values())))
        rows = [("queue", *priorities), *((name, *lengths.values()) for name, lengths in queues.items())]
        lines += ["", *columns(rows)]
    alive = {name for name, worker in workers.items() if (worker["lease"] or 0) > 0}
    names = [*planned, *sorted(set(workers) - set(planned))]
    if names:
        rows = [("worker", "state", "works on")]
        for name in names:
            host = name.split("/", 1)[0]
            state = "alive" if name in alive else "dead" if name in workers else "missing"
            state = absent[host][0] if host in absent else state
            rows.append((name, state, fleet.tasks(workers.get(name, {"tasks": []})["tasks"], SHOWN_TASKS)))
        lines += ["", *columns(rows)]
    for name in planned:
        host = name.split("/", 1)[0]
        if name not in alive and host not in absent:
            lines.append(f"missing: Celery worker {name}: run site.yml --tags celery --limit {host}")
    return lines


def _tasks(number: int) -> str:
    return "1 task is" if number == 1 else f"{number} tasks are"


def _summary(alive: Mapping[str, Any], names: Sequence[str], ray: Mapping[str, Any] | None) -> str:
    if ray is None:
        return "The head does not answer: see `docker compose logs` in ray_head on its host."
    nodes = alive.values()
    cpus, gpus = sum(node["cpus"] for node in nodes), sum(node["gpus"] for node in nodes)
    memory = sum(node["memory"] for node in nodes) / GIB
    objects = sum(node["object_store"] for node in nodes) / GIB
    return (
        f"Ray {ray['version']}: {len(set(names) & set(alive))} of {len(names)} planned nodes are alive; {cpus:g} CPUs, "
        + (f"{gpus:g} GPUs, " if gpus else "")
        + f"{memory:.1f} GiB for tasks, {objects:.1f} GiB for objects"
    )


def _row(
    name: str, node: Mapping[str, Any] | None, container: Mapping[str, str], state: str, *, reached: bool
) -> list[str]:
    sizes = ["-", "-", "-"]
    if node:
        sizes = [f"{node['cpus']:g}", f"{node['memory'] / GIB:.1f}G", f"{node['object_store'] / GIB:.1f}G"]
    unknown = "none" if reached else "host away"
    return [name, state, *sizes, container.get("status", unknown), container.get("image", "-")]


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
