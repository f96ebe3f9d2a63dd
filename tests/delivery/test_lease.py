"""Leases and what hangs on them: reaping, taking; and `once`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from kombu import Connection, Queue
from kombu.transport import TRANSPORT_ALIASES

from celery_app import lease
from celery_app.task import once
from tests.delivery.conftest import RedisServer, Worker, until

HELD = "muster:unacked:gone"


@pytest.fixture
def client(redis_server: RedisServer) -> redis.Redis:
    """With a worker whose lease is over, and what it held."""
    for number in range(200):
        message = {"headers": {"id": str(number)}, "properties": {"delivery_tag": f"t{number}"}}
        redis_server.client.hset(HELD, f"t{number}", json.dumps([message, "", "default"]))
    redis_server.client.zadd(lease.LEASES, {"gone": 1})
    return redis_server.client


def test_several_at_once_give_back_each_message_once(client: redis.Redis) -> None:
    with ThreadPoolExecutor(4) as threads:
        reaped = list(threads.map(lambda _: lease.reap(client, -1), range(4)))
    assert sum(one.get("gone", 0) for one in reaped) == 200
    assert client.llen("default") == 200
    assert not client.exists(HELD, lease.LEASES)


def test_what_a_worker_that_came_back_holds_stays_its_own(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    give_back, held = lease.give_back, client.hlen(HELD)

    def comes_back(*args: object, **options: object) -> bool:
        lease.renew(client, "gone", 30, anew=True)
        return give_back(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(lease, "give_back", comes_back)
    assert lease.reap(client, -1) == {"gone": 0}
    assert client.hlen(HELD) == held
    assert client.zscore(lease.LEASES, "gone")


def test_a_lease_that_is_over_is_not_renewed(redis_server: RedisServer) -> None:
    client = redis_server.client
    assert not lease.renew(client, "w", 30)
    assert lease.renew(client, "w", 30, anew=True)
    assert lease.renew(client, "w", 30)
    client.zadd(lease.LEASES, {"w": 1})
    assert not lease.renew(client, "w", 30)
    assert client.zscore(lease.LEASES, "w") == 1


def test_without_a_lease_nothing_is_taken(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRANSPORT_ALIASES, "muster", "celery_app.transport:Transport")
    client, queue, taken = redis_server.client, Queue("default", routing_key="default"), list[object]()
    options = {"fence": "w", "unacked_key": "muster:unacked:w", "unacked_index_key": "muster:unacked:w:index"}

    def look(connection: Connection) -> bool:
        for _ in range(20):
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=0.1)
        return bool(taken)

    with (
        Connection(redis_server.url.replace("redis:", "muster:"), transport_options=options) as connection,
        connection.Consumer([queue], callbacks=[lambda body, message: taken.append(body)]),
    ):
        connection.Producer().publish({"a": 1}, routing_key="default", exchange="")
        assert not look(connection)
        client.zadd(lease.LEASES, {"w": 1})
        assert not look(connection)
        assert client.llen("default") == 1
        lease.renew(client, "w", 30, anew=True)
        assert look(connection)
        assert taken == [{"a": 1}]


def test_a_task_longer_than_the_lease_runs_once(
    app: Any, worker: Callable[..., Worker], redis_server: RedisServer
) -> None:
    one, two, found = worker("one").ready(), worker("two").ready(), redis_server.client
    held = app.send_task("t.gate", ["x"])
    until(lambda: found.llen("began") == 1, "the task began")
    begin = found.time()[0]
    until(lambda: found.time()[0] > begin + 18, "the lease, were it not renewed, is over")
    found.set("open:x", 1)
    assert held.get(timeout=30) == "x"
    assert found.lrange("began", 0, -1) == ["x"]
    assert (one.process.poll(), two.process.poll()) == (None, None)


def test_a_task_that_has_its_result_does_not_run_again(
    app: Any, worker: Callable[..., Worker], redis_server: RedisServer
) -> None:
    found = redis_server.client
    first = app.send_task("t.note", ["a"])
    message = json.loads(found.lindex("default", 0))
    worker(concurrency=1)
    assert first.get(timeout=60) == "a"
    message["properties"]["delivery_info"]["redelivered"] = True
    found.rpush("default", json.dumps(message))
    app.send_task("t.note", ["z"]).get(timeout=60)
    assert found.lrange("notes", 0, -1) == ["a", "z"]


def test_an_effect_by_once_is_done_once(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSTER_REDIS_URL", redis_server.url)
    monkeypatch.setattr(lease, "_connections", {})
    with ThreadPoolExecutor(8) as threads:
        done = list(threads.map(lambda _: once("k", lambda pipe: pipe.incr("n")), range(8)))
    assert sorted(done) == [False] * 7 + [True]
    assert redis_server.client.get("n") == "1"


def test_what_is_held_and_nobody_knows_goes_back(
    app: Any, worker: Callable[..., Worker], redis_server: RedisServer
) -> None:
    """As after an answer that was lost; what the worker does have stays its own."""
    one, client = worker("one", lease=12).ready(), redis_server.client
    running = app.send_task("t.gate", ["x"])
    until(lambda: client.llen("began") == 1, "the task began")
    lost = app.send_task("t.note", ["lost"], queue="elsewhere")
    message = json.loads(client.rpop("elsewhere"))
    client.hset(
        f"muster:unacked:{one.name}", message["properties"]["delivery_tag"], json.dumps([message, "", "default"])
    )
    assert lost.get(timeout=60) == "lost"
    client.set("open:x", 1)
    assert running.get(timeout=30) == "x"
    assert client.lrange("began", 0, -1) == ["x"]
