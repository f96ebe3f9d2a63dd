"""A Celery app as small as can be, with tasks on the bridge: what test_bridge.py runs in real workers."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery

from celery_app.ray_bridge import RAY_JOB, RayCallUncertainError, ray_call, ray_job

# Ray's workers import this module, too, for the functions.
URL = os.environ.get("MUSTER_REDIS_URL", "redis://127.0.0.1:1/0")
app = Celery("bridge", broker=URL, backend=URL)
app.conf.update(task_acks_late=True, task_track_started=True, worker_prefetch_multiplier=1,
                broker_transport_options={"visibility_timeout": 5})  # fmt: skip


@app.task(**RAY_JOB)
def job(self: Any, entrypoint: str, options: dict[str, Any] | None = None) -> Any:
    return ray_job(entrypoint, **(options or {}))


@app.task
def quick(number: int) -> int:
    return number + 1


def add(left: int, right: int) -> int:
    return left + right


def slow(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def broken() -> None:
    raise KeyError("no such thing")


def where() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_labels()["class"])


@app.task
def on_ray(name: str, arguments: list[Any], options: dict[str, Any]) -> Any:
    functions: dict[str, Any] = {"add": add, "slow": slow, "broken": broken, "where": where}
    try:
        return ray_call(functions[name], *arguments, **options)
    except RayCallUncertainError as error:
        return f"uncertain: {error}"
