"""A worker that dies between taking a message and writing down that it has it."""

import subprocess
import sys

import pytest

from tests.delivery.conftest import ROOT, RedisServer

DIES = """
import os, sys
from kombu import Connection, Consumer, Queue
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport.redis import QoS
TRANSPORT_ALIASES["muster"] = "celery_app.transport:Transport"
from celery_app.transport import QoS as Ours
QoS.append = Ours.append = lambda *_: os.kill(os.getpid(), 9)
options = {"unacked_key": "muster:unacked:x", "unacked_index_key": "muster:unacked:x:index"}
connection = Connection(sys.argv[1], transport_options=options)
with Consumer(connection, [Queue("default", routing_key="default")], callbacks=[print]):
    while True:
        connection.drain_events(timeout=10)
"""


@pytest.mark.parametrize(("scheme", "left"), [("redis", 0), ("muster", 1)])
def test_death_between_take_and_note(redis_server: RedisServer, scheme: str, left: int) -> None:
    """Kombu's own loses the message: should that change, ours has no reason to be."""
    from kombu import Connection

    with Connection(redis_server.url) as sender:
        sender.Producer().publish({"a": 1}, routing_key="default", exchange="", retry=False)
    client = redis_server.client
    assert client.llen("default") == 1
    url = redis_server.url.replace("redis:", f"{scheme}:")
    done = subprocess.run([sys.executable, "-c", DIES, url], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == -9, done.stderr
    assert client.llen("default") + client.hlen("muster:unacked:x") == left


def test_what_is_given_back_is_what_was_taken(redis_server: RedisServer) -> None:
    from kombu import Connection

    from celery_app.config import list_key
    from celery_app.lease import restore

    with Connection(redis_server.url, transport_options={"priority_steps": [0, 3, 6, 9]}) as sender:
        sender.Producer().publish({"a": [], "b": {}}, routing_key="default", exchange="", priority=6)
    client = redis_server.client
    before = client.lindex(list_key("default", 6), 0)
    url = redis_server.url.replace("redis:", "muster:")
    script = DIES.replace('"unacked_key"', '"priority_steps": [0, 3, 6, 9], "unacked_key"')
    subprocess.run([sys.executable, "-c", script, url], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert restore(client, "x", died=True) == 1
    assert restore(client, "x", died=True) == 0
    import json

    after = json.loads(client.lindex(list_key("default", 6), 0))
    assert after["headers"].pop("redelivered")
    after["properties"]["delivery_info"].pop("redelivered")
    assert after == json.loads(before)


def test_an_idle_worker_is_told_of_a_message(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It need not ask again; every list that it found empty counts."""
    from kombu import Connection, Consumer, Queue
    from kombu.transport import TRANSPORT_ALIASES

    from celery_app import transport

    monkeypatch.setitem(TRANSPORT_ALIASES, "muster", "celery_app.transport:Transport")
    monkeypatch.setattr(transport, "IDLE_WATCHED", 600.0)
    seen: list[object] = []
    options = {"unacked_key": "muster:unacked:x", "unacked_index_key": "muster:unacked:x:index"}
    url = redis_server.url.replace("redis:", "muster:")
    with (
        Connection(redis_server.url, transport_options={"priority_steps": [0, 3, 6, 9]}) as sender,
        Connection(url, transport_options=options) as taker,
        Consumer(taker, [Queue("default", routing_key="default")], callbacks=[lambda body, _: seen.append(body)]),
    ):
        for priority in (9, 0, 3):
            # It asks, is told that there is nothing, and then waits for what Redis says.
            with pytest.raises(TimeoutError):
                while True:
                    taker.drain_events(timeout=1)
            sender.Producer().publish(priority, routing_key="default", exchange="", priority=priority)
            while priority not in seen:
                taker.drain_events(timeout=10)
