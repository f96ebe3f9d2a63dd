"""How a job tells its watcher how far it is and what came out: marked lines on its output, which is Ray's log of it.

The log is the one thing of a job that is readable through the Jobs API from anywhere; a file would need shared storage.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ray_jobs import figures

PROGRESS = "::muster-progress::"
RESULT = "::muster-result::"
# A result is an answer, not data: what is larger belongs into a file whose path is the result.
LARGEST = 65_536


class ResultTooLargeError(ValueError):
    """What a job wants to give back is data, not an answer."""


def _tell(mark: str, value: Any, largest: int) -> None:
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    if len(text) > largest:
        raise ResultTooLargeError(f"{len(text)} bytes of result, {largest} at most: write a file and return its path")
    # One write, with its own line before and after: others write to the same log.
    sys.stdout.write(f"\n{mark}{text}\n")
    sys.stdout.flush()


def progress(done: float, total: float, note: str = "", **shown: float) -> None:
    """Say how far the job is, and what else figures.py has names for; as often as it means something to a person."""
    figures.show(done=done, total=total, **shown)
    _tell(PROGRESS, {"done": done, "total": total, "note": note[:200]}, 4096)


def result(value: Any) -> None:
    """Say what came out, as JSON."""
    _tell(RESULT, value, LARGEST)


def last(mark: str, log: str) -> Any | None:
    """What the last line with this mark says; None when there is none, or it was cut."""
    for line in reversed(log.splitlines()):
        if line.startswith(mark):
            try:
                return json.loads(line.removeprefix(mark))
            except ValueError:
                return None
    return None


def without_marks(log: str) -> str:
    """The log as people want to see it."""
    lines = (line for line in log.splitlines() if not line.startswith((PROGRESS, RESULT)))
    return "\n".join(line for line in lines if line.strip())
