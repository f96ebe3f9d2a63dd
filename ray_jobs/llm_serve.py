"""Serve language models to OpenAI's clients: on servers, as many replicas as are wanted, until it is told to stop.

muster run llm_serve -p model=tiny                 # of llm_train_tiny, or another folder in models/
muster run llm_serve -p models='[{"name": "gpt2", "hub": "openai-community/gpt2", "replicas": 2}]'
muster run llm_serve -p stop=true
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from pydantic import BaseModel, Field

from ray_jobs import afar, command, outcome, serving
from ray_jobs.command import JobError
from ray_jobs.llm import config
from ray_jobs.llm.config import APP, ROUTE, Model
from ray_jobs.models import Name

# Where the head keeps what is served.
NOTE = b"muster:llm"
# Where models of language are on the shared storage: those of llm_train_tiny first.
FOLDERS = ("models/llm", "models")


class Serving(command.Parameters):
    """What to serve from now on, instead of what is served; models in a list, or one by its name."""

    models: list[Model] = Field(default=[], description="as docs/jobs.md says: name, path or hub, replicas, batch ...")
    model: Name | None = Field(default=None, description="the latest of this name on the shared storage")
    replicas: int = Field(default=1, ge=1, le=1000, description="of `model`")
    cpus: int = Field(default=1, ge=1, le=256, description="of each replica of `model`")
    stop: bool = Field(default=False, description="end it")


class Served(BaseModel):
    """What is served where."""

    route: str | None = Field(description="below Serve's door on the head; none: it is stopped")
    models: dict[str, int] = Field(description="replicas by model")
    changed: bool = Field(description="no: this very thing was served already")
    seconds: float


def latest(name: str) -> str:
    """The folder of a model's latest version: that very one, so that all replicas have the same."""
    data = os.environ.get("MUSTER_DATA")
    if not data:
        raise JobError("model: there is no shared storage (MUSTER_DATA) to find it on: give models with path or hub")
    for folder in FOLDERS:
        found = Path(data, folder, name, "latest")
        if (found / "config.json").is_file():
            return os.fspath(found.resolve())
    there = sorted(
        {path.parent.parent.name for folder in FOLDERS for path in Path(data, folder).glob("*/latest/config.json")}
    )
    raise JobError(f"model: there is no {name}; there are {', '.join(there) or 'none: run llm_train_tiny'}")


def wanted(parameters: Serving) -> config.Config:
    """All that is to be served, checked as far as this host can."""
    if bool(parameters.models) == bool(parameters.model):
        raise JobError("give either models, a list, or model, the name of one (or stop=true)")
    models = list(parameters.models)
    if parameters.model:
        values = {"name": parameters.model, "path": latest(parameters.model), "replicas": parameters.replicas}
        models = config.check({"models": [{**values, "cpus": parameters.cpus}]}).models
    for model in models:
        if model.path and not (Path(model.path) / "config.json").is_file():
            raise JobError(f"{model.name}: {model.path} holds no config.json, as from_pretrained needs it")
    return config.check({"models": [model.model_dump() for model in models]})


def room(wanted: config.Config) -> None:
    """Say now what no server can hold; what only waits for a CPU is Ray's to wait for."""
    most = afar.largest()
    for model in wanted.models:
        if "class" not in model.labels and model.cpus > most:
            raise JobError(f"{model.name}: {model.cpus} CPUs are wanted of one server, the largest has {most:g}")


def note(digest: str | None = None) -> str:
    """What was deployed last and came up, as the head keeps it; with a digest that is written down."""
    # Serve keeps nothing for us that does not cost a process: Ray's own table does.
    from ray.experimental import internal_kv

    if digest is not None:
        internal_kv._internal_kv_put(NOTE, digest.encode())
    return (internal_kv._internal_kv_get(NOTE) or b"").decode()


def served(wanted: config.Config) -> bool:
    """Whether this very thing runs already."""
    from ray import serve

    there = serve.status().applications.get(APP)
    return there is not None and there.status == "RUNNING" and note() == wanted.digest


def follow(total: int) -> dict[str, int]:
    """Wait until all replicas are there, and say how many are."""
    running: dict[str, int] = {}
    for state, replicas in serving.follow(APP, APP):
        running = {name: count for name, count in replicas.items() if name.startswith("model-")}
        outcome.progress(min(sum(running.values()), total), total, state)
    return running


def run(parameters: Serving, local: bool = False) -> Served:
    """Deploy it, and wait until it answers; or end it."""
    if local:
        raise JobError("llm_serve works on a cluster only: leave --local out")
    command.needs("fastapi", "ray")
    start = time.perf_counter()
    if parameters.stop:
        from ray import serve

        if there := APP in serve.status().applications:
            serve.delete(APP)
        return Served(route=None, models={}, changed=there, seconds=round(time.perf_counter() - start, 3))
    command.needs("torch", "transformers", "tokenizers")
    found = wanted(parameters)
    room(found)

    from ray import serve

    from ray_jobs.llm import api

    new = APP not in serve.status().applications
    if changed := new or not served(found):
        note("")
        serving.deploy(api.build(found.model_dump()), APP, ROUTE)
    try:
        running = follow(sum(model.replicas.min for model in found.models))
    except JobError:
        if new:
            # Nobody used it yet, and Serve would try for ever.
            serve.delete(APP)
        raise
    note(found.digest)
    replicas = {model.name: running.get(model.deployment, 0) for model in found.models}
    return Served(route=ROUTE, models=replicas, changed=changed, seconds=round(time.perf_counter() - start, 3))


def show(served: Served) -> str:
    """The answer for people."""
    if served.route is None:
        return "llm is stopped"
    lines = [f"{name}: {count} replica{'s' * (count != 1)}" for name, count in served.models.items()]
    return "\n".join([*lines, f"{served.route}/v1 after {served.seconds:.0f} s"])


JOB = command.Job("llm_serve", __doc__ or "", Serving, run, show)

if __name__ == "__main__":
    raise SystemExit(JOB.main())
