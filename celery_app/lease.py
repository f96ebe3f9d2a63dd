"""Who is alive: leases in Redis, by Redis' clock. What a worker without one held goes back to its queue."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from typing import Any

import redis
from redis.backoff import ConstantBackoff
from redis.exceptions import BusyLoadingError
from redis.retry import Retry

from celery_app.config import HELD, Settings, list_key, step
from celery_app.hosts import LAPTOPS, SERVERS

LEASES, DEAD, CLAIM, COUNTS = "muster:leases", "muster:dead", "muster:claim:", "muster:counts"
# Renewed only while it lasts: a worker that was away must not come back as if nothing had been.
RENEW = """#!lua flags=allow-oom
local now = tonumber(redis.call('TIME')[1])
local until_ = redis.call('ZSCORE', KEYS[1], ARGV[1])
if ARGV[3] == '0' and (not until_ or tonumber(until_) <= now) then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
if ARGV[4] ~= '' then redis.call('ZADD', KEYS[2], now, ARGV[4]) end
return 1
"""
# Redis may be full; giving back takes no more than it frees.
RESTORE = """#!lua flags=allow-oom
if ARGV[4] ~= '' then
  local until_ = redis.call('ZSCORE', KEYS[5], ARGV[4])
  if until_ and tonumber(until_) > tonumber(redis.call('TIME')[1]) then return 0 end
end
redis.call('ZREM', KEYS[2], ARGV[1])
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('RPUSH', KEYS[3], ARGV[2])
if redis.call('HGET', KEYS[4], 'tag') == ARGV[1] and redis.call('HDEL', KEYS[4], 'begun') == 1 and ARGV[3] == '1' then
  redis.call('HINCRBY', KEYS[4], 'deaths', 1)
end
return 1
"""
OVER = """
local now = tonumber(redis.call('TIME')[1])
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)
"""
FORGET = """#!lua flags=allow-oom
local until_ = redis.call('ZSCORE', KEYS[1], ARGV[1])
if until_ and tonumber(until_) <= tonumber(redis.call('TIME')[1]) then return redis.call('ZREM', KEYS[1], ARGV[1]) end
return 0
"""
PASSING = [redis.ConnectionError, redis.TimeoutError, BusyLoadingError]
_connections: dict[int, redis.Redis] = {}


def connect(settings: Settings, **options: Any) -> redis.Redis:
    """A client of its own."""
    return redis.Redis.from_url(
        settings.url,
        **{"decode_responses": True, "socket_timeout": 5, "socket_connect_timeout": 5, **settings.tls, **options},
    )


def connection() -> redis.Redis:
    """This process' client; a forked child must not share its parent's."""
    pid = os.getpid()
    if pid not in _connections:
        _connections.clear()
        # A task does not fail because the broker starts anew; if it stays away the supervisor ends the worker.
        patience = Retry(ConstantBackoff(0.5), retries=120)
        _connections[pid] = connect(Settings.read(), socket_timeout=30, retry=patience, retry_on_error=PASSING)
    return _connections[pid]


def patiently(call: Callable[[Any], Any]) -> Any:
    """For what ends a task when it fails: the client's own retry leaves out a watched key, and a second cut."""
    client = connection()
    return client.get_retry().call_with_retry(lambda: call(client), lambda _: None)


def renew(client: redis.Redis, worker: str, seconds: float, *, anew: bool = False, guest: bool = False) -> bool:
    """Prolong the lease, or begin one `anew`; False when it is over. Of a `guest`'s host it says nothing (hosts.py)."""
    server = "" if guest else worker.partition("/")[0]
    return bool(client.eval(RENEW, 2, LEASES, SERVERS, worker, seconds, int(anew), server))


def resign(client: redis.Redis, worker: str) -> None:
    """End the lease; nothing may be held any more."""
    client.zrem(LEASES, worker)


def claim_key(task: object, retries: object) -> str:
    """Who may run this attempt of a task, whether that has begun, and how many died of it."""
    return f"{CLAIM}{task}:{retries or 0}"


def holders(client: redis.Redis, workers: str = "*") -> set[str]:
    """Who holds messages, of those that the pattern means."""
    keys = client.scan_iter(f"{HELD}{workers}", count=1000, _type="hash")
    return {key.removeprefix(HELD) for key in keys}


def restore(
    client: redis.Redis, worker: str, *, died: bool, keep: Collection[str] = (), unless_alive: bool = False
) -> int:
    """Give back what a dead worker held, or a living one but what it is at; each message in one step."""
    key, count = f"{HELD}{worker}", 0
    for tag, held in client.hgetall(key).items():
        if tag not in keep:
            count += give_back(client, key, tag, held, died=died, unless=worker if unless_alive else "")
    return count


def give_back(client: redis.Redis, key: str, tag: str, held: str, *, died: bool, unless: str = "") -> bool:
    """One message, to the end of its queue from which it is taken next, `unless` that worker has a lease.

    What had begun may have been why its worker or process `died`, and that is counted.
    """
    message, _, queue = json.loads(held)
    headers = message.setdefault("headers", {})
    headers["redelivered"] = True
    properties = message["properties"]
    properties.setdefault("delivery_info", {})["redelivered"] = True
    target = list_key(queue, step(properties.get("priority", properties["delivery_info"].get("priority"))))
    claim = claim_key(headers.get("id"), headers.get("retries"))
    keys = (key, f"{key}:index", target, claim, LEASES)
    return bool(client.eval(RESTORE, len(keys), *keys, tag, json.dumps(message), int(died), unless))


def reap(client: redis.Redis, seconds: float) -> dict[str, int]:
    """Give back what workers held whose lease is over; who they were, and how many messages each."""
    # After a restart of Redis no lease could be renewed for a while.
    if int(client.info("server")["uptime_in_seconds"]) <= seconds:
        return {}
    reaped: dict[str, int] = {}
    for worker in client.eval(OVER, 1, LEASES):
        # A laptop that is silent sleeps or is out of range: no fault of what it was at.
        died = not client.hexists(LAPTOPS, worker.partition("/")[0])
        # Others may reap it at the same moment, and it may itself come back: each step sees to that.
        reaped[worker] = restore(client, worker, died=died, unless_alive=True)
        client.eval(FORGET, 1, LEASES, worker)
    return reaped
