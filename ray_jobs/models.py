"""Trained models as they are kept: MODELS/NAME/VERSION/ with a model.json that says what is in it, and `latest`."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from ray_jobs import boosting, command, network, tables
from ray_jobs.command import JobError

# What each kind of model needs to be loaded. The first is what models were that do not say their kind.
KINDS = {"forest": ("sklearn", "joblib"), "boosted": ("xgboost",), "torch": ("torch",)}


def _plain(name: str) -> str:
    if name in (".", "..") or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ValueError("letters, digits, dot, dash and underscore only: it is the name of a folder")
    return name


Name = Annotated[str, AfterValidator(_plain)]


def writable(folder: str) -> None:
    """Say so before the training, not after it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JobError(f"models: {folder} cannot be made: {error}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise JobError(f"models: {folder} is not writable for the user of this job")


def save(models: str, name: str, version: str | None, about: Mapping[str, Any], write: Callable[[Path], object]) -> str:
    """A folder with model.json and what `write` puts beside it, which appears complete or not at all."""
    version = version or time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    final = Path(models) / name / version
    partial = final.with_name(f".{version}.{uuid.uuid4().hex}")
    try:
        partial.mkdir(parents=True)
        write(partial)
        (partial / "model.json").write_text(json.dumps(about, indent=2))
        try:
            partial.rename(final)
        except OSError as error:
            if not final.is_dir():
                raise
            # The same version twice is the same job started again: keep what is there.
            print(f"{final} is there already and stays: {error}", file=sys.stderr, flush=True)
        latest = final.with_name(f".latest.{uuid.uuid4().hex}")
        latest.symlink_to(final.name)
        latest.rename(final.with_name("latest"))
    except OSError as error:
        raise JobError(f"models: {models} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return os.fspath(final)


def about(folder: Path) -> dict[str, Any]:
    """What a model says of itself, and that it can be loaded here."""
    if not (folder / "model.json").is_file():
        raise JobError(f"model: {folder} holds no model.json (is the shared storage mounted on this node?)")
    try:
        said: dict[str, Any] = json.loads((folder / "model.json").read_text())
        said.setdefault("kind", "forest")
    except (OSError, ValueError, AttributeError) as error:
        raise JobError(f"model: {folder}/model.json cannot be read: {error}") from error
    if said["kind"] not in KINDS:
        raise JobError(f"model: {folder} is of the kind {said['kind']}; known here are {', '.join(KINDS)}")
    command.needs("pandas", *KINDS[said["kind"]])
    return said


def load(folder: Path) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    """What a model says of itself, and what answers for each row of a table.

    Load only models that you trust: a forest is a program.
    """
    said = about(folder)
    if said["kind"] == "boosted":
        booster = boosting.load(folder / boosting.FILE)
        return said, lambda table: boosting.predict(booster, table, said)
    if said["kind"] == "torch":
        weights = network.load(folder / network.WEIGHTS)
        return said, lambda table: network.predict(weights, said, tables.matrix(table, said["features"]))
    import joblib

    forest = joblib.load(folder / "model.joblib")
    return said, lambda table: forest.predict(tables.matrix(table, said["features"]))
