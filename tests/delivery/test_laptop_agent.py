"""What a laptop's agent tells a real Redis, and how it bears one that is away."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_app import hosts
from tests.delivery.conftest import RedisServer, Worker, until
from tests.test_laptop_agent import agent

# Earlier than a report that is due anyway.
AT_ONCE = agent.REPORT - 2
REPORT = {"state": "ready", "why": "", "battery": 80, "plugged": True, "lid": "open", "address": "10.0.0.85"}


def hush(broker: Any) -> None:
    """It has nothing to say from now on: a word about a Redis that is gone would stand in another test's output."""
    broker.post({})
    until(lambda: not broker.hurry, "it has heard")


@pytest.fixture
def place(redis_server: RedisServer) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": redis_server.port}


@pytest.fixture
def broker(place: dict[str, Any]) -> Iterator[Any]:
    found = agent.Broker(agent.Redis(place), "laptop1")
    found.start()
    yield found
    hush(found)


def told(server: RedisServer) -> dict[str, Any]:
    return dict(json.loads(server.client.hget(agent.LAPTOPS, "laptop1") or "{}"))


def test_the_report_is_what_the_others_read(broker: Any, redis_server: RedisServer) -> None:
    assert agent.LAPTOPS == hosts.LAPTOPS
    broker.post(REPORT)
    until(lambda: told(redis_server), "it has reported", 20)
    found = hosts.parse(json.dumps(told(redis_server)), time.time())
    assert found and (found.state, found.battery, found.address) == ("ready", 80, "10.0.0.85")
    assert abs(found.at - time.time()) < 2
    assert abs(broker.clock_off) < 1


def test_a_change_is_told_at_once_and_since_is_when_it_changed(broker: Any, redis_server: RedisServer) -> None:
    broker.post(REPORT)
    until(lambda: told(redis_server), "it has reported", 20)
    first = told(redis_server)
    broker.post({**REPORT, "battery": 79})
    until(lambda: told(redis_server)["battery"] == 79, "it has reported", AT_ONCE)
    assert told(redis_server)["since"] == first["since"]
    assert told(redis_server)["at"] > first["at"]
    broker.post({**REPORT, "state": "draining", "why": "on battery"})
    until(lambda: told(redis_server)["state"] == "draining", "it has reported", AT_ONCE)
    assert told(redis_server)["since"] > first["since"]


def test_a_new_agent_goes_on_where_the_old_one_ended(place: dict[str, Any], redis_server: RedisServer) -> None:
    redis_server.client.hset(agent.LAPTOPS, "laptop1", json.dumps({**REPORT, "since": 1000.0, "at": 1001.0}))
    agent.Broker(agent.Redis(place), "laptop1").tell(REPORT)
    assert told(redis_server)["since"] == 1000.0
    redis_server.client.hset(agent.LAPTOPS, "laptop1", "[1]")
    agent.Broker(agent.Redis(place), "laptop1").tell(REPORT)
    assert told(redis_server)["since"] > 1000.0


def test_a_broker_that_was_away_is_told_when_it_is_back(
    broker: Any, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.post(REPORT)
    until(lambda: told(redis_server), "it has reported", 20)
    redis_server.kill()
    broker.post({**REPORT, "battery": 50})
    until(lambda: broker.error, "it has noticed", 20)
    redis_server.start()
    until(lambda: told(redis_server)["battery"] == 50, "it has reported", 20)
    assert not broker.error


def test_nobody_waits_for_a_broker_that_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        found = agent.Broker(agent.Redis({"host": "127.0.0.1", "port": deaf.getsockname()[1]}), "laptop1")
        found.start()
        start = time.monotonic()
        found.post(REPORT)
        assert not found.wait_sent(REPORT, 0.2)
        assert time.monotonic() - start < agent.ANSWER
        until(lambda: "timed out" in found.error, "it has given up", 20)
        hush(found)


def test_a_login_that_was_taken_away_is_said(place: dict[str, Any], redis_server: RedisServer, tmp_path: Path) -> None:
    redis_server.client.execute_command("ACL", "SETUSER", "laptop-laptop1", "on", ">right", "~*", "+@all")
    (tmp_path / "password").write_text("right\n")
    login = {**place, "user": "laptop-laptop1", "password_file": str(tmp_path / "password")}
    assert agent.Redis(login).ask("ECHO", "some text of\r\nlines") == "some text of\r\nlines"
    redis_server.client.execute_command("ACL", "DELUSER", "laptop-laptop1")
    with pytest.raises(agent.RefusedError, match="WRONGPASS"):
        agent.Redis(login).ask("PING")


def test_agent_and_worker_together(
    place: dict[str, Any], app: Any, worker: Callable[..., Worker], redis_server: RedisServer, tmp_path: Path
) -> None:
    """The owner says pause, and the worker lets go."""
    folder, client = tmp_path / "laptop", redis_server.client
    (folder / "said").mkdir(parents=True)
    settings = {
        **{"name": "lap", "directory": str(folder), "root": str(tmp_path), "socket": str(tmp_path / "socket")},
        **{"redis": place, "policy": {"grace": 1}},
    }
    one = agent.Agent(settings)
    one.broker.start()
    one.look()
    lap = worker("lap", laptop=folder).ready()
    held = app.send_task("t.gate", ["x"])
    until(lambda: client.llen("began") == 1, "the task began")
    one.obey(["pause"], root=False)
    until(lambda: agent.services(folder)["celery_default"]["work"] is False, "it rests", 20)
    assert client.hlen(f"muster:unacked:{lap.name}") == 0
    until(lambda: json.loads(client.hget(agent.LAPTOPS, "lap"))["state"] == "draining", "it says so", AT_ONCE)
    one.obey(["resume"], root=False)
    client.set("open:x", 1)
    assert held.get(timeout=30) == "x"
    hush(one.broker)
