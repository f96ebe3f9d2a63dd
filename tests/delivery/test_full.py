"""A broker that is full: it refuses new tasks, says so, and loses none of those it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis
from kombu.exceptions import OperationalError

from tests.delivery.conftest import RedisServer, Worker, all_held, until

Start = Callable[..., Worker]


def test_nothing_is_lost_and_all_goes_on(app: Any, worker: Start, redis_server: RedisServer) -> None:
    client = redis_server.client
    client.config_set("maxmemory-policy", "noeviction")
    client.mset({"hold:a": 1, "hold:b": 1, "hold:retry": 1})
    one = worker("one", concurrency=2, max_deliveries=1).ready()
    running = [app.send_task("t.hold", [name]) for name in "ab"]
    until(lambda: client.llen("began") == 2, "the tasks began")
    waiting = [app.send_task("t.noop") for _ in range(50)]
    bad = app.send_task("t.typed", ["none", []])
    retried = app.send_task("t.hold", ["retry", True])
    client.config_set("maxmemory", 1)
    with pytest.raises((OperationalError, redis.RedisError), match="maxmemory"):
        app.send_task("t.noop")
    # It is full all the time, and what it holds is worked off nevertheless.
    client.delete("hold:a", "hold:b")
    assert [task.get(timeout=30) for task in running] == ["a", "b"]
    assert [task.get(timeout=30) for task in waiting] == [None] * 50
    until(lambda: bad.state == "FAILURE", "the bad one failed")
    assert "BadArguments" in repr(bad.result)
    until(lambda: one.said("the next attempt waits"), "a retry meets the full broker")
    client.delete("hold:retry")
    client.config_set("maxmemory", 0)
    assert retried.get(timeout=60) == "retry"
    until(lambda: not all_held(client) and not client.llen("default"), "nothing is held any more")
    assert app.send_task("t.note", ["on"]).get(timeout=30) == "on"


def test_worker_that_starts_works_it_off(app: Any, worker: Start, redis_server: RedisServer) -> None:
    """The usual way to a full broker: nobody took anything."""
    client = redis_server.client
    client.config_set("maxmemory-policy", "noeviction")
    waiting = [app.send_task("t.noop") for _ in range(50)]
    client.config_set("maxmemory", 1)
    one = worker("one").ready()
    assert [task.get(timeout=30) for task in waiting] == [None] * 50
    until(lambda: not all_held(client), "nothing is held any more")
    assert one.stop() == 0
