"""What Prometheus is told about a broker and workers that are there, and about those that are not."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from celery_app import lease
from celery_app.config import PRIORITIES, list_key
from celery_app.hosts import LAPTOPS, SERVERS, STATES
from celery_app.schedule import OUTCOMES, TICKS, Beat
from celery_app.task import SENT
from tests.delivery.conftest import ROOT, RedisServer, Worker, free_port, until

Start = Callable[..., Worker]
Scrape = Callable[..., float | None]


@pytest.fixture
def figure(redis_server: RedisServer, worker: Start) -> Iterator[Scrape]:
    """Asks the exporter: figure("muster_queue_length", queue="default", priority="low")."""
    port = free_port()
    environment = {"PYTHONPATH": str(ROOT), "MUSTER_REDIS_URL": redis_server.url, "MUSTER_METRICS_PORT": str(port)}
    process = subprocess.Popen([sys.executable, "-m", "celery_app.metrics"], env=environment, cwd=ROOT)

    def ask(name: str, **labels: str) -> float | None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples]
        found = [sample.value for sample in samples if sample.name == name and sample.labels == labels]
        return found[0] if found else None

    def answers() -> bool:
        try:
            return ask("muster_broker_up") == 1
        except OSError:
            return False

    try:
        until(answers, "the exporter answers")
        yield ask
    finally:
        process.terminate()
        assert process.wait(10) == 0


def older(figure: Scrape, queue: str) -> bool:
    return (figure("muster_queue_oldest_seconds", queue=queue) or 0) > 1


def happened(figure: Scrape, event: str, task: str, times: int) -> bool:
    return figure("muster_task_events_total", event=event, task=task) == times


def of(worker: str, kind: str = "server") -> dict[str, str]:
    return {"worker": worker, "host": worker.partition("/")[0], "kind": kind}


def test_queues_by_priority_and_age(app: Any, figure: Scrape, redis_server: RedisServer) -> None:
    for count, (name, value) in enumerate(PRIORITIES.items(), 1):
        for _ in range(count):
            app.send_task("t.noop", priority=value)
        assert figure("muster_queue_length", queue="default", priority=name) == count
    # What is no message is shown as well, and hides nothing else.
    redis_server.client.rpush("data", "no message")
    normal = "normal" if PRIORITIES["normal"] == 0 else "critical"
    assert figure("muster_queue_length", queue="data", priority=normal) == 1
    assert figure("muster_queue_oldest_seconds", queue="ml") == 0
    for queue in ("default", "data"):
        until(partial(older, figure, queue), f"{queue} gets older")
    redis_server.client.delete("data")
    assert figure("muster_queue_oldest_seconds", queue="data") == 0


def test_what_moves_on_is_as_old_as_it_is(app: Any, figure: Scrape, redis_server: RedisServer) -> None:
    """A queue that gets longer than its workers can do: the next task is another at each look, and has waited long."""
    key = list_key("ml", 0)
    for age in (300, 200, 100):
        app.send_task("t.noop", queue="ml", priority=0)
        # Importing the app's tasks is enough for a message to say when it was sent.
        message = json.loads(redis_server.client.lindex(key, 0) or "")
        message["headers"][SENT] -= age
        redis_server.client.lset(key, 0, json.dumps(message))
    for age in (300, 200, 100):
        assert age <= (figure("muster_queue_oldest_seconds", queue="ml") or 0) < age + 90
        redis_server.client.rpop(key)
    assert figure("muster_queue_oldest_seconds", queue="ml") == 0
    # What others sent has no time in it, or none that can be read.
    for strange in ('{"headers": {"sent": "NaNo"}}', '{"headers": null}', "[]", '{"headers": {"sent": [1]}}'):
        redis_server.client.rpush("data", strange)
        assert (figure("muster_queue_oldest_seconds", queue="data") or 0) < 1
    until(partial(older, figure, "data"), "it gets older, too")


def test_worker_up_and_down_and_what_it_did(app: Any, figure: Scrape, worker: Start, redis_server: RedisServer) -> None:
    one, client, name = worker("one", max_deliveries=1).ready(), redis_server.client, of("one/default")
    app.send_task("t.gate", ["x"])
    until(lambda: figure("muster_tasks_running", **name) == 1, "it runs")
    assert figure("muster_worker_up", **name) == 1
    assert 0 < (figure("muster_worker_lease_seconds", **name) or 0) <= 12
    client.set("open:x", 1)
    until(lambda: figure("muster_tasks_running", **name) == 0, "it is idle")
    assert figure("muster_dead_letters") == 0
    app.send_task("t.typed", ["none", []])
    app.send_task("t.shaky", [3])
    app.send_task("t.die")
    for _ in range(2):
        app.send_task("t.note", ["a"], task_id="same")
    for event, task, times in (
        ("failed", "t.typed", 1), ("retried", "t.shaky", 2), ("duplicate", "t.note", 1), ("dead", "t.die", 1),
        ("succeeded", "t.note", 1), ("succeeded", "t.gate", 1), ("succeeded", "t.shaky", 1),
    ):  # fmt: skip
        until(partial(happened, figure, event, task, times), f"{task} {event} {times} times")
    assert figure("muster_dead_letters") == 1
    for state, times in (("failed", 1), ("retried", 2), ("duplicate", 1), ("dead", 1), ("succeeded", 3)):
        assert (state, figure("muster_tasks_total", state=state)) == (state, times)
    one.kill()
    until(lambda: figure("muster_worker_up", **name) == 0, "its lease is over", 20)
    one.start()
    until(lambda: figure("muster_worker_up", **name) == 1, "it is back")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_success_counts_once_wherever_its_result_is(
    app: Any, figure: Scrape, worker: Start, redis_server: RedisServer, elsewhere: bool
) -> None:
    # From the start there is a figure: a first failure would be no increase otherwise.
    assert figure("muster_tasks_total", state="failed") == figure("muster_tasks_total", state="succeeded") == 0
    other = redis_server.url.removesuffix("0") + "1"
    worker("one", **({"result_backend": other} if elsewhere else {}))
    # The second has its result already, and the third wants none.
    for _ in range(2):
        app.send_task("t.noop", task_id="same")
        until(partial(happened, figure, "succeeded", "t.noop", 1), "it is counted")
    until(lambda: not redis_server.client.llen("default"), "the second is taken")
    app.send_task("t.noop", ignore_result=True)
    until(partial(happened, figure, "succeeded", "t.noop", 2), "it is counted")
    assert figure("muster_tasks_total", state="succeeded") == 2


def state_of(figure: Scrape, host: str, kind: str = "laptop") -> str:
    """The one state that is 1; the others are there, and 0."""
    found = {state: figure("muster_host_state", host=host, kind=kind, state=state) for state in STATES}
    values = sorted(value if value is not None else -1 for value in found.values())
    assert values == [0] * (len(STATES) - 1) + [1], found
    return next(state for state, value in found.items() if value)


def test_a_laptop_asleep_is_not_a_lost_one(figure: Scrape, redis_server: RedisServer) -> None:
    client = redis_server.client
    now = float(client.time()[0])

    def report(name: str, state: str, ago: float, **more: object) -> None:
        said = {"state": state, "why": "x", "since": now - ago, "at": now - ago, "battery": None, "plugged": None}
        client.hset(LAPTOPS, name, json.dumps(said | more))

    report("ready1", "ready", 1, battery=80, plugged=True)
    report("paused1", "draining", 1, battery=20.5, plugged=False)
    report("shut1", "asleep", 3600)
    report("flat1", "ready", 3600)
    report("gone1", "asleep", 15 * 86_400)
    client.zadd(SERVERS, {"server1": now - 5, "server2": now - 65})
    for name, value in (("garbage1", "{"), ("bad name", "{}"), ("x" * 65, "{}"), (b"\xff\xfe", b"\xff")):
        client.hset(LAPTOPS, name, value)
    for host, state in (
        ("ready1", "ready"), ("paused1", "draining"), ("shut1", "asleep"), ("flat1", "asleep"), ("gone1", "lost"),
        ("garbage1", "lost"),
    ):  # fmt: skip
        assert (host, state_of(figure, host)) == (host, state)
    assert (state_of(figure, "server1", "server"), state_of(figure, "server2", "server")) == ("ready", "lost")
    assert figure("muster_laptop_battery_percent", host="paused1") == 20.5
    assert figure("muster_laptop_battery_percent", host="shut1") is None
    assert (figure("muster_laptop_plugged", host="ready1"), figure("muster_laptop_plugged", host="paused1")) == (1, 0)
    assert 3600 <= (figure("muster_host_silent_seconds", host="flat1", kind="laptop") or 0) < 3700
    assert 65 <= (figure("muster_host_silent_seconds", host="server2", kind="server") or 0) < 165
    for name in ("bad name", "x" * 65):
        assert figure("muster_host_state", host=name, kind="laptop", state="lost") is None
    # However many somebody writes there, the figures stay few.
    client.hset(LAPTOPS, mapping={f"many{number}": "{}" for number in range(2_000)})
    assert state_of(figure, "flat1") == "asleep"
    assert figure("muster_host_state", host="many999", kind="laptop", state="lost") is None
    client.delete(LAPTOPS)
    assert figure("muster_host_state", host="gone1", kind="laptop", state="lost") is None


def test_the_worker_of_a_laptop_that_left_is_gone_and_not_down(figure: Scrape, redis_server: RedisServer) -> None:
    client = redis_server.client
    now = float(client.time()[0])
    client.hset(LAPTOPS, "laptop1", json.dumps({"state": "ready", "at": now}))
    lease.renew(client, "laptop1/default", 30, anew=True, guest=True)
    assert figure("muster_worker_up", **of("laptop1/default", "laptop")) == 1
    lease.resign(client, "laptop1/default")
    assert figure("muster_worker_up", **of("laptop1/default", "laptop")) == 0
    client.hdel(LAPTOPS, "laptop1")
    assert figure("muster_worker_up", **of("laptop1/default", "laptop")) is None


def test_what_is_no_text_hides_nothing(figure: Scrape, redis_server: RedisServer) -> None:
    redis_server.client.rpush("data", b"\xff\xfe")
    counts = {b"\xff|x": 1, "nothing": 2, "failed|y": "many", "failed|w": "nan", "failed|z": 3}
    redis_server.client.hset("muster:counts", mapping=counts)
    redis_server.client.hset(TICKS, mapping={"sent": "all", "late": 2})
    assert figure("muster_queue_length", queue="default", priority="low") == 0
    assert figure("muster_task_events_total", event="failed", task="z") == 3
    assert figure("muster_tasks_total", state="failed") == 3
    assert figure("muster_schedule_ticks_total", result="late") == 2


def test_beat_with_nothing_to_send_is_seen(figure: Scrape, redis_server: RedisServer) -> None:
    assert (figure("muster_beat_leader"), figure("muster_beat_last_tick")) == (0, 0)
    now = datetime.now(UTC)
    beat = Beat(redis_server.client, [], lambda *_: None, zone="UTC", name="test")
    beat.tick(now)
    assert (figure("muster_beat_leader"), figure("muster_beat_last_tick")) == (1, now.timestamp())
    assert [figure("muster_schedule_ticks_total", result=result) for result in OUTCOMES] == [0, 0, 0]
    beat.resign()
    assert figure("muster_beat_leader") == 0


def test_broker_that_is_away_is_a_figure(figure: Scrape, redis_server: RedisServer) -> None:
    redis_server.kill()
    start = time.monotonic()
    assert figure("muster_broker_up") == 0
    assert time.monotonic() - start < 30
    redis_server.start()
    until(lambda: figure("muster_broker_up") == 1, "the broker is back")
