"""Reaping: by several at once, and of a worker that comes back meanwhile."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from celery_app import lease
from tests.delivery.conftest import RedisServer

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
