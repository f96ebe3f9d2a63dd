"""Spread small tasks over the cluster, and show which node ran how many and with what versions."""

from __future__ import annotations

import platform
import time
from collections import Counter

from pydantic import BaseModel, Field

from ray_jobs import afar, command


class Hello(command.Parameters):
    """How many tasks, and how long each keeps a CPU busy."""

    tasks: int = Field(default=20, ge=1, le=1_000_000)
    iterations: int = Field(default=1_000_000, ge=0, description="additions per task")


class Said(BaseModel):
    """What was asked, how long it took, and how many tasks each node ran."""

    tasks: int
    iterations: int
    seconds: float
    tasks_per_second: float
    nodes: dict[str, int]
    versions: dict[str, str] = Field(description="of Python and Ray, by node")


def work(iterations: int) -> tuple[str, str]:
    """Keep one CPU busy, and say on which node, and what runs there."""
    import ray

    total = 0
    for number in range(iterations):
        total += number
    return afar.here(), f"Python {platform.python_version()}, Ray {ray.__version__}"


def run(parameters: Hello, local: bool = False) -> Said:
    """Run the tasks and wait for all of them."""
    start = time.perf_counter()
    if local:
        for _ in range(parameters.tasks):
            sum(range(parameters.iterations))
        ran = [(afar.here(), f"Python {platform.python_version()}")] * parameters.tasks
    else:
        import ray

        remote = ray.remote(work).options(scheduling_strategy="SPREAD")
        ran = ray.get([remote.remote(parameters.iterations) for _ in range(parameters.tasks)])
    seconds = time.perf_counter() - start
    return Said(
        tasks=parameters.tasks,
        iterations=parameters.iterations,
        seconds=round(seconds, 3),
        tasks_per_second=round(parameters.tasks / seconds, 2),
        nodes=dict(sorted(Counter(name for name, _ in ran).items())),
        versions=dict(sorted(set(ran))),
    )


def show(said: Said) -> str:
    """The answer for people."""
    width = max([len("node"), *(len(node) for node in said.nodes)])
    lines = [f"{'node':<{width}}  tasks  runs"]
    lines += [f"{node:<{width}}  {count:>5}  {said.versions[node]}" for node, count in said.nodes.items()]
    lines.append(
        f"{said.tasks} tasks of {said.iterations} iterations in {said.seconds} s: {said.tasks_per_second} tasks/s"
    )
    return "\n".join(lines)


JOB = command.Job("hello", __doc__ or "", Hello, run, show)

if __name__ == "__main__":
    raise SystemExit(JOB.main())
