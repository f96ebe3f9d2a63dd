"""What the status screen makes of the broker's keys."""

from __future__ import annotations

import json

from kombu import Connection, Exchange, Queue

from celery_app import status


def test_queues_are_told_from_replies_and_events() -> None:
    keys = [
        f"_kombu.binding.{name}" for name in ("mine", "default", "celeryev", "celery.pidbox", "reply.celery.pidbox")
    ]
    assert status.queue_names(keys) == ["data", "default", "mine", "ml"]


def test_a_task_is_read_from_what_kombu_sends() -> None:
    with Connection("memory://") as connection:
        channel = connection.channel()
        queue = Queue("data", Exchange("data"), "data", channel=channel)
        queue.declare()
        connection.Producer(channel).publish(
            {"a": 1}, exchange="data", routing_key="data", headers={"task": "app.process", "id": "42"}
        )
        raw = channel._get("data")
    assert status.task_of(json.dumps([raw, "data", "data"])) == {"task": "app.process", "id": "42", "queue": "data"}
    assert status.task_of(json.dumps([{}, "", "x"])) == {"task": "?", "id": "?", "queue": "x"}
