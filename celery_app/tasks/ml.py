"""Queue `ml`: training and prediction as Ray jobs. Served on the head's host, where the Jobs API is (ray_bridge)."""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any, TypeVar

from celery import shared_task
from pydantic import ValidationError

from celery_app.ray_bridge import RAY_JOB, ray_job
from ray_jobs import library, train_forest
from ray_jobs import predict as jobs_predict
from ray_jobs import process as jobs_process
from ray_jobs.command import Parameters, mistakes

P = TypeVar("P", bound=Parameters)
DATA = Path(os.environ.get("MUSTER_DATA", "/srv/muster"))


def checked(model: type[P], values: dict[str, Any]) -> P:
    """The job's parameters, before anything is sent to Ray."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ValueError(mistakes(error)) from error


@shared_task(name="celery_app.tasks.ml.run", **RAY_JOB)
def run(self: Any, job: str, parameters: dict[str, Any]) -> Any:
    """Run a job of the library (`muster run NAME --queue`, `muster jobs`)."""
    try:
        wanted = library.get(job)
    except KeyError:
        raise ValueError(f"there is no job {job!r}; there are {', '.join(library.NAMES)}") from None
    return ray_job(wanted.entrypoint(checked(wanted.model, parameters)))


@shared_task(name="celery_app.tasks.ml.train", **RAY_JOB)
def train(self: Any, parameters: dict[str, Any]) -> Any:
    """Train a random forest. The version is the task's id, so that a repeat writes the same model."""
    wanted = {"models": os.fspath(DATA / "models"), "version": self.request.id, **parameters}
    return ray_job(train_forest.JOB.entrypoint(checked(train_forest.Forest, wanted)))


@shared_task(name="celery_app.tasks.ml.predict", **RAY_JOB)
def predict(self: Any, parameters: dict[str, Any]) -> Any:
    """Predict files with a trained model (ray_jobs.predict)."""
    return ray_job(jobs_predict.JOB.entrypoint(checked(jobs_predict.Predict, parameters)))


@shared_task(name="celery_app.tasks.ml.process", **RAY_JOB)
def process(self: Any, parameters: dict[str, Any]) -> Any:
    """Make typed Parquet of many or large CSV files (ray_jobs.process); for small ones there is tasks.data.process."""
    return ray_job(jobs_process.JOB.entrypoint(checked(jobs_process.Process, parameters)))


def due(models: Path, now: float, days: float) -> list[tuple[str, dict[str, Any]]]:
    """Names and parameters of the models that are older than this, or whose data has changed since."""
    found = []
    for latest in sorted(models.glob("*/latest/model.json")):
        trained = latest.stat().st_mtime
        about = json.loads(latest.read_text())
        if about.get("job", train_forest.JOB.name) != train_forest.JOB.name:
            # Other jobs' models stand in the same folder; `train` would not know their parameters.
            continue
        parameters = about["parameters"]
        data = Path(parameters.get("data") or "/nowhere")
        files = [data, *data.glob("*")] if data.is_dir() else [data]
        changed = max((file.stat().st_mtime for file in files if file.exists()), default=0.0)
        if now - trained > days * 86_400 or changed > trained:
            found.append((latest.parent.parent.name, {**parameters, "version": None}))
    return found


@shared_task(name="celery_app.tasks.ml.retrain_due", bind=True)
def retrain_due(self: Any, days: float = 7) -> dict[str, str]:
    """Send a training for every model that is due; the ids by name. Repeated, it sends the same ids again."""
    sent = {}
    for name, parameters in due(DATA / "models", time.time(), days):
        task_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.request.id}/{name}"))
        train.apply_async(args=[{**parameters, "version": task_id}], task_id=task_id, priority=9)
        sent[name] = task_id
    return sent
