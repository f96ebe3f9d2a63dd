"""A host that has left: what it held is given to others, and nothing of it stays in the broker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from celery_app.hosts import LAPTOPS, SERVERS
from celery_app.lease import LEASES
from tests.delivery.conftest import ROOT, RedisServer, Worker, until


def forget(server: RedisServer, host: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-m", "celery_app.forget", host],
        env={**os.environ, "MUSTER_REDIS_URL": server.url},
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout))


def test_what_it_held_goes_back_at_once(redis_server: RedisServer, app: Any, worker: Callable[..., Worker]) -> None:
    client = redis_server.client
    gone = worker("gone", lease=600).ready()
    app.send_task("t.gate", ["never"], task_id="held")
    until(lambda: client.hlen(f"muster:unacked:{gone.name}"), "it is held")
    gone.kill()
    # A cut leaves Kombu's lock, which is no message and nobody's.
    client.set(f"muster:unacked:{gone.name}:mutex", "x", ex=300)
    client.hset(LAPTOPS, "gone", "{}")
    worker("gone2").ready()
    client.hset(LAPTOPS, "gone2", "{}")
    assert forget(redis_server, "gone")["back"] == 1
    # Its lease would have lasted for ten minutes.
    until(lambda: client.hlen("muster:unacked:gone2/default"), "another has it")
    assert client.hkeys(LAPTOPS) == ["gone2"] and client.zrange(LEASES, 0, -1) == ["gone2/default"]
    assert "gone" not in client.zrange(SERVERS, 0, -1)
    assert not client.exists(f"muster:unacked:{gone.name}", f"muster:unacked:{gone.name}:index")
    assert forget(redis_server, "gone") == {"back": 0, "gone": 0}
