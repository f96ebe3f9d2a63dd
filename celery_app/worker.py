"""Parts of the worker process that the supervisor relies on."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from celery import bootsteps
from celery.worker import state

from celery_app import lease
from celery_app.config import Settings
from celery_app.transport import Progress

BEAT = 2.0
logger = logging.getLogger(__name__)


class Heartbeat(bootsteps.StartStopStep):
    """Says from within the event loop that it turns, how much was taken and how much runs."""

    requires = ("celery.worker.components:Timer",)

    def start(self, worker: Any) -> None:
        self.write()
        worker.timer.call_repeatedly(BEAT, self.write)

    def write(self) -> None:
        path = Path(Settings.read().heartbeat)
        Progress.deaf = path.with_suffix(".deaf").exists()
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps({"taken": Progress.taken, "active": len(state.active_requests)}))
        fresh.replace(path)


class Reclaim(bootsteps.StartStopStep):
    """After a lost connection the worker has forgotten what had not begun; it goes back to its queue."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def start(self, consumer: Any) -> None:
        if not consumer.restart_count:
            return
        settings = Settings.read()
        running = frozenset(str(request.message.delivery_tag) for request in tuple(state.active_requests))
        count = lease.restore(lease.connect(settings), settings.worker, keep=running)
        logger.warning("connected again (%s): %s messages went back, %s run on", os.getpid(), count, len(running))
