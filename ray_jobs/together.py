"""Ray Train for ray_jobs.train_torch: its workers on one server, off the laptops, started again when one dies."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

from ray_jobs import guests, network, outcome
from ray_jobs.command import JobError

# How often workers may die before the job gives up: a mistake in the code kills them every time.
DEATHS = 3


def worker(config: dict[str, Any]) -> None:
    """One of Ray Train's workers, going on after the last epoch that Train knows of."""
    import ray
    import torch
    from ray import train
    from ray.train.torch import prepare_model

    def total(figure: float) -> float:
        tensor = torch.tensor(figure, dtype=torch.float64)
        if place.world > 1:
            torch.distributed.all_reduce(tensor)
        return float(tensor)

    def keep(state: network.State, figures: dict[str, Any]) -> None:
        # Every worker must report, and waits for the others there; the first one's word counts.
        if place.rank:
            train.report(figures)
            return
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, Path(folder) / network.STATE)
            train.report(figures, checkpoint=train.Checkpoint.from_directory(folder))
        network.note(log, **figures)

    context = train.get_context()
    place = network.Place(context.get_world_rank(), context.get_world_size(), prepare_model, total)
    log, state = Path(config["log"]), None
    if checkpoint := train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state = network.read(Path(folder))
    here = {"pid": os.getpid(), "host": socket.gethostname(), "node": ray.get_runtime_context().get_node_id()}
    network.note(log, rank=place.rank, **here, start=state["epoch"] + 1 if state else 0)
    network.learn(ray.get(config["parts"]), config["plan"], place, state, keep)


def room(workers: int, node: str | None) -> None:
    """Stop with one clear line when no server has the CPUs: Ray would wait for them for ever."""
    # Workers talk over random ports, which the firewall shuts between hosts: they have to be on one.
    places = {one["NodeID"]: int(one["Resources"].get("CPU", 0)) for one in guests.servers()}
    most = max(places.values(), default=0) if node is None else places.get(node, 0)
    if most >= workers:
        return
    fix = f"set workers={most}" if most else "start the job on a server with CPUs (`muster run` does)"
    if node is not None and max(places.values(), default=0) > most:
        fix += ", or set MUSTER_DATA to shared storage, so that other servers can take it"
    where = "no server has" if node is None else "without shared storage it stays on this node, which has not"
    raise JobError(f"workers: {where} {workers} CPUs, {most} at most: {fix}")


def watch(log: Path, epochs: int, ended: threading.Event) -> None:
    """Tell how far the workers are: what they print does not come here."""
    told = None
    while True:
        over = ended.wait(1.0)
        done = [item for item in network.notes(log) if "loss" in item]
        if done and done[-1] != told:
            told = done[-1]
            tell(told, epochs)
        if over:
            return


def tell(figures: dict[str, Any], epochs: int) -> None:
    """One epoch, as progress."""
    losses = {name: figures[name] for name in ("loss", "validation_loss")}
    note = f"loss {losses['loss']:.4f}, validation {losses['validation_loss']:.4f}"
    outcome.progress(figures["epoch"] + 1, epochs, note, **losses)


def fit(parts: list[Any], plan: network.Plan, workers: int, folder: Path, log: Path, node: str | None) -> Any:
    """Learn with Ray Train, and return what the last epoch left; None when there was none."""
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    # Train's watcher of preempted nodes asks for no CPU and has no selector: Ray may put it on a laptop.
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    # Train takes one report per look, and looks every 2 s: longer than an epoch here.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    snapshot = folder / "checkpoint_manager_snapshot.json"
    try:
        json.loads(snapshot.read_text() if snapshot.exists() else "{}")
    except ValueError:
        # Train writes it in place: cut off, it would stop every new start of this job.
        snapshot.unlink()
    trainer = TorchTrainer(
        worker,
        train_loop_config={"parts": ray.put(parts), "plan": plan, "log": os.fspath(log)},
        scaling_config=ScalingConfig(
            num_workers=workers,
            resources_per_worker={"CPU": 1},
            placement_strategy="STRICT_PACK",
            label_selector={**guests.AT_HOME, **({"ray.io/node-id": node} if node else {})},
        ),
        torch_config=TorchConfig(backend="gloo"),
        run_config=RunConfig(
            name=folder.name,
            storage_path=os.fspath(folder.parent),
            failure_config=FailureConfig(max_failures=DEATHS),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    ended = threading.Event()
    watcher = threading.Thread(target=watch, args=(log, plan.epochs, ended), daemon=True)
    watcher.start()
    try:
        checkpoint = trainer.fit().checkpoint
    finally:
        ended.set()
        watcher.join()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as there:
        return network.read(Path(there))
