"""No-op tasks per second of our worker against stock Celery's, in turns within one run; prints JSON.

`stock` is Celery as it comes: a message is acknowledged before its task runs, and what a killed worker had is lost.
`by hand` is what one would set to change that: acks_late and a prefetch of 1. `ours` is a supervised worker as it is
deployed; `ours without X` is the same with one part switched off, which says what that part costs. A burst appears in
one step before a warm worker; tasks/s are from the first result to the last. On two cores that do other things too,
CPU time of the worker's processes and of Redis per task is the figure to compare.

    python bench/celery_tasks.py --rounds 5 [--idle] [--redis redis://127.0.0.1:PORT/0] [variant...]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import redis  # noqa: E402
from celery import Celery  # noqa: E402

URL = os.environ.get("MUSTER_REDIS_URL", "")
KIND = os.environ.get("BENCH_KIND", "")
PARTS = ("claim", "started", "events", "extended", "take", "store", "counts", "prefetch 1")
VARIANTS = ("stock", "by hand", "ours", *(f"ours without {part}" for part in PARTS), "ours without all")
TICK = os.sysconf("SC_CLK_TCK")


def ours(without: str) -> Any:
    """Our app, and the class of its tasks, but for one part or all."""
    from celery_app import app
    from celery_app.results import Backend
    from celery_app.task import MusterTask

    conf = {
        "started": {"task_track_started": False},
        "events": {"worker_send_task_events": False},
        "extended": {"result_extended": False},
        "take": {"broker_read_url": app.conf.broker_write_url},
        "prefetch 1": {"worker_prefetch_multiplier": 4},
    }
    for part in PARTS:
        if without in (part, "all"):
            app.conf.update(conf.get(part, {}))
    if without in ("store", "all"):
        app.loader.override_backends = {}
    if without in ("store", "counts", "all"):
        # What stores does not count then, and nothing does so in its place.
        Backend.counts = False  # type: ignore[assignment]
        del MusterTask.on_success
    if without in ("claim", "all"):
        MusterTask._claim = lambda *_: None  # type: ignore[method-assign]
    return app


def stock() -> Any:
    """What one has who reads only Celery's first pages."""
    found = Celery("stock", broker=URL, backend=URL, set_as_current=KIND != "sender")
    found.conf.task_default_queue = "default"
    if KIND == "by hand":
        found.conf.update(task_acks_late=True, worker_prefetch_multiplier=1)
    return found


app = ours(KIND.removeprefix("ours").removeprefix(" without ")) if KIND.startswith("ours") else stock()


@app.task(name="bench.noop")
def noop() -> None:
    pass


@app.task(name="bench.now")
def now() -> float:
    return time.time()


class Worker:
    """A worker of a kind, warm; what it and its children used of the CPU."""

    def __init__(self, kind: str, url: str, folder: Path) -> None:
        self.kind, self.log = kind, folder / "worker.log"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "bench")]),
            "BENCH_KIND": kind,
            "MUSTER_REDIS_URL": url,
            "MUSTER_INCLUDE": "celery_tasks",
            "MUSTER_QUEUES": "default",
            "MUSTER_CONCURRENCY": "2",
            "MUSTER_WORKER": "bench/default",
            "MUSTER_HEARTBEAT": str(folder / "heartbeat"),
            "MUSTER_STALLED": "600",
        }
        command = [sys.executable, "-m", "celery_app.supervise"]
        if not kind.startswith("ours"):
            environment["MUSTER_HEARTBEAT"] = environment["MUSTER_WORKER"] = ""
            command = [
                *(sys.executable, "-m", "celery", "--app", "celery_tasks", "worker"),
                *("--concurrency", "2", "--queues", "default", "--loglevel", "INFO"),
            ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
        wait(lambda: " ready." in self.log.read_text(), f"{kind} is ready", self.log)

    @property
    def main(self) -> int:
        return children(self.process.pid)[0] if self.kind.startswith("ours") else self.process.pid

    def cpu(self) -> float:
        """Seconds of Celery's main process, its children and the supervisor."""
        return sum(map(used, {self.process.pid, self.main, *children(self.main)}))

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def children(pid: int) -> list[int]:
    return [int(part) for part in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def used(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def wait(condition: Callable[[], object], what: str, log: Path) -> None:
    end = time.monotonic() + 120
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"never: {what}\n{log.read_text()[-3000:]}")
        time.sleep(0.1)


class Bench:
    """A sender and what it sees in Redis."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = redis.Redis.from_url(url, decode_responses=True)
        # Sent to another database of the same Redis, from which the burst is moved in one step.
        self.aside = url.rpartition("/")[0] + "/1"
        self.sender = Celery("sender", broker=self.aside, backend=self.aside, set_as_current=False)

    def burst(self, worker: Worker, count: int) -> dict[str, float]:
        ids = [self.sender.send_task("bench.noop", queue="default").id for _ in range(count)]
        keys = [f"celery-task-meta-{one}" for one in ids]
        self.client.config_resetstat()
        cpu, main, server = worker.cpu(), used(worker.main), self.server()
        redis.Redis.from_url(self.aside).move("default", 0)
        wait(lambda: self.client.exists(*keys[-20:]) == min(20, count), "the last result", worker.log)
        metas: list[Any] = []

        def all_there() -> bool:
            metas[:] = [json.loads(meta) for meta in self.client.mget(keys) if meta]
            return len(metas) == count and all(meta["status"] == "SUCCESS" for meta in metas)

        time.sleep(0.5)
        cpu, main, server = worker.cpu() - cpu, used(worker.main) - main, self.server() - server
        wait(all_there, "all results", worker.log)
        done = sorted(datetime.fromisoformat(meta["date_done"]).timestamp() for meta in metas)
        stats = self.client.info("commandstats")
        calls = sum(stat["calls"] for stat in stats.values())
        return {
            "tasks/s": (count - 1) / (done[-1] - done[0]),
            "ms of CPU per task": cpu / count * 1000,
            "of it in the main process": main / count * 1000,
            "ms of Redis' CPU per task": server / count * 1000,
            "commands per task": calls / count,
        }

    def server(self) -> float:
        info = self.client.info("cpu")
        return float(info["used_cpu_user"] + info["used_cpu_sys"])

    def idle(self, worker: Worker, seconds: float, count: int) -> dict[str, float]:
        time.sleep(5)
        cpu = used(worker.main)
        time.sleep(seconds)
        cpu = used(worker.main) - cpu
        sender = Celery("sender", broker=self.url, backend=self.url, set_as_current=False)
        late = []
        for _ in range(count):
            time.sleep(0.4 + random.random() * 0.3)
            begin = time.time()
            late.append(sender.send_task("bench.now", queue="default").get(timeout=30) - begin)
        late.sort()
        return {
            "% of a core, idle": cpu / seconds * 100,
            "ms from send to start": statistics.median(late) * 1000,
            "p95": late[int(count * 0.95)] * 1000,
        }


def best(key: str, values: list[float]) -> float:
    """What a busy machine disturbed least."""
    return max(values) if key == "tasks/s" else min(values)


def median(_: str, values: list[float]) -> float:
    return statistics.median(values)


def summary(seen: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """The best of each figure; of the first two also the ratios to stock and to ours, of bests and of medians."""
    values = {kind: {key: [run[key] for run in runs] for key in runs[0]} for kind, runs in seen.items()}
    figures: dict[str, Any] = {}
    for kind, mine in values.items():
        figures[kind] = {key: round(best(key, found), 2) for key, found in mine.items()}
        for other in {"stock", "ours"} & seen.keys() - {kind}:
            figures[kind][f"times {other}"] = {
                key: {pick.__name__: round(pick(key, mine[key]) / pick(key, values[other][key]), 2)
                      for pick in (best, median)}
                for key in list(mine)[:2]
            }  # fmt: skip
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("variants", nargs="*", help=", ".join(VARIANTS))
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--bursts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--idle", action="store_true", help="CPU of an idle worker and time from send to start instead")
    parser.add_argument("--redis", help="one that may be emptied; without it the infra image's is started")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not options.redis:
            from tests.delivery.conftest import RedisServer

            (folder / "redis").mkdir()
            server = RedisServer(folder / "redis")
            stack.callback(server.remove)
            options.redis = server.url
        bench = Bench(options.redis)
        seen: dict[str, list[dict[str, float]]] = {kind: [] for kind in options.variants or VARIANTS}
        for _ in range(options.rounds):
            for kind, runs in seen.items():
                bench.client.flushall()
                worker = Worker(kind, options.redis, folder)
                try:
                    if options.idle:
                        runs.append(bench.idle(worker, 20, 60))
                    else:
                        bench.burst(worker, 100)
                        runs += [bench.burst(worker, options.tasks) for _ in range(options.bursts)]
                    print(kind, runs[-1], file=sys.stderr)
                finally:
                    worker.stop()
    print(json.dumps(summary(seen)))


if __name__ == "__main__":
    main()
