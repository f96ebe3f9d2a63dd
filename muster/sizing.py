"""How large each Ray worker of a host is: CPUs, memory, and how that memory is split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from muster.errors import MusterError

MIB = 1024**2
UNITS = {"k": 1024, "m": MIB, "g": 1024**3, "t": 1024**4}
OBJECT_STORE_SHARE = 0.3
# The raylet, its agents and an idle worker process, before any job runs.
OVERHEAD = 384 * MIB
SMALLEST_WORKER = 640 * MIB
# Ray falls back to disk when /dev/shm is not larger than the object store.
SHM_MARGIN = 16 * MIB
KEYS = ("cpus", "memory", "gpus", "labels", "resources")


class Worker(TypedDict):
    """One Ray worker container; every size in bytes."""

    name: str
    cpus: int
    memory: int
    object_store: int
    shm: int
    heap: int
    gpus: int
    gpu_ids: list[int]
    labels: dict[str, str]
    resources: dict[str, float]


def parse_memory(value: object, *, what: str = "memory", host: str = "") -> int:
    """Bytes of "6G", "512M", "1.5GiB" or a plain number of bytes; G means GiB, as Docker has it."""
    text = str(value).strip().lower()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text)
    if match is None or isinstance(value, bool):
        raise MusterError(f"{what} is {value!r}, which is not a size", fix="write it like 6G or 512M", host=host)
    size = int(float(match[1]) * UNITS.get(match[2], 1))
    if 0 < size < MIB:
        raise MusterError(f"{what} is {value!r}, less than 1 MiB", fix="give a unit, like 6G", host=host)
    return size


def human(size: int) -> str:
    """A size as people write it in the inventory."""
    return f"{size / UNITS['g']:.1f}G" if size >= UNITS["g"] else f"{size // MIB}M"


def parse_count(value: object, *, what: str, host: str = "") -> int:
    """A whole number, also when the command line gave it as text (-e ray_workers=5)."""
    text = str(value).strip()
    if isinstance(value, float) and value.is_integer():
        text = str(int(value))
    if isinstance(value, bool) or not re.fullmatch(r"\d+", text):
        raise MusterError(f"{what} is {value!r}, which is not a whole number", fix="write it like 4", host=host)
    return int(text)


def entries(spec: object, *, host: str = "") -> list[dict[str, Any]]:
    """`ray_workers` as a list: nothing given is one worker, a number is that many equal ones."""
    if spec is None or spec == "":
        return [{}]
    if isinstance(spec, Sequence) and not isinstance(spec, str):
        result = []
        for number, entry in enumerate(spec, start=1):
            if not isinstance(entry, Mapping):
                raise MusterError(
                    f"ray_workers entry {number} is {entry!r}",
                    fix="write a list of {cpus: 2, memory: 6G}, or just a number of workers",
                    host=host,
                )
            unknown = sorted(set(map(str, entry)) - set(KEYS))
            if unknown:
                raise MusterError(
                    f"ray_workers entry {number} has the unknown key {', '.join(unknown)}",
                    fix=f"use {', '.join(KEYS)}",
                    host=host,
                )
            result.append(dict(entry))
        return result
    return [{} for _ in range(parse_count(spec, what="ray_workers", host=host))]


def count(spec: object, *, host: str = "") -> int:
    """How many workers `ray_workers` asks for."""
    return len(entries(spec, host=host))


def reserve(sizes: object, *, host: str = "") -> int:
    """Bytes kept for the host: one size, or a list that is added up (system, head, ...)."""
    if sizes is None or sizes == "":
        return 0
    if isinstance(sizes, Sequence) and not isinstance(sizes, str):
        return sum(parse_memory(size, what="reserved memory", host=host) for size in sizes)
    return parse_memory(sizes, what="reserved memory", host=host)


def split_memory(memory: int) -> tuple[int, int, int]:
    """Object store, /dev/shm and heap of a worker; object store + heap + overhead never exceed its memory."""
    object_store = int(memory * OBJECT_STORE_SHARE) // MIB * MIB
    heap = (memory - object_store - OVERHEAD) // MIB * MIB
    return object_store, object_store + SHM_MARGIN, heap


def ray_workers(
    spec: object,
    *,
    host_cpus: object,
    host_memory_mb: object,
    host: str = "",
    cpus: object = None,
    memory: object = None,
    gpus: object = 0,
    host_gpus: object = None,
    reserve_cpus: object = 0,
    reserve_memory: object = 0,
    labels: Mapping[str, str] | None = None,
    resources: Mapping[str, float] | None = None,
) -> list[Worker]:
    """Size every worker of one host; what is not given is an equal share of what the host has left."""
    wanted = entries(spec, host=host)
    if not wanted:
        return []
    total_cpus = parse_count(host_cpus, what="the host's CPUs", host=host)
    total_memory = parse_count(host_memory_mb, what="the host's memory", host=host) * MIB
    for entry in wanted:
        for key, default in (("cpus", cpus), ("memory", memory), ("gpus", gpus)):
            if entry.get(key) in (None, "") and default not in (None, ""):
                entry[key] = default

    cpu_list = _cpus(wanted, total_cpus, parse_count(reserve_cpus or 0, what="reserved CPUs", host=host), host)
    memory_list = _memory(wanted, total_memory, reserve(reserve_memory, host=host), host)
    gpu_list = [parse_count(entry.get("gpus") or 0, what="gpus", host=host) for entry in wanted]
    if host_gpus is not None and sum(gpu_list) > parse_count(host_gpus, what="the host's GPUs", host=host):
        raise MusterError(
            f"the workers ask for {sum(gpu_list)} GPUs, the host has {host_gpus}",
            fix="lower ray_worker_gpus",
            host=host,
        )

    workers: list[Worker] = []
    for index, entry in enumerate(wanted):
        object_store, shm, heap = split_memory(memory_list[index])
        first_gpu = sum(gpu_list[:index])
        workers.append(
            Worker(
                name=f"worker-{index + 1}",
                cpus=cpu_list[index],
                memory=memory_list[index],
                object_store=object_store,
                shm=shm,
                heap=heap,
                gpus=gpu_list[index],
                gpu_ids=list(range(first_gpu, first_gpu + gpu_list[index])),
                labels={str(k): str(v) for k, v in {**(labels or {}), **(entry.get("labels") or {})}.items()},
                resources={str(k): v for k, v in {**(resources or {}), **(entry.get("resources") or {})}.items()},
            )
        )
    return workers


def _workers(result: Sequence[int]) -> str:
    return "1 worker asks" if len(result) == 1 else f"{len(result)} workers ask"


def _cpus(wanted: list[dict[str, Any]], total: int, kept: int, host: str) -> list[int]:
    given = {i: parse_count(e["cpus"], what="cpus", host=host) for i, e in enumerate(wanted) if "cpus" in e}
    open_ones = len(wanted) - len(given)
    share = max(total - kept - sum(given.values()), 0) // open_ones if open_ones else 0
    # A worker without a CPU is of no use: on a tiny host it may eat into the reserve, never beyond the host.
    share = max(share, 1)
    result = [given.get(i, share) for i in range(len(wanted))]
    if sum(result) > total:
        raise MusterError(
            f"{_workers(result)} for {sum(result)} CPUs, the host has {total}",
            fix="lower ray_workers or ray_worker_cpus",
            host=host,
        )
    return result


def _memory(wanted: list[dict[str, Any]], total: int, kept: int, host: str) -> list[int]:
    given = {
        i: parse_memory(e["memory"], what="worker memory", host=host) // MIB * MIB
        for i, e in enumerate(wanted)
        if "memory" in e
    }
    free = total - kept
    if free <= 0:
        raise MusterError(
            f"nothing is left for Ray workers: the host has {human(total)}, and {human(kept)} are kept for it, "
            "for Celery and for Ray's head",
            fix="lower ray_reserve_memory, or concurrency and memory in celery_workers, or set ray_workers: 0",
            host=host,
        )
    open_ones = len(wanted) - len(given)
    share = max(free - sum(given.values()), 0) // open_ones // MIB * MIB if open_ones else 0
    result = [given.get(i, share) for i in range(len(wanted))]
    if sum(result) > free:
        raise MusterError(
            f"{_workers(result)} for {human(sum(result))} of memory, "
            f"the host has {human(total)} and keeps {human(kept)} for itself and Celery",
            fix="lower ray_workers or ray_worker_memory, or celery_workers, or ray_reserve_memory",
            host=host,
        )
    if min(result) < SMALLEST_WORKER:
        raise MusterError(
            f"a worker would get {human(min(result))} of memory, it needs {human(SMALLEST_WORKER)} at least",
            fix="lower ray_workers, or raise ray_worker_memory",
            host=host,
        )
    return result
