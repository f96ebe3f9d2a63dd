"""What the queues hold, who works on what and how the hosts are, for the screens of `muster`: one JSON object.

Run it where the app's settings are: python -m celery_app.status
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import redis

from celery_app.config import HELD, PRIORITIES, Settings, list_key
from celery_app.hosts import DRAINED, LAPTOPS, SERVERS, described
from celery_app.lease import DEAD, LEASES, connect, holders

BINDINGS = "_kombu.binding."
QUEUES = ("default", "data", "ml")
# Not queues of tasks: replies and events.
INTERNAL = ("celeryev", "celery.pidbox", "reply")


def queue_names(keys: Iterable[str]) -> list[str]:
    """Our queues, which hold tasks before any worker declared them, and others that somebody did declare."""
    names = {*QUEUES, *(key.removeprefix(BINDINGS) for key in keys)}
    return sorted(name for name in names if not any(part in name for part in INTERNAL))


def task_of(message: str) -> dict[str, str]:
    """Name, id and queue of a task in the form in which Kombu keeps what a worker holds."""
    content, _, queue = json.loads(message)
    headers = content.get("headers") or {}
    return {"task": str(headers.get("task", "?")), "id": str(headers.get("id", "?")), "queue": str(queue)}


def read(client: redis.Redis) -> dict[str, Any]:
    """One look at everything; not one moment, but close."""
    seconds, micros = client.time()
    now = seconds + micros / 1e6
    leases = {str(name): float(until) for name, until in client.zrange(LEASES, 0, -1, withscores=True)}
    queues = queue_names(client.scan_iter(f"{BINDINGS}*", count=1000))
    with client.pipeline(transaction=False) as pipe:
        for queue in queues:
            for step in PRIORITIES.values():
                pipe.llen(list_key(queue, step))
        pipe.hlen(DEAD)
        *lengths, dead = pipe.execute()
    rows = iter(lengths)
    workers: dict[str, dict[str, Any]] = {
        worker: {
            "lease": leases[worker] - now if worker in leases else None,
            "tasks": [task_of(message) for message in client.hvals(HELD + worker)],
        }
        for worker in sorted(holders(client) | set(leases))
    }
    heard = dict(client.zrange(SERVERS, 0, -1, withscores=True))
    hosts = described(client.hgetall(LAPTOPS), heard, leases, now, client.hgetall(DRAINED))
    for name, host in hosts.items():
        host["tasks"] = [
            task for worker, about in workers.items() if worker.partition("/")[0] == name for task in about["tasks"]
        ]
    return {
        "now": now,
        "queues": {queue: {name: next(rows) for name in PRIORITIES} for queue in queues},
        "workers": workers,
        "hosts": hosts,
        "dead": dead,
    }


def main() -> None:
    try:
        # A name that is no text hides no other.
        print(json.dumps(read(connect(Settings.read(), encoding_errors="replace"))))
    except redis.RedisError as error:
        raise SystemExit(f"the broker does not answer: {error}") from error


if __name__ == "__main__":
    main()
