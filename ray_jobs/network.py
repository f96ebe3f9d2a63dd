"""A small neural network for tables and its epochs: the same in one process as in each worker of Ray Train."""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

# What an epoch leaves: enough to go on after it, and the best network so far.
STATE = "state.pt"
# What is kept of the best epoch as a model.
WEIGHTS = "model.pt"
State = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How to learn."""

    hidden: tuple[int, ...]
    classes: int
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int


@dataclass(frozen=True)
class Place:
    """Where an epoch runs: alone, or as one of several workers that share every batch."""

    rank: int = 0
    world: int = 1
    # Makes the network one whose gradients are the mean over the workers.
    joined: Callable[[Any], Any] = lambda network: network
    # A worker's figure, summed over all of them.
    total: Callable[[float], float] = lambda figure: figure


def build(features: int, hidden: Sequence[int], classes: int) -> Any:
    """The network, with weights that torch's seed decides."""
    from torch import nn

    sizes = [features, *hidden]
    layers: list[Any] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


def measure(x: Any) -> tuple[Any, Any]:
    """Mean and deviation of each column, whose missing values count for nothing."""
    import numpy as np

    known = np.ma.masked_invalid(x)
    mean, deviation = known.mean(axis=0).filled(0.0), known.std(axis=0).filled(0.0)
    # A column that is always the same says nothing; it must not become a division by zero.
    return mean, np.where(deviation > 0, deviation, 1.0)


def scale(x: Any, mean: Any, deviation: Any) -> Any:
    """Columns around zero; what is missing becomes the mean."""
    import numpy as np

    return np.nan_to_num((x - mean) / deviation, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32)


def note(path: Path, **what: Any) -> None:
    """One more line in the log of a training."""
    with path.open("a") as log:
        log.write(json.dumps(what) + "\n")


def notes(path: Path) -> list[dict[str, Any]]:
    """The log's lines; the last may be half written, then it is not there yet."""
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def read(folder: Path) -> State | None:
    """What the last epoch left in a folder; None when there was none."""
    import torch

    path = folder / STATE
    # Weights only: a state is data, and must not be able to run code.
    return torch.load(path, weights_only=True) if path.exists() else None


def learn(
    parts: Sequence[Any], plan: Plan, place: Place, state: State | None, keep: Callable[[State, dict[str, Any]], None]
) -> None:
    """The epochs that are left, each given to `keep`; ends early when the loss is no number any more.

    An epoch depends on the state before it and on the seed only, not on how many workers share it or how often
    they were started.
    """
    import torch
    from torch.nn.functional import cross_entropy

    x, y, x_valid, y_valid = (torch.tensor(part) for part in parts)
    torch.manual_seed(plan.seed)
    network = build(x.shape[1], plan.hidden, plan.classes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
    if state:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
    best = state["best"] if state else None
    joined = place.joined(network)
    for epoch in range(state["epoch"] + 1 if state else 0, plan.epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(plan.seed * 1_000_003 + epoch))
        summed = 0.0
        for batch in order.split(plan.batch_size):
            mine = batch[place.rank :: place.world]
            loss = cross_entropy(joined(x[mine]), y[mine], reduction="sum")
            optimizer.zero_grad()
            # Workers' gradients are averaged: this makes it the mean over the batch, also where shares are unequal.
            (loss * (place.world / len(batch))).backward()
            optimizer.step()
            summed += loss.item()
        figures = {"epoch": epoch, "loss": place.total(summed) / len(x)}
        if not math.isfinite(figures["loss"]):
            return
        if place.rank == 0:
            with torch.no_grad():
                figures["validation_loss"] = cross_entropy(network(x_valid), y_valid).item()
            if best is None or figures["validation_loss"] < best["loss"]:
                weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
                best = {"epoch": epoch, "loss": figures["validation_loss"], "network": weights}
        left = {"epoch": epoch, "network": network.state_dict(), "optimizer": optimizer.state_dict(), "best": best}
        keep(left, figures)


@contextmanager
def one_thread() -> Iterator[None]:
    """As a worker has it: threads wait for each other longer than steps this small take."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def alone(parts: Sequence[Any], plan: Plan, folder: Path, log: Path, told: Callable[[dict[str, Any]], object]) -> None:
    """Learn in this process, going on after the last epoch in the folder."""
    import torch

    def keep(state: State, figures: dict[str, Any]) -> None:
        partial = folder / f".{STATE}"
        torch.save(state, partial)
        partial.replace(folder / STATE)
        note(log, **figures)
        told(figures)

    state = read(folder)
    note(log, rank=0, pid=os.getpid(), host=socket.gethostname(), start=state["epoch"] + 1 if state else 0)
    with one_thread():
        learn(parts, plan, Place(), state, keep)


def classify(weights: State, plan: Plan, x: Any) -> Any:
    """The number of the likeliest class of each row."""
    import torch

    network = build(x.shape[1], plan.hidden, plan.classes)
    network.load_state_dict(weights)
    with torch.no_grad():
        return network(torch.tensor(x)).argmax(1).numpy()


def load(file: Path) -> State:
    """The weights of a model that was kept. They are data, and cannot run code."""
    import torch

    weights: State = torch.load(file, weights_only=True)
    return weights


def predict(weights: State, about: Mapping[str, Any], x: Any) -> list[Any]:
    """What a model says of rows with its features, in their order; `about` is its model.json."""
    numbers = classify(weights, Plan(**about["plan"]), scale(x, about["mean"], about["deviation"]))
    return [about["classes"][number] for number in numbers]
