"""Tasks for the tests of the lab: each leaves a trace in Redis that the test reads for itself."""

from __future__ import annotations

import time

from celery_app import app

VERSION = "1"


def trace(key: str, word: str) -> None:
    app.backend.client.rpush(f"probe:{key}", word)


@app.task(name="celery_app.tasks.probe.version")
def version() -> str:
    return VERSION


@app.task(name="celery_app.tasks.probe.nap")
def nap(key: str, seconds: float) -> str:
    trace(key, "start")
    time.sleep(seconds)
    trace(key, "end")
    return VERSION


@app.task(name="celery_app.tasks.probe.tick", bind=True)
def tick(self) -> None:  # type: ignore[no-untyped-def]
    trace("ticks", f"{time.time():.3f} {self.request.id}")
