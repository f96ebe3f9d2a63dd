"""Tasks for the tests of the lab: each leaves a trace in Redis that the test reads for itself."""

from __future__ import annotations

import time
from typing import Any

from celery import shared_task

from celery_app.lease import connection

VERSION = "1"


def trace(key: str, word: str) -> None:
    connection().rpush(f"probe:{key}", word)


@shared_task(name="probe.version")
def version() -> str:
    return VERSION


@shared_task(name="probe.nap")
def nap(key: str, seconds: float) -> str:
    trace(key, "start")
    time.sleep(seconds)
    trace(key, "end")
    return VERSION


@shared_task(bind=True, name="probe.tick")
def tick(self: Any) -> None:
    trace("ticks", f"{time.time():.3f} {self.request.id}")
