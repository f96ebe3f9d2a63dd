"""Serve a saved model over HTTP: checked rows in, predictions out; a new version takes over without a failed request.

muster run serve_model -p model=boosted -p replicas=2 -p most=6   # the latest version in /srv/muster/models/boosted
muster run serve_model -p model=boosted -p version=20261122T104500Z
muster run serve_model -p model=boosted -p stop=true
muster run serve_model                                            # what is served
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, model_validator

from ray_jobs import afar, command, guests, models, outcome, serving
from ray_jobs.command import JobError
from ray_jobs.models import Name

# Applications of ours, beside others that Serve may have.
PREFIX, DEPLOYMENT = "model-", "model"
# A replica that is busier than this is given company, if there may be more.
BUSY = 16


class Serving(command.Parameters):
    """Which model is served from now on. Load only models that you trust: a forest is a program."""

    model: Name | None = Field(default=None, description="name of a saved model; without it: what is served")
    version: Name | None = Field(default=None, description="of the model; empty: the latest")
    models: str = Field(default="", description="folder of models; empty: that of the shared storage")
    replicas: int = Field(default=1, ge=1, le=1000, description="at any time")
    most: int = Field(default=0, ge=0, le=1000, description="replicas under load; 0: never more than `replicas`")
    cpus: float = Field(default=1, gt=0, le=256, description="of each replica")
    wait: float = Field(default=600, gt=0, description="seconds until all replicas must answer")
    stop: bool = Field(default=False, description="end it")

    @model_validator(mode="after")
    def _fits(self) -> Serving:
        if self.most and self.most < self.replicas:
            raise ValueError("most: fewer than replicas")
        if self.stop and not self.model:
            raise ValueError("stop: of which model?")
        return self


class Application(BaseModel):
    """A model that is served."""

    model: str
    version: str | None = Field(description="none: no replica answers yet")
    route: str
    replicas: int
    state: str


class Served(BaseModel):
    """All that is served now."""

    served: list[Application]
    seconds: float


def found(parameters: Serving) -> Path:
    """The folder of one version: that very one, so that all replicas have the same."""
    data = os.environ.get("MUSTER_DATA")
    root = parameters.models or (os.fspath(Path(data) / "models") if data else "")
    if not root:
        raise JobError("models: there is no shared storage (MUSTER_DATA): say in which folder the models are")
    folder = Path(root).absolute() / str(parameters.model)
    if not folder.is_dir():
        raise JobError(f"model: no {parameters.model} in {root}; there are {named(Path(root))}")
    version = folder / (parameters.version or "latest")
    if not version.is_dir():
        raise JobError(f"version: no {version.name} of {parameters.model}; there are {named(folder)}")
    return version.resolve()


def named(folder: Path) -> str:
    """The folders in a folder, for people."""
    if not folder.is_dir():
        return "none, and no such folder"
    return ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")) or "none"


def tried(folder: str) -> None:
    """Load a model and ask it something, as a replica will."""
    from ray_jobs import served

    about, model = models.load(Path(folder))
    texts = about.get("labels", {})
    row = {name: None if name in texts else 0.0 for name in about["features"]}
    served.answers(model, [row])


def check(folder: Path, cpus: float) -> None:
    """Say what is wrong with a model before anything of what is served changes."""
    import ray

    if "features" not in models.about(folder):
        raise JobError(f"model: {folder}/model.json names no features: it is no model of rows")
    if cpus > (most := afar.largest()):
        raise JobError(f"cpus: {cpus:g} are wanted of one server, the largest has {most:g}")
    outcome.progress(0, 2, "the model is tried on a server")
    options = guests.at_home(num_cpus=cpus, retries=3) | {"label_selector": afar.SERVER}
    try:
        command.returned(ray.remote(tried).options(**options).remote(os.fspath(folder)))
    except ray.exceptions.RayTaskError as error:
        # XGBoost adds its own stack.
        why = (str(error.cause).splitlines() or [type(error.cause).__name__])[0]
        raise JobError(f"model: {folder} cannot be used: {why}") from error


def deploy(parameters: Serving, folder: Path) -> None:
    """Ask Serve for it: where a version is served, the new one takes its place replica by replica."""
    from ray_jobs import served

    replica: Any = served.Model

    options: dict[str, Any] = {
        # Nothing of the head's and of laptops'; a share of a CPU, so that Ray sees that it is there.
        "ray_actor_options": {"num_cpus": parameters.cpus, "label_selector": afar.SERVER},
    }
    if parameters.most > parameters.replicas:
        options["autoscaling_config"] = {
            "min_replicas": parameters.replicas, "max_replicas": parameters.most, "target_ongoing_requests": BUSY,
            "upscale_delay_s": 5, "downscale_delay_s": 120,
        }  # fmt: skip
    else:
        options["num_replicas"] = parameters.replicas
    name = str(parameters.model)
    application = replica.options(**options).bind(name, os.fspath(folder))
    serving.deploy(application, PREFIX + name, f"/serve/{name}")


def follow(name: str, replicas: int, seconds: float) -> None:
    """Wait until all replicas are of this version and answer."""
    for state, running in serving.follow(PREFIX + name, name, seconds):
        outcome.progress(min(running.get(DEPLOYMENT, 0), replicas), replicas, f"replicas; {state}")


def listing() -> list[Application]:
    """The models that are served now."""
    from ray import serve

    found = []
    for name, application in sorted(serve.status().applications.items()):
        if not name.startswith(PREFIX) or application.status == "DELETING":
            continue
        deployment = application.deployments.get(DEPLOYMENT)
        running = deployment.replica_states.get("RUNNING", 0) if deployment else 0
        model = name.removeprefix(PREFIX)
        version = serve.get_app_handle(name).version.remote().result(timeout_s=30) if running else None
        state = application.status.value.lower()
        found.append(Application(model=model, version=version, route=f"/serve/{model}", replicas=running, state=state))
    return found


def run(parameters: Serving, local: bool = False) -> Served:
    """Check, deploy, and wait until it answers; or end it; or look."""
    if local:
        raise JobError("serve_model works on a cluster only: leave --local out")
    command.needs("fastapi", "pandas")
    from ray import serve

    start = time.perf_counter()
    name = parameters.model
    if name and parameters.stop:
        if PREFIX + name not in serve.status().applications:
            raise JobError(f"model: {name} is not served")
        serve.delete(PREFIX + name)
    elif name:
        folder = found(parameters)
        check(folder, parameters.cpus)
        deploy(parameters, folder)
        follow(name, parameters.replicas, parameters.wait)
    return Served(served=listing(), seconds=round(time.perf_counter() - start, 3))


def show(served: Served) -> str:
    """A line for each model."""
    lines = [
        f"{one.route}  {one.version or '-'}  {one.replicas} replica{'' if one.replicas == 1 else 's'}  {one.state}"
        for one in served.served
    ]
    return "\n".join(lines) or "no model is served"


JOB = command.Job("serve_model", __doc__ or "", Serving, run, show)

if __name__ == "__main__":
    raise SystemExit(JOB.main())
