"""Beat: two instances, one fires; what was missed is caught up once; no tick is run twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from celery_app.schedule import LAST, LEADER, TICK, TICKS, Beat, tick_id
from tests.delivery.conftest import ROOT, RedisServer, Worker, all_held, until

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
DAILY: dict[str, Any] = {"name": "d", "task": "t.note", "args": ["d"], "crontab": "0 13 * * *"}

DIES = """
import os, sys
from celery_app import schedule
send = schedule.send
def die(*given):
    if sys.argv[1] == "after":
        send(*given)
    os.kill(os.getpid(), 9)
schedule.send = die
schedule.main()
"""


class Sent(list[tuple[str, str]]):
    def __call__(self, entry: dict[str, Any], task: str) -> None:
        self.append((entry["name"], task))


def beat(server: RedisServer, sent: Sent, *entries: dict[str, Any]) -> Beat:
    return Beat(server.client, list(entries), sent, zone="UTC", name="test")


def test_one_leads_and_another_goes_on_without_repeating(redis_server: RedisServer) -> None:
    sent = Sent()
    one, two = beat(redis_server, sent, DAILY), beat(redis_server, sent, DAILY)
    for minutes in range(0, 120, 10):
        for instance in (one, two):
            instance.tick(NOON + timedelta(minutes=minutes))
    assert sent == [("d", tick_id("d", NOON + timedelta(hours=1)))]
    # The leader dies without a word: its lock runs out.
    redis_server.client.delete(LEADER)
    two.tick(NOON + timedelta(hours=3))
    one.tick(NOON + timedelta(hours=30))
    two.tick(NOON + timedelta(hours=30))
    assert [name for name, _ in sent] == ["d", "d"]


def test_missed_ticks_are_caught_up_once_or_skipped(redis_server: RedisServer) -> None:
    sent, skip = Sent(), {**DAILY, "name": "s", "catch_up": "skip"}
    beat(redis_server, sent, DAILY, skip).tick(NOON)
    redis_server.client.delete(LEADER)
    later = beat(redis_server, sent, DAILY, skip)
    for _ in range(3):
        later.tick(NOON + timedelta(days=5))
    assert sent == [("d", tick_id("d", NOON + timedelta(days=4, hours=1)))]


def ticks(server: RedisServer) -> dict[str, int]:
    return {key: int(value) for key, value in server.client.hgetall(TICKS).items()}


def test_every_time_is_counted_as_sent_late_or_missed(redis_server: RedisServer) -> None:
    sent, quarter = Sent(), {**DAILY, "crontab": "*/15 * * * *"}
    entries = (quarter, {**quarter, "name": "e", "crontab": None, "every": 900}, {**quarter, "name": "s"})
    entries[1].pop("crontab")
    entries[2]["catch_up"] = "skip"
    one = beat(redis_server, sent, *entries)
    for minutes in range(0, 31, 5):
        one.tick(NOON + timedelta(minutes=minutes))
    assert ticks(redis_server) == {"sent": 6}
    # Nobody looks for an hour: four times were due, the last is 5 minutes late.
    one.resign()
    two = beat(redis_server, sent, *entries)
    two.tick(NOON + timedelta(minutes=95))
    assert ticks(redis_server) == {"sent": 6, "late": 2, "missed": 3 + 3 + 4}
    two.tick(NOON + timedelta(minutes=105))
    assert ticks(redis_server) == {"sent": 9, "late": 2, "missed": 10}


def test_times_at_which_the_broker_refused_are_missed(redis_server: RedisServer) -> None:
    refusing = [True]

    class Full(Sent):
        def __call__(self, entry: dict[str, Any], task: str) -> None:
            if refusing:
                raise OSError("the broker is full")
            super().__call__(entry, task)

    sent = Full()
    one = beat(redis_server, sent, {**DAILY, "crontab": "*/15 * * * *"})
    for minutes in range(0, 65, 5):
        one.tick(NOON + timedelta(minutes=minutes))
    refusing.clear()
    one.tick(NOON + timedelta(minutes=65))
    assert ticks(redis_server) == {"late": 1, "missed": 3}
    # What is no time stops nothing.
    redis_server.client.set(TICK, "never")
    one.tick(NOON + timedelta(minutes=75))
    assert ticks(redis_server) == {"late": 1, "missed": 3, "sent": 1}


def test_an_entry_with_new_times_has_missed_none_of_them(redis_server: RedisServer) -> None:
    sent = Sent()
    one = beat(redis_server, sent, DAILY)
    for hours in range(4):
        one.tick(NOON + timedelta(hours=hours))
    assert ticks(redis_server) == {"sent": 1}
    redis_server.client.delete(LEADER)
    beat(redis_server, sent, {**DAILY, "crontab": "* * * * *"}).tick(NOON + timedelta(hours=3, seconds=2))
    assert ticks(redis_server) == {"sent": 2}


def test_leader_that_was_away_changes_nothing(redis_server: RedisServer) -> None:
    sent = Sent()
    one = beat(redis_server, sent, DAILY)
    one.tick(NOON)
    redis_server.client.set(LEADER, "another")
    one._remember("d", NOON + timedelta(days=9), NOON)
    assert redis_server.client.hget(LAST, "d") == NOON.isoformat()


def test_entry_that_cannot_be_sent_is_tried_again_and_stops_no_other(redis_server: RedisServer) -> None:
    refused = ["d"]

    class Full(Sent):
        def __call__(self, entry: dict[str, Any], task: str) -> None:
            if entry["name"] in refused:
                raise OSError("the broker is full")
            super().__call__(entry, task)

    sent = Full()
    one = beat(redis_server, sent, DAILY, {**DAILY, "name": "e"})
    one.tick(NOON)
    one.tick(NOON + timedelta(hours=1))
    assert [name for name, _ in sent] == ["e"]
    refused.clear()
    for seconds in range(3):
        one.tick(NOON + timedelta(hours=1, seconds=seconds))
    assert sent == [(name, tick_id(name, NOON + timedelta(hours=1))) for name in "ed"]


@pytest.mark.parametrize("order", ["before", "after"])
def test_killed_while_it_fires_the_tick_is_run_once(
    app: Any, worker: Callable[..., Worker], redis_server: RedisServer, tmp_path: Path, order: str
) -> None:
    """It dies before or after the broker has the task, and has not written down that it sent it."""
    schedule, redis = tmp_path / "schedule.json", redis_server.client
    schedule.write_text(json.dumps([{"name": "n", "task": "t.note", "args": ["n"], "crontab": "0 0 * * *"}]))
    due = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    redis.hset(LAST, "n", (due - timedelta(hours=1)).isoformat())
    one = worker("one").ready()
    environment = {**one.environment, "MUSTER_SCHEDULE": str(schedule), "MUSTER_HEARTBEAT": "", "MUSTER_WORKER": "a"}
    dies = [sys.executable, "-c", DIES, order]
    assert subprocess.run(dies, cwd=ROOT, env=environment, timeout=60, check=False).returncode == -signal.SIGKILL
    assert redis.hget(LAST, "n") < due.isoformat()
    beat = subprocess.Popen([sys.executable, "-m", "celery_app.schedule"], cwd=ROOT, env=environment)
    try:
        until(lambda: redis.hget(LAST, "n") == due.isoformat(), "the next one fired")
        assert app.AsyncResult(tick_id("n", due)).get(timeout=30) == "n"
        if order == "after":
            until(lambda: redis.hget("muster:counts", "duplicate|t.note") == "1", "the second message is dropped")
        until(lambda: not all_held(redis) and not redis.llen("default"), "nothing is left")
        assert redis.lrange("notes", 0, -1) == ["n"]
    finally:
        beat.kill()
        beat.wait()


def test_two_processes_first_killed(
    app: Any, worker: Callable[..., Worker], redis_server: RedisServer, tmp_path: Path
) -> None:
    schedule = tmp_path / "schedule.json"
    schedule.write_text(json.dumps([{"name": "n", "task": "t.note", "args": ["n"], "every": 1, "queue": "default"}]))
    one, redis = worker("one").ready(), redis_server.client
    environment = {**one.environment, "MUSTER_SCHEDULE": str(schedule), "MUSTER_HEARTBEAT": ""}
    command = [sys.executable, "-m", "celery_app.schedule"]
    both = [
        subprocess.Popen(command, cwd=ROOT, env={**environment, "MUSTER_WORKER": name}, stderr=subprocess.DEVNULL)
        for name in ("a", "b")
    ]
    try:
        until(lambda: redis.llen("notes") >= 3, "it fires")
        leader = "ab".index(str(redis.get(LEADER))[0])
        both[leader].kill()
        until(lambda: str(redis.get(LEADER) or "-")[0] == "ba"[leader], "the other leads", 30)
        seen = redis.llen("notes")
        until(lambda: redis.llen("notes") >= seen + 3, "it goes on")
        # Each tick has an id of its own: had one run twice, there were more notes than effects.
        begun = redis.llen("notes")
        until(lambda: int(redis.get("effect:n") or 0) >= begun, "each tick has its effect")
    finally:
        for process in both:
            process.kill()
            process.wait()
