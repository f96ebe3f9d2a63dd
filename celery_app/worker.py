"""Parts of the worker process that the supervisor relies on."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import redis
from celery import bootsteps
from celery.worker import state

from celery_app import lease
from celery_app.config import Settings
from celery_app.transport import Progress

BEAT = 2.0
# Seconds that events wait for others, and how many wait at most.
EVENTS, EVENTS_MOST = 0.2, 200
logger = logging.getLogger(__name__)


class Heartbeat(bootsteps.StartStopStep):
    """Says from within the event loop that it turns, how much was taken and what runs."""

    requires = ("celery.worker.components:Timer",)

    def start(self, worker: Any) -> None:
        self.write()
        worker.timer.call_repeatedly(BEAT, self.write)

    def write(self) -> None:
        path = Path(Settings.read().heartbeat)
        Progress.deaf = path.with_suffix(".deaf").exists()
        fresh = path.with_suffix(".new")
        running = [{"id": request.id, "task": request.name} for request in state.active_requests]
        fresh.write_text(json.dumps({"taken": Progress.taken, "active": len(running), "running": running}))
        fresh.replace(path)


def flush(pool: Any) -> None:
    """The pool forgets what no process has; it would also forget what one has and only did not say so yet."""
    jobs = tuple(pool._cache.values())
    handed = [job for job in jobs if job._write_to and not job._accepted and job not in pool.outbound_buffer]
    for job in handed:
        job._accepted = True
    pool.flush()
    for job in handed:
        job._accepted = job._worker_pid is not None
        if not job._accepted and not job._write_to._is_alive():
            job.discard()


class Reclaim(bootsteps.StartStopStep):
    """After a lost connection the worker has forgotten what had not begun; it goes back to its queue."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def start(self, consumer: Any) -> None:
        pool = consumer.pool._pool
        consumer.pool.flush = partial(flush, pool)
        if not consumer.restart_count:
            return
        settings = Settings.read()
        running = running_tags(consumer)
        count = lease.restore(lease.connect(settings), settings.worker, died=False, keep=running | set(Progress.done))
        logger.warning("connected again (%s): %s messages went back, %s run on", os.getpid(), count, len(running))


def running_tags(consumer: Any) -> set[str]:
    """Of what processes were given."""
    return {str(job._accept_callback.__self__.message.delivery_tag) for job in consumer.pool._pool._cache.values()}


class Audit(bootsteps.StartStopStep):
    """What Redis says is held here, and nobody here knows at two looks, goes back.

    A broken connection may leave a question that Redis answers, to nobody, when Reclaim has looked.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)
    timer: Any = None

    def start(self, consumer: Any) -> None:
        self.unknown: set[str] = set()
        self.timer = consumer.timer.call_repeatedly(Settings.read().lease, self.look, (consumer,))

    def stop(self, consumer: Any) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def look(self, consumer: Any) -> None:
        settings = Settings.read()
        delivered = {str(tag) for tag in consumer.task_consumer.channel.qos._delivered}
        with contextlib.suppress(redis.RedisError), lease.connect(settings) as client:
            unknown = set(client.hkeys(settings.unacked)) - delivered - running_tags(consumer) - set(Progress.done)
            for tag in unknown & self.unknown:
                if held := client.hget(settings.unacked, tag):
                    lease.give_back(client, settings.unacked, tag, held, died=False)
                    logger.warning("a message that nobody here knew went back")
            self.unknown = unknown


class Events(bootsteps.StartStopStep):
    """Events go in groups: Celery sends one message for nearly each, and that costs more than taking the task."""

    requires = ("celery.worker.consumer.events:Events",)

    def start(self, consumer: Any) -> None:
        self.due = False
        dispatcher = consumer.event_dispatcher

        def flush() -> None:
            self.due = False
            dispatcher.flush()

        def later() -> None:
            if not self.due:
                self.due = True
                consumer.hub.call_later(EVENTS, flush)

        dispatcher.on_send_buffered, dispatcher.buffer_limit = later, EVENTS_MOST

    def stop(self, consumer: Any) -> None:
        with contextlib.suppress(*consumer.connection_errors):
            consumer.event_dispatcher.flush()
