"""How hosts are, from a real broker: what `muster laptops` and the figures are made of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from celery_app import lease
from celery_app.hosts import LAPTOPS, SERVERS
from tests.delivery.conftest import ROOT, RedisServer, Worker, until


def look(server: RedisServer) -> dict[str, Any]:
    """What `python -m celery_app.status` says."""
    done = subprocess.run(
        [sys.executable, "-m", "celery_app.status"],
        env={**os.environ, "MUSTER_REDIS_URL": server.url},
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout))


def report(server: RedisServer, name: str, state: str = "ready", ago: float = 0, **more: Any) -> None:
    at = float(server.client.time()[0]) - ago
    said = {"state": state, "why": "as said", "since": at - 60, "at": at, **more}
    server.client.hset(LAPTOPS, name, json.dumps(said))


def test_laptops_servers_and_what_they_hold(redis_server: RedisServer, app: Any, worker: Callable[..., Worker]) -> None:
    one = worker("one").ready()
    app.send_task("t.gate", ["x"], task_id="held")
    report(redis_server, "laptop1", battery=55, plugged=True, lid="open", address="10.0.0.85")
    report(redis_server, "laptop2", "asleep", 9_000)
    report(redis_server, "laptop3", ago=40)
    report(redis_server, "laptop4", ago=15 * 86_400)
    # Whoever has the app's login may write there.
    redis_server.client.hset(LAPTOPS, "laptop5", "no report")
    redis_server.client.hset(LAPTOPS, b"\xff", "no name")
    redis_server.client.zadd(SERVERS, {"server9": float(redis_server.client.time()[0]) - 70})
    until(lambda: look(redis_server)["hosts"]["one"]["tasks"], "it works")
    found = look(redis_server)
    hosts = found["hosts"]
    assert {name: (host["kind"], host["state"]) for name, host in hosts.items() if name.isascii()} == {
        "laptop1": ("laptop", "ready"),
        "laptop2": ("laptop", "asleep"),
        "laptop3": ("laptop", "asleep"),
        "laptop4": ("laptop", "lost"),
        "laptop5": ("laptop", "lost"),
        "one": ("server", "ready"),
        "server9": ("server", "lost"),
    }
    assert hosts["one"]["tasks"] == [{"task": "t.gate", "id": "held", "queue": "default"}]
    first = hosts["laptop1"]
    assert (first["battery"], first["plugged"], first["lid"], first["address"]) == (55, True, "open", "10.0.0.85")
    assert 60 <= found["now"] - first["since"] < 90
    # It is asked with the rights of the app, which the figures have, too.
    redis_server.client.set("open:x", 1)
    assert one.stop() == 0


def test_a_server_is_heard_of_by_its_leases_and_a_laptop_is_not(redis_server: RedisServer) -> None:
    client = redis_server.client
    now = float(client.time()[0])
    assert lease.renew(client, "server1/default", 30, anew=True)
    assert lease.renew(client, "laptop1/default", 30, anew=True, guest=True)
    assert list(client.zrange(SERVERS, 0, -1)) == ["server1"]
    assert now <= (client.zscore(SERVERS, "server1") or 0) <= now + 2
    assert look(redis_server)["hosts"]["laptop1"]["kind"] == "laptop"
    # What is over is not renewed, and nobody is heard of by that.
    client.zadd(lease.LEASES, {"server1/default": now - 1})
    client.zadd(SERVERS, {"server1": now - 40})
    assert not lease.renew(client, "server1/default", 30)
    assert client.zscore(SERVERS, "server1") == now - 40
    client.zadd(SERVERS, {"server1": now - 60})
    assert look(redis_server)["hosts"]["server1"]["state"] == "lost"
    assert lease.renew(client, "server1/default", 30, anew=True)
    assert look(redis_server)["hosts"]["server1"]["state"] == "ready"
    # Removed, its agent and workers stopped: nothing is left of it that could be lost.
    lease.resign(client, "laptop1/default")
    assert "laptop1" not in look(redis_server)["hosts"]
