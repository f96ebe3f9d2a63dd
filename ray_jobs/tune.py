"""Search for the best settings of train_boosted or train_torch, and train and keep the winner.

Ray Tune tries settings that Optuna suggests, one CPU each, on all servers at once; ASHA stops early what is far behind.
Trials see the rows for training and validation only. The winner is then trained as a run of its own would be, and
measured once on the rows of the test. Started again under its id, the job goes on after the trials that have ended.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from ray_jobs import command, guests, models, search, together, track, train_boosted, train_torch
from ray_jobs.command import JobError
from ray_jobs.models import Name
from ray_jobs.search import Range, Space

Number = int | float


class Tune(command.Parameters):
    """What to search in, and for how long. Without data, a made-up set of 20,000 rows: to try the cluster."""

    kind: Literal["boosted", "torch"] = Field(default="boosted", description="train_boosted's model or train_torch's")
    data: str = Field(default="", description="CSV or Parquet file, or a folder of Parquet files")
    target: str = "label"
    task: Literal["auto", "classification", "regression"] = Field(
        default="auto", description="as of train_boosted; torch tells classes apart"
    )
    features: list[str] = Field(default=[], description="columns to learn from; empty: all that the model can take")
    space: dict[str, Number | list[Number] | list[list[int]]] = Field(
        default={}, description='instead of the usual ranges: {"learning_rate": [0.01, 0.3], "max_depth": 4}'
    )
    trials: int = Field(default=50, ge=1, le=10_000)
    rounds: int = Field(default=0, ge=0, description="of a trial at most, epochs with torch; 0: as train_KIND")
    concurrent: int = Field(default=0, ge=0, description="trials at the same time; 0: as many as servers have CPUs")
    test_share: float = Field(default=0.2, gt=0, lt=1, description="rows for the metrics, which no trial sees")
    validation_share: float = Field(default=0.2, gt=0, lt=1, description="rows that trials are compared by")
    seed: int = Field(default=0, ge=0, lt=2**31)
    models: str = Field(default="", description="folder of models; empty: the winner is not kept")
    name: Name = "tuned"
    version: Name | None = Field(default=None, description="of the model; empty: the run's, or made from the time")

    @model_validator(mode="after")
    def _fits(self) -> Tune:
        if self.kind == "torch" and self.task == "regression":
            raise ValueError("task: torch tells classes apart; set kind=boosted")
        usual = search.SPACES[self.kind]
        if unknown := [name for name in self.space if name not in usual]:
            raise ValueError(f"space: {self.kind} has no {unknown[0]} to search for; there are {', '.join(usual)}")
        for settings in edges(ranges(self)):
            try:
                training(self, settings)
            except ValidationError as error:
                raise ValueError(f"space: {command.mistakes(error)}") from error
        return self


class Tuned(BaseModel):
    """What came out. The metrics are of rows that neither a trial nor the choice among them has seen."""

    kind: str
    settings: dict[str, Any] = Field(description="the winner's")
    metrics: dict[str, float]
    validation_loss: float = Field(description="the winner's, which it was chosen by; RMSE where numbers are learnt")
    worst_loss: float = Field(description="the worst trial's")
    trials: int
    failed: int
    stopped_early: int
    rounds: int = Field(description="of all trials")
    rounds_without_stopping: int = Field(description="trials times the rounds that each may take")
    train_rows: int
    validation_rows: int
    test_rows: int
    model: str | None
    seconds: float


def asked(name: str, wanted: Any, usual: Range | list[list[int]]) -> Range | list[list[int]]:
    """A range of the user's; ValueError when it is none."""
    if isinstance(usual, list):
        if not isinstance(wanted, list) or not wanted or not all(isinstance(each, list) for each in wanted):
            raise ValueError(f'space: {name} takes a list of layers to choose from: {{"{name}": [[64], [64, 32]]}}')
        return wanted
    pair = wanted if isinstance(wanted, list) else [wanted, wanted]
    if len(pair) != 2 or any(isinstance(each, list) for each in pair) or pair[0] > pair[1]:
        raise ValueError(f'space: {name} takes a range from low to high, or a number: {{"{name}": [LOW, HIGH]}}')
    if not isinstance(usual.low, int):
        pair = [float(each) for each in pair]
    return Range(pair[0], pair[1], log=usual.log and pair[0] > 0)


def ranges(parameters: Tune) -> Space:
    """The usual ranges, and those of the user instead."""
    usual = search.SPACES[parameters.kind]
    return {
        name: asked(name, parameters.space[name], each) if name in parameters.space else each
        for name, each in usual.items()
    }


def edges(space: Space) -> list[dict[str, Any]]:
    """Settings that are right only if all others in the space are."""
    most = max(len(each) if isinstance(each, list) else 2 for each in space.values())
    return [
        {
            name: each[min(at, len(each) - 1)] if isinstance(each, list) else (each.low, each.high)[min(at, 1)]
            for name, each in space.items()
        }
        for at in range(most)
    ]


def training(parameters: Tune, settings: Mapping[str, Any]) -> train_boosted.Boosted | train_torch.Torch:
    """Parameters of the training itself."""
    shared = parameters.model_dump(include={"data", "target", "features", "test_share", "validation_share", "seed"})
    rounds = parameters.rounds
    if parameters.kind == "torch":
        shared |= {"workers": 1, **({"epochs": rounds} if rounds else {})}
        return train_torch.Torch.model_validate({**shared, **settings})
    shared |= {"task": parameters.task, **({"rounds": rounds} if rounds else {})}
    return train_boosted.Boosted.model_validate({**shared, **settings})


def places(wanted: int) -> int:
    """How many trials there is room for."""
    cpus = int(sum(node["Resources"].get("CPU", 0) for node in guests.servers()))
    if not cpus:
        raise JobError("no server has a CPU for trials: set ray_worker_cpus, or wait until one is back (muster nodes)")
    return min(wanted or cpus, cpus)


def winner(
    parameters: Tune, best: Mapping[str, Any], local: bool
) -> tuple[dict[str, float], train_boosted.Trained | train_torch.Trained]:
    """Train with the best settings as a run of its own would, and keep the model."""
    run = command.folder()
    version = parameters.version or (run.name if run else None)
    kept = {"models": parameters.models, "name": parameters.name, "version": version}
    final = training(parameters, search.plain(best)).model_copy(update=kept)
    if isinstance(final, train_boosted.Boosted):
        made = train_boosted.run(final, local)
        return made.metrics, made
    told = train_torch.run(final, local)
    return told.model_dump(include={"accuracy", "balanced_accuracy", "f1_macro"}), told


def run(parameters: Tune, local: bool = False) -> Tuned:
    """Try, choose by the validation rows, train the best one and measure it on held-out rows."""
    command.needs("optuna", "sklearn", "pandas", "pyarrow", *models.KINDS[parameters.kind])
    start = time.perf_counter()
    room = 1 if local else places(parameters.concurrent)
    kept = command.folder()
    if parameters.kind == "torch" and not local:
        import ray

        # What the winner will need is better said now than after the search.
        together.room(1, None if kept else ray.get_runtime_context().get_node_id())
    if parameters.models:
        models.writable(parameters.models)
    base = training(parameters, {})
    work: search.Boosted | search.Torch = (
        search.Boosted.of(base) if isinstance(base, train_boosted.Boosted) else search.Torch.of(base)
    )
    # Trials of other rows or in another space say nothing here.
    what = hashlib.sha256(f"{work.fingerprint()} {parameters.model_dump_json()}".encode()).hexdigest()[:12]
    with ExitStack() as stack:
        home = kept or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tune-")))
        log = home / f"trials-{what}.jsonl"
        space = ranges(parameters)
        sought = search.Search(work, space, parameters.trials, parameters.seed, log)
        if local:
            search.here(sought)
        else:
            search.on_ray(sought, room)
    ended = sought.done
    for trial in ended:
        track.trial(search.plain(trial["config"]), **{key: trial[key] for key in trial if key != "config"})
    good = [trial for trial in ended if "score" in trial]
    if not good:
        raise JobError(f"all {len(ended)} trials failed; the first: {ended[0]['reason']}")
    best = min(good, key=lambda trial: trial["score"])
    metrics, made = winner(parameters, best["config"], local)
    return Tuned(
        kind=parameters.kind,
        settings=search.plain(best["config"]),
        metrics=metrics,
        validation_loss=best["score"],
        worst_loss=max(trial["score"] for trial in good),
        trials=len(ended),
        failed=len(ended) - len(good),
        stopped_early=sum(trial["early"] for trial in good),
        rounds=sum(trial["rounds"] for trial in good),
        rounds_without_stopping=len(ended) * work.rounds,
        train_rows=made.train_rows,
        validation_rows=made.validation_rows,
        test_rows=made.test_rows,
        model=made.model,
        seconds=round(time.perf_counter() - start, 3),
    )


JOB = command.Job("tune", __doc__ or "", Tune, run, tracked=True)

if __name__ == "__main__":
    raise SystemExit(JOB.main())
