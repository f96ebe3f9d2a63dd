"""Hello, Ray: spread small tasks over the cluster and show who ran what.

As a job:    ray job submit -- python -m ray_jobs.hello --tasks 20 --iterations 1000000
As a module: ray_jobs.hello.run(tasks=20, iterations=1_000_000)
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Result:
    """What was asked, how long it took, and how many tasks each node ran."""

    tasks: int
    iterations: int
    seconds: float
    tasks_per_second: float
    nodes: dict[str, int]


def work(iterations: int) -> str:
    """Keep one CPU busy, and say on which node: `host/node` from its labels."""
    import ray

    total = 0
    for number in range(iterations):
        total += number
    context = ray.get_runtime_context()
    labels = context.get_node_labels()
    return f"{labels.get('host', '?')}/{labels.get('node', context.get_node_id()[:8])}"


def run(tasks: int = 20, iterations: int = 1_000_000, address: str | None = None) -> Result:
    """Run the tasks and wait for all of them; connects to the cluster when nobody has yet."""
    import ray

    if not ray.is_initialized():
        ray.init(address=address or "auto", log_to_driver=False, logging_level="ERROR")
    remote = ray.remote(work).options(scheduling_strategy="SPREAD")
    start = time.perf_counter()
    ran = Counter(ray.get([remote.remote(iterations) for _ in range(tasks)]))
    seconds = time.perf_counter() - start
    return Result(tasks, iterations, round(seconds, 3), round(tasks / seconds, 2), dict(sorted(ran.items())))


def table(result: Result) -> str:
    """The result for people."""
    width = max([len("node"), *(len(node) for node in result.nodes)])
    lines = [f"{'node':<{width}}  tasks", *(f"{node:<{width}}  {n:>5}" for node, n in result.nodes.items())]
    lines.append(
        f"{result.tasks} tasks of {result.iterations} iterations in {result.seconds} s: "
        f"{result.tasks_per_second} tasks/s"
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ray_jobs.hello", description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=1_000_000)
    parser.add_argument("--address", help="of the cluster; by default the one this runs in")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(argv)
    result = run(options.tasks, options.iterations, options.address)
    print(json.dumps(asdict(result)) if options.json else table(result))


if __name__ == "__main__":
    main()
