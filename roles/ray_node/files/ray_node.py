"""Start a Ray node in its container, and say whether it lives. Runs without Ray's import, which costs seconds."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

DAY = 86_400
SWEEP_EVERY = 3_600
PID_IN_NAME = re.compile(r"[-_](\d+)\.(?:log|out|err)$")


def old_sessions(root: Path, keep: int) -> list[Path]:
    """The session directories beyond the newest `keep`; the one that `session_latest` names always stays."""
    latest = (root / "session_latest").resolve()
    sessions = [path for path in root.glob("session_*") if path.is_dir() and not path.is_symlink()]
    sessions.sort(key=lambda path: (path.resolve() == latest, path.stat().st_mtime), reverse=True)
    return sessions[keep:]


def old_logs(root: Path, days: float, now: float, alive: set[int]) -> list[Path]:
    """Log files nobody wrote to for so many days, unless the process in their name still runs."""
    found = []
    for path in root.glob("session_*/logs/**/*"):
        if path.is_symlink() or not path.is_file() or path.stat().st_mtime > now - days * DAY:
            continue
        pid = PID_IN_NAME.search(path.name)
        if pid and int(pid.group(1)) in alive:
            continue
        found.append(path)
    return found


def sweep(root: Path, days: float) -> None:
    """Remove old logs; Ray keeps those of every worker process it ever started."""
    alive = {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()}
    for path in old_logs(root, days, time.time(), alive):
        path.unlink(missing_ok=True)


def prepare(root: Path, spill: Path, keep: int, days: float) -> None:
    """Clean what a former life left: nothing of it can be in use, the container has only just started."""
    for path in old_sessions(root, keep):
        shutil.rmtree(path, ignore_errors=True)
    for path in spill.iterdir() if spill.is_dir() else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    sweep(root, days)


def wait_for(address: str) -> None:
    """Wait until the head accepts connections, however long it is away."""
    host, port = address.rsplit(":", 1)
    told = 0.0
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=3).close()
            return
        except OSError as error:
            if time.monotonic() - told > 60:
                told = time.monotonic()
                print(f"waiting for the head at {address}: {error}", flush=True)
            time.sleep(1)


def fork_sweeper(root: Path, days: float) -> None:
    """Sweep once an hour beside Ray; it ends with the container."""
    if os.fork():
        return
    while True:
        time.sleep(SWEEP_EVERY)
        try:
            sweep(root, days)
        except OSError as error:
            print(f"old logs stay: {error}", flush=True)


def start(arguments: list[str]) -> None:
    """Clean up, wait for the head where this is a worker, and become `ray start`."""
    data = Path(os.environ["RAY_TMPDIR"])
    root, spill = data / "ray", data / "spill"
    days = float(os.environ["MUSTER_RAY_LOG_DAYS"])
    # Here and not on the host: Ray opens its own directory to everyone, the one around it stays closed.
    for path in (root, spill, *([data / "gcs"] if "--head" in arguments else [])):
        path.mkdir(exist_ok=True)
    prepare(root, spill, int(os.environ["MUSTER_RAY_SESSIONS"]), days)
    for argument in arguments:
        if argument.startswith("--address="):
            wait_for(argument.removeprefix("--address="))
    fork_sweeper(root, days)
    os.execvp("ray", ["ray", "start", "--block", *arguments])


def healthy(urls: list[str]) -> bool:
    """Whether Ray itself answers well at every address."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for url in urls:
        try:
            with opener.open(url, timeout=5) as answer:
                answer.read()
        except urllib.error.HTTPError as error:
            print(f"{url}: {error.code} {error.read()[:200].decode(errors='replace')}")
            return False
        except OSError as error:
            print(f"{url}: {error}")
            return False
    return True


if __name__ == "__main__":
    if sys.argv[1] == "start":
        start(sys.argv[2:])
    elif sys.argv[1] == "healthy":
        sys.exit(not healthy(sys.argv[2:]))
