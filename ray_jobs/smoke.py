"""Does the cluster do what the inventory plans? Run in the head's container by playbooks/smoke.yml.

Exit status 1 and one line per problem when it does not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs import hello, nodes


@dataclass(frozen=True)
class Planned:
    """A node that the inventory asks for. One that may sleep is not missed when it is away."""

    name: str
    cpus: float
    may_sleep: bool = False


def differences(planned: Sequence[Planned], alive: Sequence[nodes.Node], others: Collection[str] = ()) -> list[str]:
    """What is not as planned, one line each; the nodes of other hosts are not judged."""
    found = []
    by_name = {node.name: node for node in alive}
    for plan in planned:
        node = by_name.get(plan.name)
        if node is None:
            if not plan.may_sleep:
                found.append(f"{plan.name} is planned but not alive: see `docker compose logs` on its host")
        elif node.cpus != plan.cpus:
            found.append(f"{plan.name} has {node.cpus:g} CPUs, planned are {plan.cpus:g}: run site.yml --tags ray")
    names = [plan.name for plan in planned]
    found += [
        f"{name} is alive but not planned: run site.yml --tags ray"
        for name in by_name
        if name not in names and name.split("/")[0] not in others
    ]
    doubles = {node.name for node in alive if sum(other.name == node.name for other in alive) > 1}
    return found + [f"{name} is alive twice" for name in sorted(doubles)]


def wait_for_nodes(
    planned: Sequence[Planned], seconds: float, others: Collection[str] = ()
) -> tuple[list[nodes.Node], list[str]]:
    """The nodes that are alive, and what is wrong with them once the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            alive = [node for node in nodes.listing() if node.state == "alive"]
            problems = differences(planned, alive, others)
        except ConnectionError as error:
            alive, problems = [], [str(error)]
        if not problems or time.monotonic() > deadline:
            return alive, problems
        time.sleep(0.5)


def refusals() -> tuple[dict[str, int], list[str]]:
    """What a job gets that comes without the token, and with a wrong one."""
    body = {"entrypoint": "true"}
    seen = {
        "without a token": nodes.call("/api/jobs/", "", body)[0],
        "with a wrong token": nodes.call("/api/jobs/", "wrong" * 10, body)[0],
    }
    return seen, [f"a job {how} was not refused: {status}" for how, status in seen.items() if status not in (401, 403)]


def on_each(
    alive: Sequence[nodes.Node], seconds: float, function: Callable[..., Any], *arguments: Any
) -> tuple[dict[str, Any], list[str]]:
    """A small task on every node that has CPUs: what each answered, and what went wrong."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(function)
    asked: dict[Any, str] = {}
    for node in alive:
        if node.cpus:
            strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
            asked[ask.options(num_cpus=0, scheduling_strategy=strategy).remote(*arguments)] = node.name
    ready, silent = ray.wait(list(asked), num_returns=len(asked), timeout=seconds) if asked else ([], [])
    problems = [f"{asked[task]} ran no task within {seconds:.0f} s" for task in silent]
    answers = {}
    for task in ready:
        try:
            answers[asked[task]] = ray.get(task)
        except ray.exceptions.RayError as error:
            problems.append(f"{asked[task]}: {str(error).splitlines()[-1]}")
    return answers, problems


def holds(file: str, text: str) -> bool:
    """Whether what the head wrote is here, too. A laptop has no shared storage, and is told none."""
    if not os.environ.get("MUSTER_DATA"):
        return True
    try:
        return Path(file).read_text() == text
    except OSError:
        return False


def shared(alive: Sequence[nodes.Node], seconds: float) -> list[str]:
    """What the head writes to the shared storage, all servers can read."""
    root = os.environ.get("MUSTER_DATA")
    if not root:
        return []
    mark = uuid.uuid4().hex
    file = Path(root) / f".smoke-{mark}"
    try:
        file.write_text(mark)
    except OSError as error:
        return [
            f"the shared storage cannot be written by user {os.getuid()} ({error.strerror}): give storage_path to that "
            "user, or see on the head's host what `ls /srv/muster/` says"
        ]
    try:
        answers, problems = on_each(alive, seconds, holds, os.fspath(file), mark)
    finally:
        file.unlink(missing_ok=True)
    blind = [name for name, there in answers.items() if not there]
    problems += [
        f"{name} does not see what the head wrote to the shared storage: mount the same storage_path there, "
        "or see on its host what `ls /srv/muster/` says"
        for name in blind
    ]
    return problems


def report(alive: Sequence[nodes.Node], result: hello.Said | None, refused: dict[str, int]) -> str:
    """What is there and who ran what, for people."""
    width = max([4, *(len(node.name) for node in alive)])
    lines = [f"{'node':<{width}}  cpus  memory   objects  tasks"]
    for node in alive:
        tasks = result.nodes.get(node.name, 0) if result else 0
        lines.append(
            f"{node.name:<{width}}  {node.cpus:>4g}  {node.memory / 2**30:>4.1f}GiB"
            f"  {node.object_store / 2**30:>4.1f}GiB  {tasks or '-':>5}"
        )
    if result:
        lines.append(
            f"{result.tasks} tasks of {result.iterations:,} iterations in {result.seconds} s: "
            f"{result.tasks_per_second} tasks/s"
        )
    lines.append("refused: " + ", ".join(f"a job {how} ({status})" for how, status in refused.items()))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ray_jobs.smoke", description=__doc__.splitlines()[0])
    parser.add_argument("--planned", default="[]", help="JSON: a list of {name, cpus, may_sleep}")
    parser.add_argument("--others", default="[]", help="JSON: hosts whose nodes are not judged")
    parser.add_argument("--wait", type=float, default=30, help="seconds until the nodes have to be there")
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=1_000_000)
    options = parser.parse_args(argv)
    planned = [Planned(**item) for item in json.loads(options.planned)]

    alive, problems = wait_for_nodes(planned, options.wait, json.loads(options.others))
    refused: dict[str, int] = {}
    result = None
    if alive:
        refused, unwelcome = refusals()
        problems += unwelcome
    if any(node.cpus for node in alive):
        import ray

        ray.init(address="auto", log_to_driver=False, logging_level="ERROR", namespace="smoke")
        # This also starts the first worker process of each node.
        problems += on_each(alive, options.wait, hello.work, 1)[1]
        problems = problems or shared(alive, options.wait)
        # Laptops alone offer none, and tasks that ask for nothing special would wait for a server; where all CPUs are
        # at work they would wait for the end of that.
        if not problems and ray.available_resources().get("CPU", 0) >= 1:
            result = hello.run(hello.Hello(tasks=options.tasks, iterations=options.iterations))
        elif not problems and ray.cluster_resources().get("CPU"):
            print("All CPUs are at work: each node was tried with a task that needs none.")
    elif planned and any(plan.cpus for plan in planned):
        problems.append("no node can run a task")
    print(report(alive, result, refused))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
