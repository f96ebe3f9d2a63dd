"""What a call from a Celery task to Ray costs: ray_call against the old pattern, in the same run.

The old pattern is `ray.init("ray://...")`, one task, `ray.shutdown()` in every Celery task. Run this where a Celery
worker would run, beside a Ray worker, with its environment (MUSTER_REDIS_URL, MUSTER_RAY_ADDRESS, MUSTER_RAY_NODE,
RAY_*), and with MUSTER_RAY_CLIENT=ray://HEAD:10001 for the old pattern. It starts a worker of its own and prints JSON.

    python bench/celery_ray.py --calls 200 --old 10
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from celery import Celery  # noqa: E402

QUEUE = "bench_celery_ray"
app = Celery("celery_ray", broker=os.environ.get("MUSTER_REDIS_URL"), backend=os.environ.get("MUSTER_REDIS_URL"))
app.conf.update(
    task_routes={f"bench.{name}": {"queue": f"{QUEUE}_{name}"} for name in ("new", "old")},
    worker_prefetch_multiplier=1,
    task_acks_late=True,
)


def trivial(number: int) -> int:
    return number + 1


def by_value() -> None:
    """Ray's workers need not have this file."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])


@app.task(name="bench.new")
def new(number: int) -> float:
    """Seconds that ray_call takes within a task."""
    from celery_app.ray_bridge import ray_call

    by_value()
    begin = time.perf_counter()
    assert ray_call(trivial, number) == number + 1
    return time.perf_counter() - begin


@app.task(name="bench.old")
def old(number: int) -> float:
    """Seconds that the old pattern takes within a task."""
    import ray

    by_value()
    begin = time.perf_counter()
    with_streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    try:
        ray.init(os.environ["MUSTER_RAY_CLIENT"], log_to_driver=False)
        assert ray.get(ray.remote(trivial).options(label_selector={"class": "server"}).remote(number)) == number + 1
        ray.shutdown()
    finally:
        sys.stdout, sys.stderr = with_streams
    return time.perf_counter() - begin


def waited(task: Any, number: int) -> tuple[float, float]:
    """Seconds within the task, and that the sender waits."""
    begin = time.perf_counter()
    within = task.delay(number).get(timeout=120)
    return within, time.perf_counter() - begin


def summary(calls: list[tuple[float, float]], first: float) -> dict[str, float]:
    within = sorted(call[0] for call in calls)
    return {
        "median_ms": round(statistics.median(within) * 1000, 2),
        "fastest_ms": round(within[0] * 1000, 2),
        "p95_ms": round(within[int(len(within) * 0.95)] * 1000, 2),
        "first_ms": round(first * 1000, 1),
        "median_with_celery_ms": round(statistics.median(call[1] for call in calls) * 1000, 2),
        "calls": len(calls),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--old", type=int, default=10)
    options = parser.parse_args()
    command = [
        sys.executable,
        "-m",
        "celery",
        "--app=celery_ray:app",
        "worker",
        "--concurrency=1",
        "--loglevel=WARNING",
    ]
    path = os.pathsep.join([str(ROOT), str(ROOT / "bench"), os.environ.get("PYTHONPATH", "")])
    tasks = {"new": new, "old": old} if "MUSTER_RAY_CLIENT" in os.environ else {"new": new}
    # A worker for each: a process that was a driver does not become a client, and the other way round.
    workers = [
        subprocess.Popen([*command, f"--hostname={name}@bench", f"--queues={QUEUE}_{name}"],
                         env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL)
        for name in tasks
    ]  # fmt: skip
    try:
        first = {name: waited(task, 0)[0] for name, task in tasks.items()}
        seen: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
        # In turns, so that whatever else the machine does meets both. An old call leaves a process behind on the head
        # that ends by itself after 30 s; that is a part of its cost, and the fastest call shows what is not.
        for _ in range(options.old):
            for name, task in tasks.items():
                count = options.calls // options.old if name == "new" else 1
                seen[name] += [waited(task, number) for number in range(count)]
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait(60)
    figures: dict[str, Any] = {name: summary(calls, first[name]) for name, calls in seen.items()}
    if "old" in figures:
        figures["times_less"] = round(figures["old"]["median_ms"] / figures["new"]["median_ms"], 1)
        figures["times_less_than_fastest_old"] = round(figures["old"]["fastest_ms"] / figures["new"]["median_ms"], 1)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
