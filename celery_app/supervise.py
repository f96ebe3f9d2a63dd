"""The worker's container: starts it, keeps its lease while it is well, ends it when it is not.

A worker is killed with all its processes when Redis was out of reach for two thirds of the lease, when its event loop
hangs, when this process was itself away (a laptop that slept), and when it takes nothing although there is something
to take. Then its next life gives back what it held. Others do so when there is none, after the lease.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import redis

from celery_app import lease
from celery_app.config import PRIORITIES, Settings, list_key

PERIOD = 5.0
# The event loop writes every two seconds; while a worker starts there is no loop yet.
FRESH, STARTUP = 10.0, 120.0
UNWELL = 3
logger = logging.getLogger("muster.supervise")


class Supervisor:
    """One worker and its lease."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.client = lease.connect(settings)
        # The container is healthy while both are fresh (roles/celery_worker): the loop turns, and the lease is good.
        self.heartbeat = Path(settings.heartbeat)
        self.alive = self.heartbeat.with_suffix(".alive")
        self.child: subprocess.Popen[bytes] | None = None
        self.told = threading.Event()
        self.told_at = 0.0
        self.taken, self.progress_at = -1, 0.0

    def run(self) -> int:
        """Until the worker ends; the exit status."""
        signal.signal(signal.SIGTERM, self._tell)
        signal.signal(signal.SIGINT, self._tell)
        if not self._begin():
            return 0
        reason = ""
        try:
            reason = self._watch()
        finally:
            self._kill()
            self._end()
        if reason:
            logger.error("the worker was killed: %s", reason)
            return UNWELL
        return 0 if self.told.is_set() else (self.child.returncode if self.child else 0) or 1

    def _tell(self, *_: Any) -> None:
        self.told.set()

    def _begin(self) -> bool:
        """Take over from the former life as soon as Redis answers."""
        while not self.told.is_set():
            try:
                count = lease.restore(self.client, self.settings.worker, died=True)
                lease.renew(self.client, self.settings.worker, self.settings.lease, anew=True)
            except redis.RedisError as error:
                logger.warning("waiting for Redis: %s", error)
                self.told.wait(1)
                continue
            logger.info("%s messages of a former life went back", count)
            self.heartbeat.unlink(missing_ok=True)
            self.alive.touch()
            self.child = subprocess.Popen(command(self.settings), start_new_session=True)
            return True
        return False

    def _watch(self) -> str:
        assert self.child
        started = renewed = time.monotonic()
        self.progress_at, last, due = started, now(), started + PERIOD
        while self.child.poll() is None:
            # What else would wake it: the end of the child (SIGCHLD has no handler), and being told.
            if self.told.is_set():
                time.sleep(0.2)
            else:
                self.told.wait(0.5)
            gap, last = now() - last, now()
            if gap > self.settings.lease * 2 / 3:
                return f"this host was away for {gap:.0f} s"
            if self.told.is_set():
                if not self.told_at:
                    self.told_at = time.monotonic()
                    self.child.terminate()
                elif time.monotonic() - self.told_at > self.settings.soft_shutdown:
                    logger.warning("tasks still run after %s s and go back", self.settings.soft_shutdown)
                    return ""
            if time.monotonic() < due:
                continue
            due = time.monotonic() + PERIOD
            state = self._state(started)
            if state is None and not self.told.is_set():
                if time.monotonic() - renewed > self.settings.lease * 2 / 3:
                    return "its event loop hangs"
                continue
            try:
                if not lease.renew(self.client, self.settings.worker, self.settings.lease):
                    return "its lease was over"
                renewed = time.monotonic()
                self.alive.touch()
                for worker, count in lease.reap(self.client, self.settings.lease).items():
                    logger.warning("%s is gone; %s messages went back", worker, count)
                if state and self._stalled(state):
                    return f"it took nothing for {self.settings.stalled} s although there was something to take"
            except redis.RedisError as error:
                logger.warning("Redis does not answer: %s", error)
            if time.monotonic() - renewed > self.settings.lease * 2 / 3:
                return "Redis was out of reach"
        return ""

    def _state(self, started: float) -> dict[str, int] | None:
        """What the event loop last said; None when that is too long ago."""
        try:
            age = time.time() - self.heartbeat.stat().st_mtime
            return json.loads(self.heartbeat.read_text()) if age < FRESH else None
        except FileNotFoundError:
            return {} if time.monotonic() - started < STARTUP else None

    def _stalled(self, state: dict[str, int]) -> bool:
        moment = time.monotonic()
        busy = state["active"] >= self.settings.concurrency or self.told.is_set()
        if busy or state["taken"] != self.taken or not self._waiting():
            self.taken, self.progress_at = state["taken"], moment
        return moment - self.progress_at > self.settings.stalled

    def _waiting(self) -> int:
        with self.client.pipeline(transaction=False) as pipe:
            for queue in self.settings.served:
                for priority in PRIORITIES.values():
                    pipe.llen(list_key(queue, priority))
            return sum(pipe.execute())

    def _kill(self) -> None:
        if self.child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()

    def _end(self) -> None:
        """Nothing runs any more: give all back and say so."""
        try:
            # Told to stop it hands back what still runs, and that is no fault of those tasks.
            lease.restore(self.client, self.settings.worker, died=not self.told.is_set())
            lease.resign(self.client, self.settings.worker)
        except redis.RedisError as error:
            logger.warning("what it held goes back when Redis answers: %s", error)


def now() -> float:
    """A clock that goes on while the host sleeps and that nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def command(settings: Settings) -> list[str]:
    """How the worker is started."""
    host, _, name = settings.worker.rpartition("/")
    return [
        *(sys.executable, "-m", "celery", "--app", "celery_app", "worker", "--loglevel", "INFO"),
        *("--hostname", f"{name}@{host or 'localhost'}", "--queues", ",".join(settings.served)),
        *("--pool", "prefork", "-O", "fair", "--without-gossip", "--without-mingle"),
    ]


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    os.environ.setdefault("MUSTER_WORKER", f"{os.uname().nodename}/worker")
    os.environ.setdefault("MUSTER_HEARTBEAT", "/tmp/muster-worker")
    settings = Settings.read()
    return Supervisor(settings).run()


if __name__ == "__main__":
    sys.exit(main())
