"""One long task on one server, and how far it is: what it prints stays in its node's log, and nobody reads that."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from ray_jobs import command, guests, jobs_api, outcome
from ray_jobs.command import JobError

T = TypeVar("T")
# A server that is not the head, even where somebody gave the head CPUs.
SERVER = {**guests.AT_HOME, **jobs_api.OFF_HEAD}
LOOK = 1.0


class Board:
    """Where the task writes how far it is."""

    def __init__(self) -> None:
        self.said: tuple[float, float, str, dict[str, float]] | None = None

    def say(self, done: float, total: float, note: str, shown: dict[str, float]) -> None:
        self.said = (done, total, note, shown)

    def read(self) -> tuple[float, float, str, dict[str, float]] | None:
        return self.said


def _tell(board: Any, done: float, total: float, note: str, **shown: float) -> None:
    board.say.remote(done, total, note, shown)


def here() -> str:
    """The node this runs on, as the inventory names it: `host/node`."""
    # Without a cluster Ray is not even imported.
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return f"{platform.node()}/local"
    context = ray.get_runtime_context()
    labels = context.get_node_labels()
    return f"{labels.get('host', '?')}/{labels.get('node', context.get_node_id()[:8])}"


def largest() -> float:
    """The CPUs of the largest server."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    servers = [
        node
        for node in nodes
        if not any(node.get("Labels", {}).get(key) == value.removeprefix("!") for key, value in SERVER.items())
    ]
    return max((float(node["Resources"].get("CPU", 0)) for node in servers), default=0.0)


def call(function: Callable[..., T], *arguments: Any, cpus: int, retries: int = 5) -> T:
    """What the function returns on one server; its last argument is a function to tell its progress with.

    Where its node or its process dies, Ray calls it again: what it had done it must find by itself.
    """
    import ray

    if cpus > (most := largest()):
        raise JobError(f"cpus: {cpus} are wanted of one server, the largest has {most:g}")
    # Without the board the task goes on, only unseen: Ray brings it back elsewhere.
    board = ray.remote(Board).options(num_cpus=0, max_restarts=-1, label_selector=SERVER).remote()
    options = guests.at_home(num_cpus=cpus, retries=retries) | {"label_selector": SERVER}
    work = ray.remote(function).options(**options).remote(*arguments, partial(_tell, board))
    said = None
    try:
        ready = False
        while not ready:
            ready = bool(ray.wait([work], timeout=LOOK)[0])
            try:
                new = ray.get(board.read.remote(), timeout=LOOK)
            except ray.exceptions.RayError:
                continue
            if new and new != said:
                done, total, note, shown = said = new
                outcome.progress(done, total, note, **shown)
        result: T = command.returned(work)
        return result
    finally:
        ray.cancel(work, force=True)
        ray.kill(board)
