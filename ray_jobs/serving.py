"""Ray Serve as this cluster runs it: its door is on the head and on loopback, where the gateway finds it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from typing import Any

from ray_jobs.command import JobError

PORT = 8000
LOOK = 0.5


def port() -> int:
    """Of Serve's HTTP on the head."""
    return int(os.environ.get("MUSTER_SERVE_PORT", PORT))


def start() -> None:
    """Start Serve where it does not run yet; the one that runs keeps its port."""
    from ray import serve

    serve.start(http_options={"host": "127.0.0.1", "port": port()}, proxy_location="HeadOnly")


def deploy(application: Any, name: str, route: str) -> None:
    """Ask Serve for an application, and do not wait for it: what has its name now answers until this one does."""
    from ray import serve
    from ray.serve.api import RunTarget

    start()
    serve.run_many([RunTarget(application, name=name, route_prefix=route)], wait_for_applications_running=False)


def follow(application: str, name: str, seconds: float = math.inf) -> Iterator[tuple[str, dict[str, int]]]:
    """Wait until it runs: its state and the running replicas of each deployment, whenever they change."""
    from ray import serve

    deadline, said = time.monotonic() + seconds, None
    while True:
        found: Any = serve.status().applications.get(application)
        if found is None:
            raise JobError(f"{name}: it was stopped while it started")
        state = str(found.status.value)
        running = {key: about.replica_states.get("RUNNING", 0) for key, about in found.deployments.items()}
        if (now := (state.lower(), running)) != said:
            said = now
            yield now
        if state == "RUNNING":
            return
        why = [about.message for about in found.deployments.values() if about.status != "HEALTHY" and about.message]
        # Serve's text of it is a traceback, whose last line is what was said.
        lines = [line.strip() for line in (why or [found.message])[0].splitlines() if line.strip()]
        last = lines[-1] if lines else "no word from Serve"
        if state in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise JobError(f"{name}: {state.lower()}: {last}")
        if time.monotonic() > deadline:
            raise JobError(f"{name}: not all replicas answer after {seconds:g} s, and Serve goes on trying: {last}")
        time.sleep(LOOK)
