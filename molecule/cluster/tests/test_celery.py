"""Celery on the cluster: its bridge to Ray, and a history of tasks under all faults at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
from celery_lab import Broker
from ray_lab import ROOT, Lab, until

from tests.history.checker import Event, judge

LAB = Lab("cluster")
BROKER = Broker(LAB)
DEFAULT = ("default-data",)
WORKERS = {"head": (*DEFAULT, "ml"), "server1": DEFAULT, "server2": DEFAULT, "laptop1": DEFAULT}
BEAT = "celery_beat-beat-1"
WORKER = "celery_worker-default-data-1"
HEAD = "ray_head-head-1"
# make soak asks for more.
TASKS, CUT = int(os.environ.get("DRILL_TASKS", "1000")), 60


def python(code: str) -> str:
    """Run Python as an application would that has the broker's address; what it prints last."""
    said = LAB.inside("head", BEAT, "timeout", "200", "python3", "-", stdin=f"from celery_app import app\n{code}\n")
    return said.strip().rpartition("\n")[2]


def send(task: str, *args: Any, queue: str = "default") -> str:
    return python(f"print(app.send_task('drill.{task}', {list(args)!r}, queue={queue!r}).id)")


def result(task: str, seconds: float = 60) -> Any:
    return json.loads(python(f"import json; print(json.dumps(app.AsyncResult({task!r}).get(timeout={seconds})))"))


def job_status(task: str) -> str:
    return LAB.inside("head", HEAD, "ray", "job", "status", task, check=False)


def test_a_task_calls_ray() -> None:
    until(60, "all workers have a lease", lambda: BROKER.all_there(WORKERS))
    for host in ("once", "again"):
        # Not into a queue that a laptop serves: there is no Ray beside its worker.
        assert result(send("square", 7, queue="ml")) == 49, host


def test_a_revoked_task_stops_its_ray_job() -> None:
    task = send("job", 600, queue="ml")
    until(90, "Ray runs the job", lambda: "RUNNING" in job_status(task))
    python(f"app.control.revoke({task!r})")
    start = time.monotonic()
    until(60, "Ray has stopped the job", lambda: "STOPPED" in job_status(task).upper())
    print(f"Ray job of a revoked task stopped after {time.monotonic() - start:.0f} s")
    assert python(f"print(app.AsyncResult({task!r}).state)") == "REVOKED"


def test_a_head_killed_during_a_job_does_not_cost_the_job() -> None:
    task = send("job", 40, queue="ml")
    until(90, "Ray runs the job", lambda: "RUNNING" in job_status(task))
    LAB.kill_hard("head", HEAD)
    killed = time.time()
    began = result(task, 180)
    assert began < killed, "the job was not begun anew"


def muster(*words: str) -> str:
    """The command, as its user types it."""
    done = subprocess.run(
        [sys.executable, "-m", "muster.cli", *words, *LAB.inventory],
        cwd=ROOT, env=LAB.environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_task_that_kills_its_workers_is_put_aside_and_can_be_sent_again() -> None:
    for host in WORKERS:
        LAB.on(host, "rm", "-f", "/var/lib/drill/antidote")
    task = send("poison")
    until(90, "it is a dead letter", lambda: task in muster("dead"))
    assert "1 dead" in muster("status")
    assert '"task": "drill.poison"' in muster("dead", "show", task)
    for host in WORKERS:
        LAB.on(host, "touch", "/var/lib/drill/antidote")
    muster("dead", "requeue", task)
    assert result(task) == "cured"
    assert muster("dead") == "none\n"


class Faults(threading.Thread):
    """Kills what runs, one thing after another, until it is told that the work is done."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done, self.count, self.wrong = threading.Event(), Counter[str](), ""

    def run(self) -> None:
        try:
            for number in range(10_000):
                for fault in (self.worker, self.child, self.redis, self.supervisor, self.redeploy):
                    if self.done.wait(6):
                        return
                    self.count[fault.__name__] += fault(("head", "server1")[number % 2])
        except Exception as error:
            self.wrong = repr(error)

    def worker(self, host: str) -> bool:
        """Celery's main process."""
        return self.kill(host, oldest=True)

    def child(self, host: str) -> bool:
        """One of those that run tasks."""
        return self.kill(host, oldest=False)

    @staticmethod
    def kill(host: str, *, oldest: bool) -> bool:
        pids = LAB.on(host, "pgrep", "-f", "celery.* worker .*--queues default", check=False).split()
        # There may be none at this moment: it is being started again.
        if len(pids) > 1:
            LAB.on(host, "kill", "-9", pids[0 if oldest else -1], check=False)
        return len(pids) > 1

    def redis(self, _: str) -> bool:
        """The broker, which Docker starts again."""
        LAB.kill_hard("head", "celery_redis-redis-1")
        return True

    def supervisor(self, host: str) -> bool:
        """All of a worker at once; Docker starts it again."""
        LAB.kill_hard(host, WORKER)
        return True

    def redeploy(self, host: str) -> bool:
        """As a new release does: what runs may end."""
        LAB.on(host, "docker", "restart", WORKER)
        return True


def cut_off(host: str, seconds: float, over: threading.Event) -> None:
    """While it is at something, nothing leaves the host or comes in any more, and nobody is told."""
    until(60, f"{host} is at something", lambda: LAB.on(host, "cat", "/var/lib/drill/history", check=False)[:1] == "[")
    rules = (("INPUT", "-i"), ("OUTPUT", "-o"))
    for chain, side in rules:
        LAB.on(host, "iptables", "-I", chain, "1", "!", side, "lo", "-j", "DROP")
    over.wait(seconds)
    for chain, side in rules:
        LAB.on(host, "iptables", "-D", chain, "!", side, "lo", "-j", "DROP")


def effects() -> list[str]:
    said = BROKER.ask("operator", "lrange", "drill:effects", "0", "-1")
    return [part for part in said.splitlines() if len(part) == 36]


def more_than(number: int) -> int:
    """How many tasks have had their effect, if that is more than this."""
    count = len(set(effects()))
    return count if count > number else 0


@pytest.mark.quiet
def test_under_all_faults_nothing_is_lost_and_nothing_done_twice() -> None:
    until(60, "all workers have a lease", lambda: BROKER.all_there(WORKERS))
    BROKER.ask("operator", "del", "drill:effects")
    for host in WORKERS:
        LAB.on(host, "rm", "-f", "/var/lib/drill/history")
    start = time.monotonic()
    command = [
        "docker",
        "exec",
        "cluster-head",
        "docker",
        "exec",
        BEAT,
        "python3",
        "-m",
        "drill",
        str(TASKS),
        "0.4",
        "15",
    ]
    sender = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    sent: list[str] = []
    reader = threading.Thread(target=lambda: sent.extend(sender.stdout or ()))
    reader.start()
    faults, over = Faults(), threading.Event()
    cut = threading.Thread(target=cut_off, args=("server2", CUT, over))
    faults.start()
    cut.start()
    try:
        reader.join()
        assert sender.wait() == 0
        # As long as it goes on, however slowly. A broker that was just killed says nothing at all.
        done = 0
        while done < TASKS:
            done = until(120, f"more than {done} of {TASKS} are done", lambda: more_than(done))  # noqa: B023
    finally:
        faults.done.set()
        over.set()
        faults.join()
        cut.join()
    until(120, "nothing is held any more", lambda: not BROKER.ask("operator", "keys", "muster:unacked:*[!x]"))
    until(120, "all workers are back", lambda: BROKER.all_there(WORKERS))
    assert not faults.wrong, faults.wrong
    assert len(+faults.count) == 5, f"some fault never happened: {faults.count}"
    lines = [*sent]
    for host in WORKERS:
        lines += LAB.on(host, "cat", "/var/lib/drill/history").splitlines()
    events = [Event(kind, task, at, run) for kind, task, at, run in map(json.loads, lines)]
    verdict = judge(events, Counter(effects()))
    print(f"{verdict}; {dict(faults.count)}, server2 cut off for {CUT} s; {time.monotonic() - start:.0f} s")
    assert verdict.enqueued == TASKS
    assert verdict.started > TASKS, "no fault hit a task: this shows nothing"
    assert not (verdict.lost or verdict.double or verdict.overlapping or verdict.unknown)
