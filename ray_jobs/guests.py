"""Where work on Ray runs: on servers, unless it says that it bears repetition. All that is known of laptops is here.

A laptop's node offers no CPUs but as many of the resource `laptop` (roles/ray_worker). Ray has no taints and no default
selector, so this is what keeps away whatever does not ask for it: tasks and actors of a notebook, a plain job, Train.
Only what asks for no CPU at all (num_cpus=0) Ray puts anywhere; the selectors here keep ours off laptops even then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
LAPTOP = "laptop"
AT_HOME = {"class": f"!{LAPTOP}"}
# How often it is looked whether there are more places, or fewer.
LOOK = 5.0


def at_home(*, num_cpus: float = 1, retries: int = 0, **options: Any) -> dict[str, Any]:
    """Options of a task that stays off laptops."""
    return {**options, "num_cpus": num_cpus, "max_retries": retries, "label_selector": AT_HOME}


def on_laptop(*, num_cpus: float = 1, **options: Any) -> dict[str, Any]:
    """Options of a task that bears repetition, for a laptop. Ray does not repeat it: no laptop may be left."""
    resources = {**(options.get("resources") or {}), LAPTOP: num_cpus}
    selector = {"class": LAPTOP}
    return {**options, "num_cpus": 0, "resources": resources, "max_retries": 0, "label_selector": selector}


def servers() -> list[dict[str, Any]]:
    """The nodes that Ray takes for alive and that are no laptops."""
    import ray

    return [node for node in ray.nodes() if node["Alive"] and node.get("Labels", {}).get("class") != LAPTOP]


def laptops() -> float:
    """How many CPUs the laptops have that Ray takes for alive."""
    import ray

    return float(ray.cluster_resources().get(LAPTOP, 0))


def each(
    function: Callable[..., T],
    arguments: Sequence[tuple[Any, ...]],
    *,
    retries: int = 5,
    done: Callable[[int], object] = lambda _: None,
) -> list[T]:
    """What a function that bears repetition returns for each, in order: on all CPUs of servers and of laptops.

    What a laptop does not bring back runs on a server. `done` is told how many there are so far.
    """
    import ray

    remote = ray.remote(function)
    here = remote.options(**at_home(retries=retries, scheduling_strategy="SPREAD"))
    there = remote.options(**on_laptop())
    waiting, back = deque(range(len(arguments))), deque[int]()
    running: dict[Any, tuple[int, bool]] = {}
    found: dict[int, T] = {}
    while len(found) < len(arguments):
        places = ray.cluster_resources()
        if not places.get(LAPTOP):
            # They left. What had not begun there would wait for ever.
            for reference in [reference for reference, (_, away) in running.items() if away]:
                ray.cancel(reference, force=True)
                back.append(running.pop(reference)[0])
        outside = sum(away for _, away in running.values())
        # Where servers have no CPU at this moment, one task tells Ray that some are wanted.
        while (back or waiting) and len(running) - outside < max(1, places.get("CPU", 0)):
            index = (back or waiting).popleft()
            running[here.remote(*arguments[index])] = (index, False)
        while waiting and outside < places.get(LAPTOP, 0):
            index = waiting.popleft()
            running[there.remote(*arguments[index])] = (index, True)
            outside += 1
        for reference in ray.wait(list(running), timeout=LOOK)[0]:
            index, away = running.pop(reference)
            try:
                found[index] = ray.get(reference)
            except ray.exceptions.RayError as error:
                if not away or isinstance(error, ray.exceptions.RayTaskError):
                    raise
                back.append(index)
                continue
            done(len(found))
    return [found[index] for index in range(len(arguments))]
