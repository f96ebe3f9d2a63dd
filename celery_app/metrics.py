"""Figures of queues and workers for Prometheus, read from Redis when asked.

celery-exporter lives on events alone: it knows neither leases, nor priorities, nor the age of a message.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import redis
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from celery_app.config import HELD, PRIORITIES, Settings, list_key
from celery_app.hosts import DRAINED, LAPTOPS, SERVERS, STATES, described
from celery_app.lease import COUNTS, DEAD, LEASES, connect
from celery_app.schedule import LEADER, OUTCOMES, TICK, TICKS
from celery_app.task import SENT

QUEUES = ("default", "data", "ml")
EVENTS = ("succeeded", "failed", "dead", "retried", "duplicate")
# Whoever has the app's login can name a host: what may become a label, and how many.
HOST, MOST_HOSTS = re.compile(r"[A-Za-z0-9_.:-]{1,64}"), 500


class Figures(Collector):
    """What one scrape shows."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        # For messages that others than this app sent: since when each list's next one was seen to wait.
        self.waits: dict[str, tuple[int, float]] = {}
        # A worker that went away is down, not absent, as long as its host is known.
        self.workers: set[str] = set()

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("muster_broker_up", "Whether Redis answers")
        try:
            found = list(self._read())
            up.add_metric([], 1)
        except redis.RedisError:
            found = []
            up.add_metric([], 0)
        yield up
        yield from found

    def _read(self) -> Iterator[Metric]:
        client = self.client
        length = GaugeMetricFamily("muster_queue_length", "Messages that wait", labels=["queue", "priority"])
        oldest = GaugeMetricFamily(
            "muster_queue_oldest_seconds", "How long the next message has waited", labels=["queue"]
        )
        for queue in QUEUES:
            ages = [0.0]
            for name, value in PRIORITIES.items():
                key = list_key(queue, value)
                length.add_metric([queue, name], client.llen(key))
                ages.append(self._age(key))
            oldest.add_metric([queue], max(ages))
        yield length
        yield oldest
        labels = ["worker", "host", "kind"]
        running = GaugeMetricFamily("muster_tasks_running", "Messages that a worker holds", labels=labels)
        alive = GaugeMetricFamily("muster_worker_up", "Whether its lease is good", labels=labels)
        lease = GaugeMetricFamily("muster_worker_lease_seconds", "How long its lease is good", labels=labels)
        now = float(client.time()[0])
        leases = dict(client.zrange(LEASES, 0, -1, withscores=True))
        heard = dict(client.zrange(SERVERS, 0, -1, withscores=True))
        marks = client.hgetall(DRAINED)
        hosts = described(client.hgetall(LAPTOPS), heard, leases, now, marks)
        self.workers = {name for name in self.workers if name.partition("/")[0] in hosts} | set(leases)
        for worker in sorted(self.workers):
            left, host = leases.get(worker, now) - now, worker.partition("/")[0]
            # Away on purpose: nobody misses it.
            if host in marks and left <= 0:
                continue
            whose = [worker, host, hosts[host]["kind"] if host in hosts else "server"]
            alive.add_metric(whose, int(left > 0))
            lease.add_metric(whose, left)
            running.add_metric(whose, client.hlen(f"{HELD}{worker}"))
        yield from (running, alive, lease)
        yield from host_figures(hosts, now)
        for metric, figure, text in (
            ("muster_dead_letters", float(client.hlen(DEAD)), "Tasks that wait for somebody to look"),
            ("muster_garbage", float(client.llen("muster:garbage")), "What was in a queue and is no message"),
            ("muster_beat_leader", float(client.exists(LEADER)), "Whether an instance of beat leads"),
            ("muster_beat_last_tick", float(client.get(TICK) or 0), "When beat last looked at the schedule"),
        ):
            yield GaugeMetricFamily(metric, text, value=figure)
        yield from counters(client.hgetall(COUNTS), client.hgetall(TICKS))

    def _age(self, key: str) -> float:
        text = self.client.lindex(key, -1)
        if text is None:
            self.waits.pop(key, None)
            return 0.0
        with suppress(ValueError, TypeError, KeyError):
            # Now and then the next one is new, and has waited behind others all the same.
            return max(0.0, time.time() - float(json.loads(text)["headers"][SENT]))
        if self.waits.get(key, (0, 0.0))[0] != hash(text):
            self.waits[key] = (hash(text), time.monotonic())
        return time.monotonic() - self.waits[key][1]


def counters(counts: dict[str, str], ticks: dict[str, str]) -> Iterator[Metric]:
    """What was counted, by task, and in all: these are there from the start, so that a first failure is an increase."""
    events = CounterMetricFamily("muster_task_events", "What became of tasks", labels=["event", "task"])
    total = dict.fromkeys(EVENTS, 0.0)
    for key, times in counts.items():
        event, _, task = key.partition("|")
        # Whoever has the app's login may write here what is no number.
        with suppress(ValueError, OverflowError):
            number = float(int(times))
            events.add_metric([event, task], number)
            if event in total:
                total[event] += number
    yield events
    tasks = CounterMetricFamily("muster_tasks", "What became of tasks, all together", labels=["state"])
    for state, number in total.items():
        tasks.add_metric([state], number)
    yield tasks
    due = CounterMetricFamily("muster_schedule_ticks", "Times at which the schedule was due", labels=["result"])
    for outcome in OUTCOMES:
        with suppress(ValueError, OverflowError):
            due.add_metric([outcome], float(int(ticks.get(outcome, 0))))
    yield due


def host_figures(hosts: dict[str, dict[str, Any]], now: float) -> Iterator[Metric]:
    """The state of each host; a laptop that is asleep is none that is lost."""
    labels = ["host", "kind"]
    state = GaugeMetricFamily("muster_host_state", "1 for the state it is in", labels=[*labels, "state"])
    silent = GaugeMetricFamily("muster_host_silent_seconds", "Since it was last heard of", labels=labels)
    battery = GaugeMetricFamily("muster_laptop_battery_percent", "As the laptop last said", labels=["host"])
    plugged = GaugeMetricFamily("muster_laptop_plugged", "Whether on mains, as it last said", labels=["host"])
    for name in [name for name in hosts if HOST.fullmatch(name)][:MOST_HOSTS]:
        host = hosts[name]
        for each in STATES:
            state.add_metric([name, host["kind"], each], int(host["state"] == each))
        if host["heard"] is not None:
            silent.add_metric([name, host["kind"]], max(0.0, now - host["heard"]))
        for family, value in ((battery, host["battery"]), (plugged, host["plugged"])):
            if value is not None:
                family.add_metric([name], float(value))
    yield from (state, silent, battery, plugged)


def main() -> int:
    settings, told = Settings.read(), threading.Event()
    registry = CollectorRegistry()
    # What is no text hides nothing else.
    registry.register(Figures(connect(settings, encoding_errors="replace")))
    start_http_server(settings.metrics_port, settings.metrics_address, registry)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    told.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
