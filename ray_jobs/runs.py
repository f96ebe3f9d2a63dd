"""What is kept of a run: a folder of its own on the shared storage, with a run.json that says how to repeat it.

    $MUSTER_DATA/results/JOB/20261122T104500Z-ID/run.json

The folder is never written over; a job that Ray starts again under the same id finds the one it had, and with it what
it had saved. Where MUSTER_DATA is not set nothing is kept, and what came out is in the job's log only.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

# What a figure may depend on; those that the image has are noted.
LIBRARIES = ("ray", "numpy", "pandas", "pyarrow", "scikit-learn", "xgboost", "torch", "transformers")


def root() -> Path | None:
    """Where runs are kept; None when nowhere."""
    data = os.environ.get("MUSTER_DATA")
    return Path(data) / "results" if data else None


def versions() -> dict[str, str]:
    """Python's and the libraries'."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass
class Run:
    """One run of a job, as it is written down."""

    folder: Path
    about: dict[str, Any]

    def write(self) -> None:
        """run.json, complete or not at all."""
        partial = self.folder / f".run.json.{uuid.uuid4().hex}"
        partial.write_text(json.dumps(self.about, indent=2) + "\n")
        partial.replace(self.folder / "run.json")

    def ended(self, state: str, **more: Any) -> None:
        """Write down how it ended."""
        now = time.time()
        self.about |= {"state": state, "ended": stamp(now), "seconds": round(now - self.about["since"], 3), **more}
        self.write()


def stamp(when: float) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(when))


def begin(job: str, parameters: Mapping[str, Any], code: str, where: Path | None = None) -> Run | None:
    """A folder for this run, or the one that it had before it was started again; None where nothing is kept."""
    where = where or root()
    if where is None:
        return None
    now = time.time()
    # Ray's id of the job, so that a second start of the same job is the same run.
    identity = os.environ.get("MUSTER_RAY_JOB") or uuid.uuid4().hex[:12]
    before = sorted((where / job).glob(f"*Z-{identity}/run.json"))
    if before:
        about = json.loads(before[0].read_text())
        about |= {"state": "running", "starts": about["starts"] + 1, "since": now}
        run = Run(before[0].parent, about)
    else:
        folder = where / job / f"{stamp(now)}-{identity}"
        folder.mkdir(parents=True)
        run = Run(
            folder,
            {"job": job, "id": identity, "state": "running", "started": stamp(now), "since": now, "starts": 1,
             "host": socket.gethostname(), "parameters": dict(parameters), "code": code, "versions": versions()},
        )  # fmt: skip
    run.write()
    return run


def kept(where: Path, job: str = "*") -> list[dict[str, Any]]:
    """What the runs below a folder say of themselves, the newest first; what cannot be read is left out."""
    found = []
    for path in where.glob(f"{job}/*/run.json"):
        try:
            found.append({**json.loads(path.read_text()), "folder": os.fspath(path.parent)})
        except (OSError, ValueError):
            continue
    return sorted(found, key=lambda about: str(about.get("started")), reverse=True)
