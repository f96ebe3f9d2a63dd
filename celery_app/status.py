"""What the queues hold and who works on what, for `playbooks/status.yml`: one JSON object.

Run it where the app's settings are: python -m celery_app.status
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import redis

PRIORITIES = {"critical": 0, "normal": 3, "low": 6, "batch": 9}
# How Kombu names the list of a priority; the highest has the queue's own name.
SEPARATOR = "\x06\x16"
BINDINGS, UNACKED, LEASES, DEAD = "_kombu.binding.", "muster:unacked:", "muster:leases", "muster:dead"
# Not queues of tasks: replies and events.
INTERNAL = ("celeryev", "celery.pidbox", "reply")


def connect(environ: Mapping[str, str] = os.environ) -> redis.Redis:
    """The broker, by the same settings that the app reads."""
    options: dict[str, Any] = {"decode_responses": True, "socket_timeout": 10}
    if path := environ.get("MUSTER_REDIS_PASSWORD_FILE"):
        options["password"] = Path(path).read_text().strip()
    if authority := environ.get("MUSTER_REDIS_CA"):
        options["ssl_ca_certs"] = authority
        options |= {
            name: environ[variable]
            for name, variable in (("ssl_certfile", "MUSTER_REDIS_CERT"), ("ssl_keyfile", "MUSTER_REDIS_KEY"))
            if environ.get(variable)
        }
    return redis.Redis.from_url(environ["MUSTER_REDIS_URL"], **options)


def queue_names(keys: Iterable[str]) -> list[str]:
    """Queues of tasks among the exchanges that workers and senders have declared."""
    names = {key.removeprefix(BINDINGS) for key in keys}
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
    leases = {str(name): float(until) - now for name, until in client.zrange(LEASES, 0, -1, withscores=True)}
    held = {
        key.removeprefix(UNACKED)
        for key in client.scan_iter(f"{UNACKED}*", count=1000)
        if not key.endswith((":index", ":mutex"))
    }
    queues = queue_names(client.scan_iter(f"{BINDINGS}*", count=1000))
    with client.pipeline(transaction=False) as pipe:
        for queue in queues:
            for step in PRIORITIES.values():
                pipe.llen(f"{queue}{SEPARATOR}{step}" if step else queue)
        pipe.hlen(DEAD)
        *lengths, dead = pipe.execute()
    rows = iter(lengths)
    return {
        "queues": {queue: {name: next(rows) for name in PRIORITIES} for queue in queues},
        "workers": {
            worker: {
                "lease": leases.get(worker),
                "tasks": [task_of(message) for message in client.hvals(UNACKED + worker)],
            }
            for worker in sorted(held | set(leases))
        },
        "dead": dead,
    }


def main() -> None:
    try:
        print(json.dumps(read(connect())))
    except redis.RedisError as error:
        raise SystemExit(f"the broker does not answer: {error}") from error


if __name__ == "__main__":
    main()
