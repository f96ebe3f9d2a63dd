"""The jobs there are. A new one is a module here with a JOB in it, its name below, and a section in docs/jobs.md."""

from __future__ import annotations

import hashlib
import importlib
from functools import cache
from pathlib import Path

from ray_jobs.command import Job

NAMES = (
    "hello", "benchmark", "process", "train_forest", "train_boosted", "train_torch", "tune", "predict", "serve_model",
    "montecarlo", "rl", "llm_train_tiny", "llm_serve",
)  # fmt: skip


def get(name: str) -> Job:
    """A job by its name; KeyError when there is none."""
    if name not in NAMES:
        raise KeyError(name)
    job: Job = importlib.import_module(f"ray_jobs.{name}").JOB
    return job


@cache
def code_hash() -> str:
    """The code that jobs are made of, as one word: what a run was done with."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in sorted(here.rglob("*.py")):
        digest.update(f"{path.relative_to(here).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
