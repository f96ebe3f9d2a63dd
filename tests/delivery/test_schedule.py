"""Beat: two instances, one fires; what was missed is caught up once; no tick is run twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from celery_app.schedule import LAST, LEADER, Beat, tick_id
from tests.delivery.conftest import ROOT, RedisServer, Worker, until

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
DAILY: dict[str, Any] = {"name": "d", "task": "t.note", "args": ["d"], "crontab": "0 13 * * *"}


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


def test_leader_that_was_away_changes_nothing(redis_server: RedisServer) -> None:
    sent = Sent()
    one = beat(redis_server, sent, DAILY)
    one.tick(NOON)
    redis_server.client.set(LEADER, "another")
    one._remember("d", NOON + timedelta(days=9), NOON)
    assert redis_server.client.hget(LAST, "d") == NOON.isoformat()


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
