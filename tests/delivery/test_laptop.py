"""A laptop's worker: it rests while its agent says so, and sleep is nobody's fault."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_app import drained, lease, status
from celery_app.hosts import LAPTOPS
from tests.delivery.conftest import RedisServer, Worker, children, kill, until
from tests.laptop_folder import LaptopFolder

LEASE = 12


class Laptop(LaptopFolder):
    """The agent's side of the worker's directory."""

    service = "celery_default"

    def __init__(
        self, folder: Path, client: redis.Redis, start: Callable[..., Worker], setting: str = "laptop"
    ) -> None:
        self.folder, self.client = folder, client
        (folder / "said").mkdir(parents=True)
        self.worker = start("lap", **{setting: folder}, concurrency=1, lease=LEASE)

    def ready(self) -> Laptop:
        self.worker.ready()
        return self

    @property
    def pids(self) -> list[int]:
        return [self.worker.process.pid, self.worker.main, *children(self.worker.main)]

    @property
    def held(self) -> int:
        return int(self.client.hlen(f"muster:unacked:{self.worker.name}"))

    def healthy(self) -> bool:
        beats = self.worker.heartbeat, self.worker.heartbeat.with_suffix(".alive")
        return all(time.time() - path.stat().st_mtime < 2 for path in beats)


@pytest.fixture
def laptop(redis_server: RedisServer, tmp_path: Path, worker: Callable[..., Worker]) -> Iterator[Laptop]:
    yield Laptop(tmp_path / "laptop", redis_server.client, worker).ready()


def begun(app: Any, laptop: Laptop) -> Any:
    """A task that waits for its gate in the laptop's worker."""
    held = app.send_task("t.gate", ["x"])
    until(lambda: laptop.client.llen("began") == 1, "the task began")
    return held


def deaths(client: redis.Redis, task: Any) -> Any:
    return client.hget(lease.claim_key(task.id, 0), "deaths")


def test_a_pause_lets_end_what_runs_and_takes_nothing_more(app: Any, laptop: Laptop) -> None:
    held = begun(app, laptop)
    until(lambda: [task["id"] for task in laptop.said["running"]] == [held.id], "it says what runs")
    laptop.want(False, 30)
    until(lambda: laptop.worker.said("Warm shutdown"), "the worker was told")
    waiting = app.send_task("t.note", ["later"])
    assert laptop.said["work"], "something still runs"
    laptop.client.set("open:x", 1)
    assert held.get(timeout=20) == "x"
    until(laptop.rests, "it rests")
    assert (laptop.held, laptop.client.llen("default"), laptop.client.zcard(lease.LEASES)) == (0, 1, 0)
    end = time.monotonic() + 7
    until(lambda: time.monotonic() > end, "it rests for a while", 8)
    assert laptop.healthy()
    assert time.time() - laptop.said["at"] < 6
    assert (laptop.worker.process.poll(), waiting.state) == (None, "PENDING")
    laptop.want(True)
    until(lambda: laptop.said["work"], "it works", 20)
    assert waiting.get(timeout=30) == "later"


def test_a_pause_that_gets_shorter_gives_back_at_once_and_blames_nobody(app: Any, laptop: Laptop) -> None:
    held = begun(app, laptop)
    laptop.want(False, 60)
    until(lambda: laptop.worker.said("Warm shutdown"), "the worker was told")
    laptop.want(False, 1)
    until(laptop.rests, "it rests", 20)
    assert (laptop.held, laptop.client.llen("default")) == (0, 1)
    assert deaths(laptop.client, held) is None
    laptop.want(True)
    until(lambda: laptop.client.llen("began") == 2, "the task began again")
    laptop.client.set("open:x", 1)
    assert held.get(timeout=30) == "x"
    assert laptop.client.lrange("ended", 0, -1) == ["x"]


def test_a_pause_while_redis_is_away_gives_back_later(app: Any, laptop: Laptop, redis_server: RedisServer) -> None:
    begun(app, laptop)
    redis_server.kill()
    laptop.want(False)
    until(lambda: laptop.worker.said("what it held goes back when"), "it noticed", 10)
    until(lambda: laptop.said == {**laptop.said, "work": True, "running": []}, "nothing runs, and something is held")
    redis_server.start()
    until(laptop.rests, "it rests")
    assert (laptop.held, laptop.client.llen("default")) == (0, 1)


def test_a_laptop_that_slept_begins_anew_and_no_task_is_blamed(app: Any, laptop: Laptop) -> None:
    held = begun(app, laptop)
    pids = laptop.pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    # Beyond two thirds of the lease, and before anybody else may take it over.
    start = time.monotonic()
    until(lambda: time.monotonic() - start > LEASE * 0.7, "it slept", LEASE)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    until(lambda: laptop.client.llen("began") == 2, "the task began again", 20)
    assert laptop.worker.said("this host was away")
    assert laptop.worker.process.poll() is None
    assert deaths(laptop.client, held) is None
    laptop.client.set("open:x", 1)
    assert held.get(timeout=30) == "x"
    assert laptop.client.lrange("ended", 0, -1) == ["x"]


def test_a_laptop_out_of_range_begins_anew_by_itself(app: Any, laptop: Laptop, redis_server: RedisServer) -> None:
    held = begun(app, laptop)
    redis_server.kill()
    until(lambda: laptop.worker.said("Redis was out of reach"), "the worker was ended", LEASE)
    redis_server.start()
    until(lambda: laptop.client.llen("began") == 2, "the task began again", 40)
    assert laptop.worker.process.poll() is None
    assert deaths(laptop.client, held) is None


def test_a_worker_that_gets_no_processor_begins_anew_and_no_task_is_blamed(app: Any, laptop: Laptop) -> None:
    held = begun(app, laptop)
    os.kill(laptop.worker.main, signal.SIGSTOP)
    until(lambda: laptop.client.llen("began") == 2, "the task began again", 50)
    assert laptop.worker.process.poll() is None
    assert deaths(laptop.client, held) is None


def test_a_worker_that_dies_on_a_laptop_is_counted_all_the_same(app: Any, laptop: Laptop) -> None:
    held = begun(app, laptop)
    kill(laptop.worker.main)
    assert laptop.worker.process.wait(20) != 0
    assert deaths(laptop.client, held) == "1"


@pytest.mark.parametrize(("host", "blamed"), [("laptop1", 0), ("server1", 1)])
def test_who_reaps_a_laptop_counts_no_death(redis_server: RedisServer, host: str, blamed: int) -> None:
    client, name = redis_server.client, f"{host}/default"
    client.hset(LAPTOPS, "laptop1", "{}")
    message = {"headers": {"id": "i"}, "properties": {"delivery_tag": "t"}}
    client.hset(f"muster:unacked:{name}", "t", json.dumps([message, "", "default"]))
    client.hset(lease.claim_key("i", 0), mapping={"tag": "t", "begun": 1})
    client.zadd(lease.LEASES, {name: 1})
    assert lease.reap(client, -1) == {name: 1}
    assert int(client.hget(lease.claim_key("i", 0), "deaths") or 0) == blamed


def test_a_laptop_that_rests_can_be_told_to_end(laptop: Laptop) -> None:
    laptop.want(False)
    until(laptop.rests, "it rests", 20)
    assert laptop.worker.stop() == 0
    laptop.worker.start()
    until(lambda: laptop.healthy() and laptop.rests(), "it rests from the start", 30)


def test_a_drained_server_rests_and_stays_known(
    app: Any, redis_server: RedisServer, tmp_path: Path, worker: Callable[..., Worker]
) -> None:
    server = Laptop(tmp_path / "drain", redis_server.client, worker, setting="drain").ready()
    held = begun(app, server)
    client, host = server.client, server.worker.name.partition("/")[0]
    assert drained.mark(client, host, "new disk") and not drained.mark(client, host, "new disk")
    assert status.read(client)["hosts"][host]["state"] == "draining"
    server.want(False, 1)
    until(server.rests, "it rests", 20)
    assert (server.held, client.llen("default"), client.zcard(lease.LEASES)) == (0, 1, 0)
    assert deaths(client, held) is None and server.worker.process.poll() is None and server.healthy()
    assert status.read(client)["hosts"][host]["state"] == "drained"
    assert drained.over(client, host) and not drained.over(client, host)
    (server.folder / "want").unlink()
    until(lambda: client.llen("began") == 2, "the task began again")
    client.set("open:x", 1)
    assert held.get(timeout=30) == "x"
    assert status.read(client)["hosts"][host]["state"] == "ready"
