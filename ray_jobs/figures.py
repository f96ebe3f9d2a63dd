"""What a run shows of itself in Prometheus while it runs: ray_muster_job_rows, ray_muster_job_loss, by job and run.

All are gauges, also what is counted. Ray forgets a gauge soon after its process has ended, but keeps a counter as long
as its node lives, and every run is a series of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

T = TypeVar("T")
PREFIX = "muster_job_"
SHOWN = {
    "done": "How far the run is",
    "total": "How far it goes, in what `done` counts",
    "rows": "Rows written so far by this process",
    "tokens": "Tokens learned from or made so far",
    "steps": "Steps so far: of the training, or in the world that is learned",
    "loss": "Of what is learned from",
    "validation_loss": "Of what is set aside to say when it is enough",
    "score": "What is to become large, as the reward",
}
# Not `job`: that is Prometheus' own name for what it asks.
LABELS = ("job_name", "run")

_labels: dict[str, str] = {}
_counted: dict[str, float] = {}
_gauges: dict[str, Any] = {}


def begin(labels: Mapping[str, str]) -> None:
    """From here on this process works for this run."""
    if labels != _labels:
        _labels.clear()
        _labels.update(labels)
        _counted.clear()


def show(**values: float) -> None:
    """Set figures of this run; without a cluster nobody would see them."""
    ray = sys.modules.get("ray")
    if not _labels or ray is None or not ray.is_initialized():
        return
    from ray.util.metrics import Gauge

    for name, value in values.items():
        if name not in _gauges:
            _gauges[name] = Gauge(PREFIX + name, SHOWN[name], tag_keys=LABELS)
        _gauges[name].set(float(value), _labels)


def add(**values: float) -> None:
    """Count further; once for many rows, not for each."""
    for name, value in values.items():
        _counted[name] = _counted.get(name, 0) + value
        show(**{name: _counted[name]})


def carried(function: Callable[..., T]) -> Callable[..., T]:
    """The function as a task of this run: what it shows is the run's."""
    labels = dict(_labels)

    @wraps(function)
    def task(*arguments: Any) -> T:
        begin(labels)
        return function(*arguments)

    return task
