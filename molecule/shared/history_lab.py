"""Tasks of the history checker that come while something is done to a lab, and what became of them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from celery_lab import Broker
from ray_lab import Lab, until

from tests.history.checker import ENQUEUED, Event, Verdict, judge

BEAT = "celery_beat-beat-1"
# Sends tasks that it is told the ids of. Whoever is cut sends the same ones again.
SEND = """
import sys, time
from celery_app import app
for task in sys.argv[2:]:
    app.send_task("drill.step", [float(sys.argv[1])], task_id=task, queue="default")
    time.sleep(0.3)
"""


def events_of(lines: Iterable[str]) -> list[Event]:
    """What a worker, or who sent the tasks, wrote down."""
    return [Event(*json.loads(line)) for line in lines if line.startswith("[")]


class Load(threading.Thread):
    """Tasks of Celery that come all the time, from an application that keeps sending one until the broker has it."""

    def __init__(self, lab: Lab, seconds: float) -> None:
        super().__init__(daemon=True)
        self.lab, self.seconds, self.enough, self.sent = lab, seconds, threading.Event(), list[Event]()

    def run(self) -> None:
        while not self.enough.is_set():
            tasks = [str(uuid.uuid4()) for _ in range(8)]
            self.sent += [Event(ENQUEUED, task, time.time()) for task in tasks]
            while not self.send(tasks):
                time.sleep(1)

    def send(self, tasks: list[str]) -> bool:
        command = ["docker", "exec", "-i", f"{self.lab.name}-head", "docker", "exec", "-i", BEAT]
        words = ["timeout", "60", "python3", "-", str(self.seconds), *tasks]
        return subprocess.run([*command, *words], input=SEND, text=True, capture_output=True).returncode == 0


class History:
    """What the tasks of a lab wrote down on these hosts."""

    def __init__(self, lab: Lab, broker: Broker, hosts: Sequence[str]) -> None:
        self.lab, self.broker, self.hosts = lab, broker, hosts

    def events(self, host: str) -> list[Event]:
        """What those on a host wrote down."""
        return events_of(self.lab.on(host, "cat", "/var/lib/drill/history", check=False).splitlines())

    def all(self) -> list[Event]:
        """What all of them wrote down."""
        return [event for host in self.hosts for event in self.events(host)]

    def started(self, host: str) -> list[float]:
        """When tasks began there."""
        return [event.at for event in self.events(host) if event.kind == "started"]

    def effects(self) -> Counter[str]:
        """How often each task has had its effect."""
        said = self.broker.ask("operator", "lrange", "drill:effects", "0", "-1")
        return Counter(part for part in said.splitlines() if len(part) == 36)

    def _more_than(self, number: int) -> int:
        count = len(self.effects())
        return count if count > number else 0

    def forget(self) -> None:
        """What was done before is not counted."""
        self.broker.ask("operator", "del", "drill:effects")
        for host in self.hosts:
            self.lab.on(host, "rm", "-f", "/var/lib/drill/history")

    def wait(self, count: int, patience: float = 120) -> None:
        """Until so many tasks are done: as long as it goes on, however slowly."""
        done = 0
        while done < count:
            done = until(patience, f"more than {done} of {count} are done", lambda: self._more_than(done))  # noqa: B023

    def judged(self, sent: Iterable[Event]) -> Verdict:
        """What became of all that was sent, once nobody holds anything any more."""
        until(120, "nothing is held any more", lambda: not self.broker.ask("operator", "keys", "muster:unacked:*[!x]"))
        return judge([*sent, *self.all()], self.effects())

    @contextmanager
    def under_load(self, seconds: float) -> Iterator[Load]:
        """At the end all that was sent has been done, once."""
        self.forget()
        load = Load(self.lab, seconds)
        load.start()
        try:
            until(60, "tasks run everywhere", lambda: all(self.started(host) for host in self.hosts))
            yield load
        finally:
            load.enough.set()
            load.join()
        self.wait(len({event.task for event in load.sent}))
        verdict = self.judged(load.sent)
        print(verdict)
        assert not (verdict.lost or verdict.double or verdict.overlapping or verdict.unknown)
