"""How fast the cluster is: tasks, objects, and each server's CPU and disk; compared with the last run kept.

Laptops are not asked: they are guests, and their figures would change with who sits in front of them.
"""

from __future__ import annotations

import platform
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import median
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from ray_jobs import command, guests, outcome, runs
from ray_jobs.command import JobError
from ray_jobs.machine import MB, Speed, clocked, four, probe

# Objects of several rounds may be in the store at the same time, and others need room, too.
SHARE = 4


class Benchmark(command.Parameters):
    """How much to measure. Every figure is the median of the rounds."""

    rounds: int = Field(default=3, ge=1, le=20, description="how often each figure is measured")
    size_mb: int = Field(default=64, ge=1, le=1024, description="of the object and of the file")
    tasks: int = Field(default=500, ge=1, le=20_000, description="no-ops that are counted per round")
    seconds: float = Field(default=120, gt=0, le=3600, description="how long a node may take for its part of a step")


class Measured(BaseModel):
    """The figures; more is faster in all of them. None is what was not measured: without a cluster, or one node."""

    tasks_per_second: float | None = None
    put_gb_s: float | None = None
    get_gb_s: float | None = None
    broadcast_gb_s: float | None = Field(default=None, description="the object's size times the nodes it was sent to")
    nodes: dict[str, Speed]
    compared_with: str | None = Field(default=None, description="folder of the last run with the same size and tasks")
    ratios: dict[str, float] = Field(default={}, description="by figure: this run's divided by that one's")
    seconds: float


@dataclass(frozen=True)
class Server:
    """A node that is measured."""

    id: str
    host: str
    name: str
    cpus: float
    store: float


def noop() -> None:
    """What a task costs that does nothing."""


def received(data: Any) -> int:
    """Its argument is in the node's store before it begins."""
    return int(data.nbytes)


def servers(listing: Sequence[Mapping[str, Any]]) -> list[Server]:
    """The nodes of `ray.nodes()` that are alive, have CPUs, and are no laptops; named `host/node` by their labels."""
    found = []
    for node in listing:
        labels, has = node.get("Labels") or {}, node.get("Resources") or {}
        if node["Alive"] and has.get("CPU") and labels.get("class") != guests.LAPTOP:
            host = labels.get("host", node["NodeID"][:12])
            name = f"{host}/{labels['node']}" if "node" in labels else node["NodeID"][:12]
            found.append(Server(node["NodeID"], host, name, has["CPU"], has.get("object_store_memory", 0)))
    return sorted(found, key=lambda server: server.name)


def turns(found: Sequence[Server]) -> list[list[Server]]:
    """Hosts are measured at the same time; nodes of one host would slow each other and take turns."""
    by_host = defaultdict(list)
    for server in found:
        by_host[server.host].append(server)
    return [[server for server in turn if server] for turn in zip_longest(*by_host.values())]


def answers(asked: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What each node says; the ones that say nothing are named."""
    import ray

    if not asked:
        return {}
    _, silent = ray.wait(list(asked.values()), num_returns=len(asked), timeout=seconds)
    if silent:
        for reference in silent:
            ray.cancel(reference, force=True)
        late = ", ".join(name for name, reference in asked.items() if reference in silent)
        raise JobError(f"{late}: no answer within {seconds:g} s; wait until other work has ended, or raise seconds")
    said = {}
    for name, reference in asked.items():
        try:
            said[name] = ray.get(reference)
        except ray.exceptions.RayError as error:
            raise JobError(f"{name}: {getattr(error, 'cause', None) or str(error).splitlines()[-1]}") from error
    return said


def on(server: Server, remote: Any, *arguments: Any, num_cpus: float) -> Any:
    """Ask one node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(server.id, soft=False)
    return remote.options(num_cpus=num_cpus, max_retries=0, scheduling_strategy=there).remote(*arguments)


def tasks_per_second(parameters: Benchmark) -> float:
    """No-ops through servers whose workers are there already."""
    import ray

    remote = ray.remote(noop).options(**guests.at_home())

    def once() -> None:
        asked = [remote.remote() for _ in range(parameters.tasks)]
        try:
            ray.get(asked, timeout=parameters.seconds)
        except ray.exceptions.GetTimeoutError as error:
            for reference in asked:
                ray.cancel(reference)
            raise JobError(
                f"{parameters.tasks} tasks took more than {parameters.seconds:g} s; "
                "wait until other work has ended, or raise seconds"
            ) from error

    # The first time starts the workers.
    once()
    return median(parameters.tasks / clocked(once) for _ in range(parameters.rounds))


def objects(parameters: Benchmark, found: Sequence[Server]) -> tuple[float, float, float | None]:
    """GB/s into the store of this node, out of it, and to all others."""
    import numpy
    import ray

    data = numpy.ones(parameters.size_mb * MB, dtype=numpy.uint8)
    here = ray.get_runtime_context().get_node_id()
    others = [server for server in found if server.id != here]
    # Once for all rounds: Ray takes the function to the nodes again for each `ray.remote`.
    receive = ray.remote(received)
    put, got, sent = [], [], []
    for counted in range(parameters.rounds + 1):
        start = time.perf_counter()
        reference = ray.put(data)
        middle = time.perf_counter()
        # Getting alone moves nothing: the array lies in shared memory until somebody reads it.
        numpy.copyto(data, ray.get(reference))
        end = time.perf_counter()
        asked = {server.name: on(server, receive, reference, num_cpus=0) for server in others}
        answers(asked, parameters.seconds)
        done = time.perf_counter()
        # The first round makes memory and connections.
        if counted:
            gigabytes = parameters.size_mb / 1000
            put.append(gigabytes / (middle - start))
            got.append(gigabytes / (end - middle))
            sent.append(gigabytes * len(others) / (done - end))
        del asked, reference
    return median(put), median(got), median(sent) if others else None


def figures(measured: Measured) -> dict[str, float]:
    """All of them by name: `put_gb_s`, `server1/worker-1 python`."""
    of_all = measured.model_dump(include={"tasks_per_second", "put_gb_s", "get_gb_s", "broadcast_gb_s"})
    of_nodes = {f"{name} {key}": value for name, speed in measured.nodes.items() for key, value in speed}
    return {name: value for name, value in {**of_all, **of_nodes}.items() if value}


def compared(measured: Measured, parameters: Benchmark) -> Measured:
    """With the newest run that succeeded, measured the same, and has figures in common."""
    root = runs.root()
    same = parameters.model_dump(include={"size_mb", "tasks"})
    listed = runs.kept(root, "benchmark") if root else []
    for about in sorted(listed, key=lambda about: float(about.get("since", 0)), reverse=True):
        # This run is kept, too: as one that is running.
        if about.get("state") != "succeeded":
            continue
        if {key: about.get("parameters", {}).get(key) for key in same} != same:
            continue
        try:
            then = figures(Measured.model_validate(about.get("metrics")))
        except ValidationError:
            # Of another version of this job.
            continue
        ratios = {name: round(value / then[name], 3) for name, value in figures(measured).items() if name in then}
        if ratios:
            return measured.model_copy(update={"compared_with": about["folder"], "ratios": ratios})
    return measured


def run(parameters: Benchmark, local: bool = False) -> Measured:
    """Measure; without a cluster this machine's CPU and disk only."""
    start = time.perf_counter()
    if local:
        nodes = {f"{platform.node()}/local": probe(parameters.rounds, parameters.size_mb)}
        return compared(Measured(nodes=nodes, seconds=round(time.perf_counter() - start, 3)), parameters)
    import ray

    found = servers(ray.nodes())
    if not found:
        raise JobError("no server offers a CPU: see `muster status`")
    least = min(found, key=lambda server: server.store)
    if parameters.size_mb * MB * SHARE > least.store:
        raise JobError(
            f"size_mb: {least.name} has room for {least.store / MB:.0f} MB of objects, which others use, too: "
            f"take {least.store // (SHARE * MB):.0f} at most"
        )
    steps = len(found) + 2
    nodes = {}
    measure = ray.remote(probe)
    for turn in turns(found):
        asked = {
            server.name: on(server, measure, parameters.rounds, parameters.size_mb, num_cpus=min(1, server.cpus))
            for server in turn
        }
        nodes |= answers(asked, parameters.seconds)
        outcome.progress(len(nodes), steps, "CPU and disk")
    tasks = tasks_per_second(parameters)
    outcome.progress(steps - 1, steps, "tasks")
    put, got, sent = objects(parameters, found)
    outcome.progress(steps, steps, "objects")
    measured = Measured(
        tasks_per_second=four(tasks), put_gb_s=four(put), get_gb_s=four(got),
        broadcast_gb_s=four(sent) if sent else None, nodes=dict(sorted(nodes.items())),
        seconds=round(time.perf_counter() - start, 3),
    )  # fmt: skip
    return compared(measured, parameters)


def show(measured: Measured) -> str:
    """The answer for people; in brackets what it is of the last run's."""
    now = figures(measured)

    def cell(name: str) -> str:
        ratio = measured.ratios.get(name)
        return f"{now[name]:g}" + (f" ({ratio:.0%})" if ratio is not None else "") if name in now else "-"

    rows = [["node", *Speed.model_fields]]
    rows += [[node, *(cell(f"{node} {key}") for key in Speed.model_fields)] for node in measured.nodes]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append("python: million steps of a loop per second; numpy: million values sorted per second")
    whole = ("tasks_per_second", "put_gb_s", "get_gb_s", "broadcast_gb_s")
    lines += [f"{name:<16}  {cell(name)}" for name in whole if name in now]
    if measured.compared_with:
        lines.append(f"in brackets: of what it was in {measured.compared_with}")
    return "\n".join(lines)


JOB = command.Job("benchmark", __doc__ or "", Benchmark, run, show)

if __name__ == "__main__":
    raise SystemExit(JOB.main())
