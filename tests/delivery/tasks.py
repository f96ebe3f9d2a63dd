"""Tasks for these tests. What they do is written to Redis by plain commands, not by the code under test."""

from __future__ import annotations

import os
import time

import redis

from celery_app import app
from celery_app.config import Settings
from celery_app.lease import connection
from celery_app.task import once


def client() -> redis.Redis:
    settings = Settings.read()
    return redis.Redis.from_url(settings.url, decode_responses=True, **settings.tls)


@app.task(bind=True, name="t.note")
def note(self, text: str) -> str:  # type: ignore[no-untyped-def]
    connection().rpush("notes", text)
    once(self.request.id, lambda pipe: pipe.incr(f"effect:{text}"))
    return text


def _open(found: redis.Redis, text: str) -> bool:
    try:
        return bool(found.exists(f"open:{text}"))
    except redis.RedisError:
        return False


@app.task(name="t.gate")
def gate(text: str) -> str:
    """Says that it began and waits until it may end, at most a minute."""
    found = client()
    found.rpush("began", text)
    deadline = time.monotonic() + 60
    while not _open(found, text) and time.monotonic() < deadline:
        time.sleep(0.05)
    found.rpush("ended", text)
    return text


@app.task(name="t.die")
def die() -> None:
    client().incr("deaths")
    os.kill(os.getpid(), 9)


@app.task(name="t.shaky", autoretry_for=(OSError,), retry_backoff=1, retry_jitter=False, max_retries=2)
def shaky(good_at: int) -> int:
    times = int(client().incr("tries"))
    client().rpush("tries_at", time.time())
    if times < good_at:
        raise OSError("not yet")
    return times


@app.task(name="t.typed")
def typed(number: int, where: list[str]) -> int:
    client().incr("typed")
    return number + len(where)


@app.task(name="t.noop")
def noop() -> None:
    pass


@app.task(bind=True, name="t.steps")
def steps(self, count: int) -> int:  # type: ignore[no-untyped-def]
    """Each step is shown and waits until it may end."""
    for step in range(1, count + 1):
        self.update_state(state="PROGRESS", meta={"done": step})
        deadline = time.monotonic() + 60
        while not _open(client(), str(step)) and time.monotonic() < deadline:
            time.sleep(0.05)
    return count


@app.task(name="t.hold", autoretry_for=(OSError,), retry_backoff=1, retry_jitter=False)
def hold(text: str, fail: bool = False) -> str:
    """As a gate, but writes nothing after it began: runs, or fails, as long as `hold:text` is there."""
    found = client()
    if fail and found.exists(f"hold:{text}"):
        raise OSError("held")
    if not fail:
        found.rpush("began", text)
    while found.exists(f"hold:{text}"):
        time.sleep(0.05)
    return text
