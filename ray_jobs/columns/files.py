"""Which files there are, and how to run something for each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ray_jobs import command, figures, guests, outcome
from ray_jobs.columns.rows import ENDINGS
from ray_jobs.command import JobError

T = TypeVar("T")
# Runs a function for each of some arguments: here, or as tasks.
Over = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]], str], list[Any]]


def files_of(source: Path, target: Path) -> list[Path]:
    """What to read, each with a name of its own for its result."""
    files = [source] if source.is_file() else []
    if source.is_dir():
        if source.resolve() == target.resolve():
            raise JobError(f"target: {target} is the source, too: name another folder, or results become sources")
        files = [path for path in source.iterdir() if path.suffix in ENDINGS and path.is_file()]
        # What an earlier run set aside, and halves of files.
        files = [path for path in files if not path.name.startswith((".", "_")) and ".rejected" not in path.suffixes]
    if not files:
        mounted = "is the shared storage mounted on this node?"
        raise JobError(f"source: no CSV, Parquet or JSON lines at {source} ({mounted})")
    if len({path.stem for path in files}) < len(files):
        raise JobError(f"source: files in {source} differ only in their ending; each needs a result of its own")
    if any(path.resolve() == (target / f"{path.stem}.parquet").resolve() for path in files):
        raise JobError(f"target: {target} holds the source itself, which would be written over: name another folder")
    return sorted(files)


def here(function: Callable[..., T], arguments: Sequence[tuple[Any, ...]], note: str) -> list[T]:
    """What a function returns for each, one after the other, in this process."""
    return [function(*each) for each in arguments]


def on_ray(function: Callable[..., T], arguments: Sequence[tuple[Any, ...]], note: str) -> list[T]:
    """The same, each as a task that may be repeated."""
    import ray

    # It bears repetition, but the files are on the shared storage, which laptops do not have.
    remote = ray.remote(figures.carried(function)).options(**guests.at_home(retries=5, scheduling_strategy="SPREAD"))
    waiting = asked = [remote.remote(*each) for each in arguments]
    while waiting:
        _, waiting = ray.wait(waiting)
        outcome.progress(len(asked) - len(waiting), len(asked), f"files {note}")
    found: list[T] = command.returned(asked)
    return found
