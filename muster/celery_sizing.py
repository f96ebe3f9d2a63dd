"""How large each Celery worker of a host is, and what all of Celery takes of the host's memory."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypedDict

from muster import inventory, sizing
from muster.errors import MusterError

MIB = sizing.MIB
KEYS = ("queues", "concurrency", "prefetch", "memory", "child_memory")
QUEUE = re.compile(r"[a-z][a-z0-9_]*")
# Served where nothing is said. Tasks of `ml` watch jobs of Ray, so they are kept apart from those that work themselves.
LOCAL, ON_RAY, RAY_QUEUE = ["default", "data"], ["ml"], "ml"
# The worker's main process and its supervisor.
OVERHEAD = 256 * MIB
CHILD = 256 * MIB
SMALLEST_CHILD = 64 * MIB
ON_RAY_CONCURRENCY = 2
MOST_BY_DEFAULT = 8
# A rewrite of Redis' log may copy all that it holds.
REDIS_COPIES, REDIS_OVERHEAD = 2, 64 * MIB
# Beside it in roles/celery_redis/templates/compose.yml.j2.
REDIS_EXPORTER = 64 * MIB

# The small services, and how many processes of its size each is.
SERVICES = {
    "celery_beat": 1,
    "celery_metrics": 1,
    "flower": 1,
    "prometheus": 1,
    "alertmanager": 1,
    "node_exporter": 1,
    "gateway": 2,
    "grafana": 1,
    "storage_server": 1,
    "mlflow": 1,
}


class CeleryWorker(TypedDict):
    """One Celery worker container; sizes in bytes."""

    name: str
    queues: list[str]
    concurrency: int
    prefetch: int
    memory: int
    child_memory: int


def celery_workers(
    spec: object, *, host_cpus: object, ray: object, guest: bool = False, host: str = ""
) -> list[CeleryWorker]:
    """The workers of one host. Nothing given: one for what it does itself, and on Ray's head one for what Ray does.

    A guest, a laptop, gives one process to each worker unless it says otherwise.
    """
    cpus = sizing.parse_count(host_cpus, what="the host's CPUs", host=host)
    entries = enumerate(_entries(spec, ray, host), start=1)
    processes = 1 if guest else min(max(cpus // 2, 2), MOST_BY_DEFAULT)
    workers = [_worker(number, entry, processes, host) for number, entry in entries]
    names = [worker["name"] for worker in workers]
    for name in names:
        if names.count(name) > 1:
            raise MusterError(
                f"celery_workers has the queues {name.replace('-', ', ')} twice",
                fix="give one entry more concurrency instead",
                host=host,
            )
    return workers


def workers_of(
    hostvars: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]], host: str, cpus: object
) -> list[CeleryWorker]:
    """The workers that a host of so many CPUs runs by its inventory."""
    member = inventory.groups_of(groups).get(host, frozenset())
    if "celery_worker" not in member:
        return []
    variables = hostvars[host]
    spec = inventory.value(variables, "celery_workers")
    guest = "laptop" in member
    return celery_workers(spec, host_cpus=cpus, ray=serves_ray(variables, member), guest=guest, host=host)


def reserve_of(
    hostvars: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]], host: str, cpus: object
) -> list[int]:
    """What a host keeps for Celery, by its inventory."""
    return celery_reserve(hostvars[host], inventory.groups_of(groups).get(host, frozenset()), cpus, host)


def celery_reserve(variables: Mapping[str, Any], groups: Collection[str], cpus: object, host: str = "") -> list[int]:
    """Bytes that Celery and the small services take of a host, so that Ray's workers leave them alone."""
    taken: list[int] = []
    if "celery_redis" in groups:
        taken.append(redis_limit(inventory.value(variables, "celery_redis_memory", 0), host=host) + REDIS_EXPORTER)
    if "celery_worker" in groups:
        workers = celery_workers(
            inventory.value(variables, "celery_workers"),
            host_cpus=cpus,
            ray=serves_ray(variables, groups),
            guest="laptop" in groups,
            host=host,
        )
        taken += [worker["memory"] for worker in workers]
    for group, processes in SERVICES.items():
        if group in groups:
            name = f"{group}_memory"
            size = sizing.parse_memory(inventory.value(variables, name, 0), what=name, host=host)
            taken.append(size * processes)
    return taken


def redis_limit(memory: object, *, host: str = "") -> int:
    """What the broker's container may use, for so much of data."""
    return sizing.parse_memory(memory, what="celery_redis_memory", host=host) * REDIS_COPIES + REDIS_OVERHEAD


def serves_ray(variables: Mapping[str, Any], groups: Collection[str]) -> bool:
    """Whether the host's workers take tasks that are jobs of Ray: its Jobs API is on the head's loopback only."""
    return "ray_head" in groups and inventory.is_true(inventory.value(variables, "celery_ray", True))


def ray_node(variables: Mapping[str, Any], groups: Collection[str], host: str = "") -> str:
    """The Ray node of the host that its Celery workers use as theirs; nothing when there is none."""
    if not inventory.is_true(inventory.value(variables, "celery_ray", True)):
        return ""
    if "ray_worker" in groups and sizing.count(inventory.worker_spec(variables, groups), host=host) > 0:
        return "worker-1"
    return "head" if "ray_head" in groups else ""


def ray_node_of(hostvars: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]], host: str) -> str:
    """The same, by the inventory."""
    return ray_node(hostvars[host], inventory.groups_of(groups).get(host, frozenset()), host)


def _entries(spec: object, ray: object, host: str) -> list[Mapping[str, Any]]:
    if spec is None or spec == "":
        local: Mapping[str, Any] = {"queues": LOCAL}
        return [local, {"queues": ON_RAY}] if inventory.is_true(ray) else [local]
    if isinstance(spec, str) or not isinstance(spec, Sequence):
        raise MusterError(
            f"celery_workers is {spec!r}, which is no list",
            fix="write a list of {queues: [default, data], concurrency: 4}, or [] for none",
            host=host,
        )
    for number, entry in enumerate(spec, start=1):
        wrong = entry if not isinstance(entry, Mapping) else ", ".join(sorted(set(map(str, entry)) - set(KEYS)))
        if wrong or not isinstance(entry, Mapping):
            raise MusterError(
                f"celery_workers entry {number} has {wrong!r}, which nobody knows",
                fix=f"use {', '.join(KEYS)}",
                host=host,
            )
    return list(spec)


def _worker(number: int, entry: Mapping[str, Any], processes: int, host: str) -> CeleryWorker:
    def wrong(problem: str, fix: str) -> MusterError:
        return MusterError(f"celery_workers entry {number}: {problem}", fix=fix, host=host)

    queues = entry.get("queues") or []
    queues = [part.strip() for part in queues.split(",")] if isinstance(queues, str) else [str(part) for part in queues]
    for queue in queues or [""]:
        if not QUEUE.fullmatch(queue):
            raise wrong(f"{queue!r} is no queue" if queue else "it has no queues", "write queues: [default, data]")
    if len(set(queues)) < len(queues):
        raise wrong(f"a queue is named twice: {', '.join(queues)}", "name each queue once")
    usual = ON_RAY_CONCURRENCY if queues == ON_RAY else processes
    concurrency = sizing.parse_count(inventory.value(entry, "concurrency", usual), what="concurrency", host=host)
    prefetch = sizing.parse_count(inventory.value(entry, "prefetch", 1), what="prefetch", host=host)
    if concurrency < 1 or prefetch < 1:
        raise wrong(f"concurrency is {concurrency}, prefetch is {prefetch}", "give 1 or more; an entry less means none")
    memory, child = _memory(entry, concurrency, host, wrong)
    return CeleryWorker(
        name="-".join(queues),
        queues=queues,
        concurrency=concurrency,
        prefetch=prefetch,
        memory=memory,
        child_memory=child,
    )


def _memory(entry: Mapping[str, Any], concurrency: int, host: str, wrong: Any) -> tuple[int, int]:
    memory, child = (inventory.value(entry, name) for name in ("memory", "child_memory"))
    given = None if memory is None else sizing.parse_memory(memory, what="memory", host=host) // MIB * MIB
    if child is not None:
        per_child = sizing.parse_memory(child, what="child_memory", host=host) // MIB * MIB
    else:
        per_child = CHILD if given is None else (given - OVERHEAD) // concurrency // MIB * MIB
    if per_child < SMALLEST_CHILD:
        raise wrong(
            f"each of {concurrency} processes would have {sizing.human(max(per_child, 0))}",
            f"raise memory, or lower concurrency; a process needs {sizing.human(SMALLEST_CHILD)} at least",
        )
    needed = OVERHEAD + concurrency * per_child
    if given is not None and given < needed:
        raise wrong(
            f"{concurrency} processes of {sizing.human(per_child)} do not fit into {sizing.human(given)}",
            f"raise memory to {sizing.human(needed)}, or lower child_memory",
        )
    return given or needed, per_child
