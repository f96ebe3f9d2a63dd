"""Tasks that write when they begin and end into a file, which no lost connection can keep from them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from billiard.pool import Worker  # type: ignore[import-untyped]

from celery_app import app
from celery_app.task import once

receiver = Worker._make_protected_receive


def late(self: Any, pipe: Any) -> Callable[[], Any]:
    """As on a busy machine: between a process being given a task and saying that it begins there is time."""
    receive = receiver(self, pipe)

    def wait() -> Any:
        given = receive()
        time.sleep(0.05 if given else 0)
        return given

    return wait


Worker._make_protected_receive = late


def write(*words: object) -> None:
    with Path(os.environ["MUSTER_SPANS"]).open("a") as spans:
        print(*words, file=spans, flush=True)


@app.task(bind=True, name="t.span")
def span(self: Any, seconds: float) -> None:
    write("begin", self.request.id)
    time.sleep(seconds)
    once(self.request.id, lambda pipe: pipe.hincrby("effects", self.request.id, 1))
    write("end", self.request.id)
