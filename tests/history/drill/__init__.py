"""Tasks for the history checker. What they do they write down themselves, in a file of their host.

`python -m drill N SECONDS RATE [stoppable]` sends N tasks that last so long, so many a second, and says on its output
which; with `stoppable` it ends before that when its input does.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from typing import Any

from celery import shared_task

from celery_app.ray_bridge import RAY_JOB, ray_call, ray_job
from celery_app.task import once

LOG = "/drill/history"


def line(kind: str, task: str, run: str = "") -> str:
    """An event as the checker reads it."""
    return json.dumps([kind, task, time.time(), run]) + "\n"


def note(kind: str, task: str, run: str) -> None:
    """One write at the end of the file: it outlives this process, and others may write at the same time."""
    log = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(log, line(kind, task, run).encode())
    finally:
        os.close(log)


@shared_task(bind=True, name="drill.step")
def step(self: Any, seconds: float) -> None:
    """Work for a while, then have an effect."""
    task, run = self.request.id, uuid.uuid4().hex
    note("started", task, run)
    time.sleep(seconds)
    if once(task, lambda pipe: pipe.rpush("drill:effects", task)):
        note("effect", task, run)
    note("finished", task, run)


@shared_task(name="drill.poison")
def poison() -> str:
    """Kills the process that runs it, until there is an antidote."""
    if not os.path.exists("/drill/antidote"):  # noqa: PTH110
        os.kill(os.getpid(), 9)
    return "cured"


def square(number: int) -> int:
    """What is done on Ray."""
    return number * number


@shared_task(name="drill.square")
def square_on_ray(number: int) -> int:
    """A short function on Ray."""
    return ray_call(square, number)


@shared_task(name="drill.job", **RAY_JOB)
def job(self: Any, seconds: float) -> Any:
    """A Ray job that takes so long; its result is when it began."""
    return ray_job(f"python -m drill.job {float(seconds)}")
