"""What the jobs that train tell MLflow, where MLFLOW_TRACKING_URI is set: settings, figures, and where the model is.

All at the end of a run, and nothing of it matters to the job: a server that is away costs one line and some seconds.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Seconds: for one answer of the server, and for all that there is to tell.
PATIENCE, LIMIT = 10, 60.0
# MLflow takes no more at once, and no longer values.
PARAMETERS, METRICS, LONGEST = 100, 1000, 6000


@dataclass
class Story:
    """What there is to tell of a run."""

    began: float = field(default_factory=time.time)
    # Step, name, value.
    points: list[tuple[int, str, float]] = field(default_factory=list)
    trials: list[Mapping[str, Any]] = field(default_factory=list)
    answer: Mapping[str, Any] | None = None


_story: ContextVar[Story | None] = ContextVar("story", default=None)


def point(step: int, **figures: float) -> None:
    """Figures of an epoch or a round."""
    if story := _story.get():
        story.points += [(step, name, value) for name, value in figures.items()]


def trial(settings: Mapping[str, Any], curve: list[tuple[int, float]], **how: Any) -> None:
    """One trial of a search: a run below the run."""
    if story := _story.get():
        story.trials.append({"settings": settings, "curve": curve, **how})


@contextmanager
def run(job: str, parameters: Mapping[str, Any], code: str, folder: Path | None) -> Iterator[Story]:
    """Gather what is told within, and tell MLflow at the end."""
    story = Story()
    token = _story.set(story)
    try:
        yield story
    finally:
        _story.reset(token)
        if os.environ.get("MLFLOW_TRACKING_URI"):
            try:
                _tell(job, parameters, {"code": code, "folder": os.fspath(folder or "")}, story)
            except Exception as error:
                # Whatever it is: the job has its result without MLflow.
                why = next(iter(str(error).splitlines()), "")[:300] or type(error).__name__
                print(f"MLflow does not know of this run: {why}", file=sys.stderr, flush=True)


def figures(answer: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of what came out."""
    found: dict[str, float] = {}
    for name, value in answer.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = float(value)
        elif isinstance(value, Mapping):
            inner = figures(value)
            found |= inner if name == "metrics" else {f"{name}/{key}": each for key, each in inner.items()}
    return found


def _tell(job: str, parameters: Mapping[str, Any], tags: dict[str, str], story: Story) -> None:
    if find_spec("mlflow") is None:
        raise ModuleNotFoundError("mlflow is not installed here; it is part of the `ml` image")
    for name, value in (("TIMEOUT", PATIENCE), ("MAX_RETRIES", 0)):
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", str(value))
    # It would tell its makers, too; and a person an address that only nodes reach.
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"):
        os.environ.setdefault(name, "true")
    from mlflow import MlflowClient, MlflowException
    from mlflow.entities import Metric, Param

    client, until = MlflowClient(), time.monotonic() + LIMIT
    experiment = client.get_experiment_by_name(job)
    if experiment is None:
        try:
            number = client.create_experiment(job)
        except MlflowException:
            # Another run was first.
            number = client.get_experiment_by_name(job).experiment_id
    else:
        number = experiment.experiment_id

    def write(
        tags: Mapping[str, str], settings: Mapping[str, Any], points: list[tuple[int, str, float]], good: bool
    ) -> str:
        now = time.time()
        made = client.create_run(number, start_time=int(story.began * 1000), tags=tags, run_name=tags.get("run"))
        key: str = made.info.run_id
        params = [Param(name, str(value)[:LONGEST]) for name, value in settings.items()]
        metrics = [Metric(name, value, int(now * 1000), step) for step, name, value in points]
        for at in range(0, max(len(params), 1), PARAMETERS):
            client.log_batch(key, params=params[at : at + PARAMETERS])
        for at in range(0, len(metrics), METRICS):
            client.log_batch(key, metrics=metrics[at : at + METRICS])
        client.set_terminated(key, "FINISHED" if good else "FAILED")
        if time.monotonic() > until:
            raise TimeoutError(f"it takes longer than {LIMIT:.0f} s; the run is told in part")
        return key

    answer = story.answer or {}
    last = max((step for step, _, _ in story.points), default=0)
    points = [*story.points, *((last, name, value) for name, value in figures(answer).items())]
    if answer.get("model"):
        tags["model"] = str(answer["model"])
    if tags["folder"]:
        tags["run"] = Path(tags["folder"]).name
    above = write(tags, parameters, points, story.answer is not None)
    for count, each in enumerate(story.trials):
        below = {"mlflow.parentRunId": above, "run": f"trial {count + 1}"}
        if reason := each.get("reason"):
            below["reason"] = reason
        curve = [(step, "score", value) for step, value in each["curve"]]
        if "score" in each:
            curve.append((each["rounds"], "score", each["score"]))
        write(below, each["settings"], curve, "score" in each)
