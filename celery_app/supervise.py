"""The worker's container: starts it, keeps its lease while it is well, ends it when it is not.

A worker is killed with all its processes when Redis was out of reach for two thirds of the lease, when its event loop
hangs, when this process was itself away (a laptop that slept), and when it takes nothing although there is something
to take. Then its next life gives back what it held. Others do so when there is none, after the lease.

While no work is wanted here (celery_app/laptop.py: by a laptop's agent, or as its server is drained) the worker ends
and this process stays. On a laptop it does not end either when the host slept or was out of range: it begins anew, and
no task is blamed for that.
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
from redis.backoff import NoBackoff
from redis.retry import Retry

from celery_app import lease
from celery_app.config import PRIORITIES, Settings, list_key
from celery_app.laptop import Agent, Want

PERIOD = 5.0
# The event loop writes every two seconds; while a worker starts there is no loop yet.
FRESH, STARTUP = 10.0, 120.0
UNWELL = 3
# How often it looks at what it is told; a laptop's agent has seconds before the host sleeps.
LOOK, LOOK_LAPTOP = 0.5, 0.25
logger = logging.getLogger("muster.supervise")


class Supervisor:
    """One worker and its lease."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.laptop = bool(settings.laptop)
        # A laptop is often out of range, and must not wait for Redis when its lid closes.
        hasty = {"socket_timeout": 2, "socket_connect_timeout": 2, "retry": Retry(NoBackoff(), 0)}
        self.client = lease.connect(settings, **(hasty if self.laptop else {}))
        folder = settings.laptop or settings.drain
        self.agent = Agent(Path(folder) if folder else None, settings.worker.rpartition("/")[2])
        # The container is healthy while both are fresh (roles/celery_worker): the loop turns, and the lease is good.
        self.heartbeat = Path(settings.heartbeat)
        self.alive = self.heartbeat.with_suffix(".alive")
        self.child: subprocess.Popen[bytes] | None = None
        self.told = threading.Event()
        # When what runs must have ended; nothing while the worker takes tasks.
        self.until: float | None = None
        self.asked: tuple[bool, Want] | None = None
        # Of the life that ended last: what it was at may be why; nothing of it is held any more.
        self.died, self.settled = True, False
        self.taken, self.progress_at = -1, 0.0

    def run(self) -> int:
        """Until the worker ends; the exit status. It also rests, and lives again."""
        signal.signal(signal.SIGTERM, self._tell)
        signal.signal(signal.SIGINT, self._tell)
        while not self.told.is_set():
            if not self.agent.want().work:
                self._rest()
            elif self._begin():
                reason = self._live()
                if reason:
                    logger.error("the worker was killed: %s", reason)
                # What is no fault of the worker's ends nothing on a laptop.
                if self.died or (reason and not self.laptop):
                    return UNWELL if reason else (self.child.returncode if self.child else 0) or 1
        self.agent.say(work=not self.settled, running=[])
        return 0

    def _tell(self, *_: Any) -> None:
        self.told.set()

    def _rest(self) -> None:
        """No work is wanted: the container is there and well, and holds nothing."""
        if not self.settled:
            self._end()
        self._fresh()
        self.agent.say(work=not self.settled, running=[])
        self.told.wait(LOOK_LAPTOP)

    def _begin(self) -> bool:
        """Take over from the former life, if Redis answers."""
        # A connection from before a rest may be of another network: to notice that would take seconds.
        self.client.connection_pool.disconnect()
        try:
            count = lease.restore(self.client, self.settings.worker, died=self.died)
            lease.renew(self.client, self.settings.worker, self.settings.lease, anew=True, guest=self.laptop)
        except redis.RedisError as error:
            logger.warning("waiting for Redis: %s", error)
            self.told.wait(1)
            return False
        logger.info("%s messages of a former life went back", count)
        self.heartbeat.unlink(missing_ok=True)
        self.alive.touch()
        self.died, self.settled = True, False
        self.until = self.asked = None
        self.child = subprocess.Popen(command(self.settings), start_new_session=True)
        return True

    def _live(self) -> str:
        """Until the worker has ended and all went back; why it was killed, if it was."""
        try:
            return self._watch()
        finally:
            self._kill()
            # Told to stop it hands back what still runs, and that is no fault of those tasks.
            self.died = self.died and self.until is None
            self._end()

    def _ending(self) -> bool:
        """Whether the worker takes nothing more; the time for what runs may only get shorter."""
        asked = (self.told.is_set(), self.agent.want())
        if asked != self.asked:
            self.asked, (told, want) = asked, asked
            limits = [self.settings.soft_shutdown] * told + [want.within] * (not want.work)
            if limits:
                if self.until is None and self.child:
                    self.child.terminate()
                end = time.monotonic() + min(limits)
                self.until = end if self.until is None else min(end, self.until)
        return self.until is not None

    def _away(self, reason: str) -> str:
        self.died = not self.laptop
        # Its connections may be of another network.
        self.client.connection_pool.disconnect()
        return reason

    def _watch(self) -> str:
        assert self.child
        started = renewed = time.monotonic()
        self.progress_at, last, due = started, now(), started + PERIOD
        while self.child.poll() is None:
            # What else would wake it: the end of the child (SIGCHLD has no handler), and being told.
            if self.told.is_set():
                time.sleep(0.2)
            else:
                self.told.wait(LOOK_LAPTOP if self.laptop else LOOK)
            gap, last = now() - last, now()
            if gap > self.settings.lease * 2 / 3:
                return self._away(f"this host was away for {gap:.0f} s")
            ending = self._ending()
            if self.until is not None and time.monotonic() > self.until:
                logger.warning("tasks still run after the time they had, and go back")
                return ""
            if self.agent.folder:
                self._say()
                if ending:
                    # Its event loop is over; the container is well.
                    self._fresh()
            if time.monotonic() < due:
                continue
            due = time.monotonic() + PERIOD
            state = self._state(started)
            if state is None and not ending:
                if time.monotonic() - renewed > self.settings.lease * 2 / 3:
                    # A laptop's owner goes first: it may simply get no processor for so long.
                    return self._away("its event loop hangs")
                continue
            try:
                if not lease.renew(self.client, self.settings.worker, self.settings.lease, guest=self.laptop):
                    return self._away("its lease was over")
                renewed = time.monotonic()
                self.alive.touch()
                for worker, count in lease.reap(self.client, self.settings.lease).items():
                    logger.warning("%s is gone; %s messages went back", worker, count)
                if state and not ending and self._stalled(state):
                    return f"it took nothing for {self.settings.stalled} s although there was something to take"
            except redis.RedisError as error:
                logger.warning("Redis does not answer: %s", error)
            if time.monotonic() - renewed > self.settings.lease * 2 / 3:
                return self._away("Redis was out of reach")
        return ""

    def _state(self, started: float) -> dict[str, Any] | None:
        """What the event loop last said; None when that is too long ago."""
        try:
            age = time.time() - self.heartbeat.stat().st_mtime
            return json.loads(self.heartbeat.read_text()) if age < FRESH else None
        except FileNotFoundError:
            return {} if time.monotonic() - started < STARTUP else None

    def _say(self) -> None:
        """What runs, as the event loop last told."""
        running: list[dict[str, str]] = []
        with contextlib.suppress(OSError, ValueError, KeyError):
            running = json.loads(self.heartbeat.read_text())["running"]
        self.agent.say(work=True, running=running)

    def _fresh(self) -> None:
        """What the container's health is told by."""
        self.heartbeat.touch()
        self.alive.touch()

    def _stalled(self, state: dict[str, Any]) -> bool:
        moment = time.monotonic()
        busy = state["active"] >= self.settings.concurrency
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
            lease.restore(self.client, self.settings.worker, died=self.died)
            lease.resign(self.client, self.settings.worker)
            self.settled = True
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
