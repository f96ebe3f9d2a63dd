"""Beat: sends what is due by MUSTER_SCHEDULE. Any number of instances may run; one at a time fires.

RedBeat (2.4.2; its source was read) is not used: it locks, but a tick's task has a random id, so that two leaders at a
change of leader would do the work twice, its entries have no zone of their own, and what becomes of missed ticks cannot
be said per entry. Here the id follows from name and time: whoever sends it, and however often, the workers run it once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis

from celery_app.config import PRIORITIES, Settings
from celery_app.due import latest, times
from celery_app.lease import connect

LEADER, LAST, TICK = "muster:beat:leader", "muster:beat:last", "muster:beat:tick"
# Hash: what became of the times at which something was due, and how many they are.
TICKS, OUTCOMES = "muster:beat:ticks", ("sent", "late", "missed")
# The container is healthy while it is fresh (roles/celery_beat).
ALIVE = Path("/tmp/muster-beat")
TERM = 15000
# Later than this a tick counts as missed.
MISSED = 60.0
# Only the leader writes; one that was away and does not know it yet changes nothing.
LEAD = """
local leader = redis.call('GET', KEYS[1])
if leader and leader ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
REMEMBER = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] ~= '' then redis.call('HSET', KEYS[2], ARGV[2], ARGV[3]) end
redis.call('SET', KEYS[3], ARGV[4])
for i = 5, #ARGV, 2 do redis.call('HINCRBY', KEYS[4], ARGV[i], ARGV[i + 1]) end
return 1
"""
RESIGN = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
logger = logging.getLogger("muster.schedule")
Send = Callable[[dict[str, Any], str], None]


def tick_id(name: str, due: datetime) -> str:
    """The id of the task that a tick sends, the same for whoever sends it."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"muster:{name}:{due.isoformat()}"))


class Beat:
    """One instance."""

    def __init__(self, client: redis.Redis, entries: list[dict[str, Any]], send: Send, *, zone: str, name: str) -> None:
        self.client, self.entries, self.send, self.zone = client, entries, send, zone
        self.token = f"{name} {uuid.uuid4()}"
        # Up to where an entry was looked at and found not due: a yearly one is not searched for a year each second.
        self.seen: dict[str, datetime] = {}

    def tick(self, now: datetime) -> int:
        """Send what is due if this instance leads; how many were sent."""
        if not self.client.eval(LEAD, 1, LEADER, self.token, TERM):
            self.seen.clear()
            return 0
        last, sent = self.client.hgetall(LAST), 0
        looked = self._looked()
        for entry in self.entries:
            try:
                sent += self._entry(entry, last.get(entry["name"]), looked, now)
            except Exception:
                # It is tried again at the next look, and the others do not wait for it.
                logger.exception("%s could not be sent", entry["name"])
        self._remember("", now, now)
        return sent

    def _looked(self) -> datetime:
        """When somebody last looked; whoever has the app's login may write there what is no time."""
        try:
            return datetime.fromtimestamp(float(self.client.get(TICK) or 0), UTC)
        except (ValueError, OverflowError):
            return datetime.fromtimestamp(0, UTC)

    def _entry(self, entry: dict[str, Any], last: str | None, looked: datetime, now: datetime) -> int:
        name = entry["name"]
        if last is None:
            # New: what was due before it was written down is not missed.
            self._remember(name, now, now)
            return 0
        done = datetime.fromisoformat(last)
        due = latest(entry, max(done, self.seen.get(name, done)), now, self.zone)
        if due is None:
            self.seen[name] = now
            return 0
        late = (now - due).total_seconds()
        wanted = late <= MISSED or entry.get("catch_up", "once") == "once"
        if wanted:
            self.send(entry, tick_id(name, due))
        logger.info("%s of %s %s", name, due.isoformat(), "sent" if wanted else f"skipped, {late:.0f} s late")
        # However many times were due since somebody looked, the last one stands for all. An entry that was given other
        # times has missed none of them before.
        missed = times(entry, max(done, self.seen.get(name, looked)), due, self.zone) - int(wanted)
        counted = {"sent": int(wanted and late <= MISSED), "late": int(wanted and late > MISSED), "missed": missed}
        self._remember(name, due, now, counted)
        return int(wanted)

    def _remember(self, name: str, due: datetime, now: datetime, counted: Mapping[str, int] | None = None) -> None:
        values: list[Any] = [self.token, name, due.isoformat(), now.timestamp()]
        for outcome, number in (counted or {}).items():
            values += [outcome, number] if number > 0 else []
        self.client.eval(REMEMBER, 4, LEADER, LAST, TICK, TICKS, *values)

    def resign(self) -> None:
        """Let another instance go on at once."""
        self.client.eval(RESIGN, 1, LEADER, self.token)


def send(entry: dict[str, Any], task_id: str) -> None:
    """To its queue, or where the task's module belongs."""
    from celery_app import app

    options = {"queue": entry["queue"]} if entry.get("queue") else {}
    priority = PRIORITIES[entry.get("priority") or "normal"]
    app.send_task(
        entry["task"],
        entry.get("args"),
        entry.get("kwargs"),
        task_id=task_id,
        priority=priority,
        retry=False,
        **options,
    )


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    settings, told = Settings.read(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    entries = json.loads(Path(settings.schedule).read_text()) if settings.schedule else []
    name = settings.worker or os.uname().nodename
    beat = Beat(connect(settings), entries, send, zone=settings.timezone, name=name)
    while not told.is_set():
        try:
            beat.tick(datetime.now(UTC))
            ALIVE.touch()
        except Exception:
            # The broker is away.
            logger.exception("a look at the schedule failed")
        told.wait(1)
    with contextlib.suppress(redis.RedisError):
        beat.resign()
    return 0


if __name__ == "__main__":
    sys.exit(main())
