"""What jobs do in a time, against the same without a cluster; with the libraries of the `ml` image (.venv-jobs)."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PYTHON = os.fspath(ROOT / ".venv-jobs/bin/python")
POLARS = "polars==2.1.0"
# BENCH_ROWS=1000000 for less.
ROWS = int(os.environ.get("BENCH_ROWS", "10000000"))
ONE_THREAD = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
ROUNDS, EPOCHS, TRIALS = 3, 12, 30


def inside(python: str, *words: object, **environment: str) -> Any:
    """What bench/jobs_inside.py says."""
    environment = {**os.environ, "PYTHONPATH": os.fspath(ROOT), "RAY_AUTH_MODE": "disabled", **environment}
    command = [python, os.fspath(ROOT / "bench/jobs_inside.py"), *map(str, words)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{run.stdout[-1000:]}{run.stderr[-3000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def rows() -> dict[str, object]:
    """CSV to Parquet with three computed columns: `process` on two CPUs, against one process, pandas and polars."""
    with tempfile.TemporaryDirectory(prefix="muster-bench-") as name:
        folder = Path(name)
        own = folder / "polars"
        subprocess.run(["uv", "venv", "--quiet", "--python", PYTHON, own], check=True)
        subprocess.run(["uv", "pip", "install", "--quiet", "--python", own / "bin/python", POLARS], check=True)
        made = inside(PYTHON, "make", folder / "in", ROWS)
        ways: dict[str, tuple[str, str, dict[str, str]]] = {
            "process on Ray, 2 CPUs": (PYTHON, "process", {}),
            "process, one thread": (PYTHON, "local", ONE_THREAD),
            "pandas, one thread": (PYTHON, "pandas", ONE_THREAD),
            "pandas": (PYTHON, "pandas", {}),
            "polars, one thread": (os.fspath(own / "bin/python"), "polars", ONE_THREAD),
            "polars": (os.fspath(own / "bin/python"), "polars", {}),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        sums = {}
        for _ in range(ROUNDS):
            for way, (python, what, environment) in ways.items():
                target = folder / "out"
                seconds[way].append(inside(python, what, folder / "in", target, **environment))
                sums[way] = inside(PYTHON, "sums", target)
                shutil.rmtree(target)
    if len({tuple(found.items()) for found in sums.values()}) > 1:
        raise SystemExit(f"they did not compute the same: {sums}")
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    ours = medians["process on Ray, 2 CPUs"]
    return made | {
        way: {
            "seconds": round(median, 2),
            "rows/s": round(made["rows"] / median),
            "times the rows of process on Ray": round(ours / median, 2),
        }
        for way, median in medians.items()
    }


def workers() -> dict[str, object]:
    """train_torch with two workers against one, on the same rows: seconds of an epoch."""
    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for _ in range(ROUNDS):
        for number, runs in found.items():
            runs.append(inside(PYTHON, "train", number, max(ROWS // 20, 20_000), EPOCHS))
    medians: dict[int, Mapping[str, float]] = {
        number: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for number, runs in found.items()
    }
    one, two = (medians[number]["seconds per epoch"] for number in (1, 2))
    return {"one worker": medians[1], "two workers": medians[2], "times as fast": round(one / two, 2)}


def search() -> dict[str, object]:
    """Tune on two CPUs against scikit-learn's own search through the same settings, on the same rows."""
    found: dict[str, list[dict[str, float]]] = {"tune": [], "scikit-learn": []}
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="muster-bench-") as folder:
            found["tune"].append(inside(PYTHON, "tune", folder, TRIALS))
            found["scikit-learn"].append(inside(PYTHON, "grid", folder, **ONE_THREAD))
    medians = {
        way: {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
        for way, runs in found.items()
    }
    ratio = medians["scikit-learn"]["seconds"] / medians["tune"]["seconds"]
    return {"trials": TRIALS, **medians, "times as fast": round(ratio, 2)}


def sizes() -> dict[str, object]:
    """The node image by profile: the targets are 1.2 GB for core and 3.5 GB for ml."""
    command = ["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}} {{.Size}}"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    images = dict(line.rsplit(" ", 1) for line in lines)
    # Newest first: of several that were built the first counts.
    return {
        profile: next((size for name, size in images.items() if f"/node:{profile}-" in name), "not built here")
        for profile in ("core", "ml")
    }
