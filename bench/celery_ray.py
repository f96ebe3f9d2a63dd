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
app.conf.update(task_default_queue=QUEUE, worker_prefetch_multiplier=1, task_acks_late=True)


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


def measure(task: Any, count: int) -> tuple[list[float], float]:
    """Seconds within the task, one after the other, and the median of what the sender waits."""
    within, waited = [], []
    for number in range(count):
        begin = time.perf_counter()
        within.append(task.delay(number).get(timeout=120))
        waited.append(time.perf_counter() - begin)
    return within, statistics.median(waited)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--old", type=int, default=10)
    options = parser.parse_args()
    # Two workers: a process that was a driver does not become a client, and the other way round.
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
    figures: dict[str, Any] = {}
    for name, task, count in (("new", new, options.calls), ("old", old, options.old)):
        if name == "old" and "MUSTER_RAY_CLIENT" not in os.environ:
            continue
        worker = subprocess.Popen([*command, f"--hostname={name}@bench"], env={**os.environ, "PYTHONPATH": path})
        try:
            first, _ = measure(task, 1)
            within, waited = measure(task, count)
        finally:
            worker.terminate()
            worker.wait(60)
        figures[name] = {
            "median_ms": round(statistics.median(within) * 1000, 2),
            "p95_ms": round(sorted(within)[int(len(within) * 0.95)] * 1000, 2),
            "first_ms": round(first[0] * 1000, 1),
            "median_with_celery_ms": round(waited * 1000, 2),
            "calls": count,
        }
    if "old" in figures:
        figures["times_less"] = round(figures["old"]["median_ms"] / figures["new"]["median_ms"], 1)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
