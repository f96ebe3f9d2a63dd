"""What a laptop's agent, or who drains a server, asks of the worker, and what it answers: files that both see."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The agent takes what is older than 15 s for the word of a service that is gone.
EVERY = 5.0


@dataclass(frozen=True)
class Want:
    """Whether to work; if not, how many seconds what runs may still take."""

    work: bool = True
    within: float = 0.0
    at: float = 0.0


@dataclass
class Agent:
    """The other side of `folder`; without one nobody asks, and it always works."""

    folder: Path | None
    name: str
    _read: Want = field(default_factory=Want)
    _stamp: tuple[int, int] = (0, 0)
    _said: dict[str, Any] = field(default_factory=dict)
    _said_at: float = 0.0

    def want(self) -> Want:
        """What the agent last wrote; what cannot be read changes nothing."""
        if self.folder is None:
            return self._read
        path = self.folder / "want"
        try:
            found = path.stat()
            if (found.st_mtime_ns, found.st_ino) != self._stamp:
                given = json.loads(path.read_text())
                self._read = Want(bool(given["work"]), float(given.get("within", 0)), float(given.get("at", 0)))
                self._stamp = found.st_mtime_ns, found.st_ino
        except FileNotFoundError:
            self._read, self._stamp = Want(), (0, 0)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return self._read

    def say(self, *, work: bool, running: list[dict[str, str]]) -> None:
        """On every change and every few seconds."""
        what = {"work": work, "running": running}
        if self.folder is None or (what == self._said and time.monotonic() - self._said_at < EVERY):
            return
        path = self.folder / "said" / f"celery_{self.name}.json"
        fresh = path.with_suffix(".new")
        # A disk that is full must not end the worker.
        with contextlib.suppress(OSError):
            fresh.write_text(json.dumps({**what, "at": time.time()}))
            fresh.replace(path)
            self._said, self._said_at = what, time.monotonic()
