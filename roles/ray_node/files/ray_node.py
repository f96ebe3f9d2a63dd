"""Start a Ray node in its container, and say whether it lives. Runs without Ray's import, which costs seconds."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

DAY = 86_400
SWEEP_EVERY = 3_600
# How often a worker looks at what is wanted of it, how often it says what it does, and how often it asks for the
# head. What it said longer ago than SILENT is not believed.
LOOK, SAY, ASK, SILENT = 0.25, 5.0, 2.0, 15.0
# Seconds for running tasks when the container is told to stop; of any time to end, the last one is for Ray itself.
STOP, LAST = 10.0, 1.0
# Of prctl: orphans become children of this process; this process gets a signal when its parent ends.
SUBREAPER, PARENT_DIES = 36, 1
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


def fork_sweeper(root: Path, days: float) -> int:
    """Sweep once an hour beside Ray; it ends with what started it. Its pid."""
    if pid := os.fork():
        return pid
    ctypes.CDLL(None).prctl(PARENT_DIES, signal.SIGKILL, 0, 0, 0)
    while True:
        time.sleep(SWEEP_EVERY)
        try:
            sweep(root, days)
        except OSError as error:
            print(f"old logs stay: {error}", flush=True)


def start(arguments: list[str]) -> None:
    """Clean up and become `ray start`; where somebody may want no work (`wanted_in`), watch over it."""
    data = Path(os.environ["RAY_TMPDIR"])
    root, spill = data / "ray", data / "spill"
    days = float(os.environ["MUSTER_RAY_LOG_DAYS"])
    if "--head" in arguments:
        no_cloud(Path.home())
    # Here and not on the host: Ray opens its own directory to everyone, the one around it stays closed.
    for path in (root, spill, *([data / "gcs", data / "dashboards"] if "--head" in arguments else [])):
        path.mkdir(exist_ok=True)
    keep = int(os.environ["MUSTER_RAY_SESSIONS"])
    if folder := wanted_in():
        worker = Worker(folder, arguments, fork_sweeper(root, days), lambda: prepare(root, spill, keep, days))
        sys.exit(worker.run())
    prepare(root, spill, keep, days)
    fork_sweeper(root, days)
    os.execvp("ray", ["ray", "start", "--block", *arguments])


def no_cloud(home: Path) -> None:
    """Without this file a head asks three clouds at their addresses whether it is one of theirs."""
    with contextlib.suppress(OSError):
        (home / "ray_bootstrap_config.yaml").write_text("{}\n")


def option(arguments: list[str], name: str) -> str:
    """The value of an argument like --name=value."""
    return next((one.partition("=")[2] for one in arguments if one.startswith(f"--{name}=")), "")


def answers(address: str) -> bool:
    """Whether the head accepts connections."""
    host, port = address.rsplit(":", 1)
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
        return True
    return False


def is_ours(address: str) -> bool:
    """Whether this host has the address; Ray's nodes cannot move to another one."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    return [one for child in children(pid) for one in (child, *descendants(child))]


def said_path(folder: Path) -> Path:
    return folder / "said" / f"ray_{os.environ['MUSTER_RAY_NODE']}.json"


def wanted_in() -> Path | None:
    """Where a laptop's agent (roles/laptop), or who drains a server (playbooks/drain.yml), says whether to work."""
    folder = os.environ.get("MUSTER_LAPTOP") or os.environ.get("MUSTER_DRAIN")
    return Path(folder) if folder else None


class Worker:
    """A worker's node: Ray runs while work is wanted here, the container all the time."""

    def __init__(self, folder: Path, arguments: list[str], sweeper: int, prepare: Any) -> None:
        self.folder, self.arguments, self.sweeper, self.prepare = folder, arguments, sweeper, prepare
        self.address, self.head = option(arguments, "node-ip-address"), option(arguments, "address")
        self.laptop = bool(os.environ.get("MUSTER_LAPTOP"))
        self.ray: subprocess.Popen[bytes] | None = None
        self.told = False
        # When what runs must have ended; nothing while the node takes tasks.
        self.until: float | None = None
        self.asked_to = ""
        self.want: dict[str, Any] = {"work": True}
        self.said: dict[str, Any] = {}
        self.said_at = self.asked_at = -SAY

    def run(self) -> int:
        """Until the container is told to stop, or Ray ends of itself; the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.tell)
        # What Ray leaves behind becomes this process' child, and does not outlive a pause.
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
        while True:
            why = self.against()
            if self.ray is None:
                if self.told:
                    self.say(work=False, why=why)
                    return 0
                self.rest(why)
            elif self.ray.poll() is not None:
                code, asked = self.ray.returncode, self.until is not None
                self.clear()
                if not asked:
                    return code or 1
            else:
                self.watch(why)
            self.reap()
            time.sleep(LOOK)

    def tell(self, *_: Any) -> None:
        self.told = True

    def against(self) -> str:
        """Why Ray should not run now; empty when it should."""
        try:
            self.want = json.loads((self.folder / "want").read_text())
        except FileNotFoundError:
            self.want = {"work": True}
        except (OSError, ValueError):
            pass
        if self.told:
            return "it is told to stop"
        if not self.wanted():
            return str(self.want.get("why", "")) or "no work is wanted"
        if self.laptop and not is_ours(self.address):
            return f"the laptop is not at {self.address} now, and Ray knows it there"
        return ""

    def wanted(self) -> bool:
        """Whether Ray is to run. What Celery still does here may need it: with `ray` it stays until that has ended."""
        return bool(self.want.get("work", True) or self.want.get("ray", False))

    def rest(self, why: str) -> None:
        if not why:
            if time.monotonic() - self.asked_at < ASK:
                return
            self.asked_at = time.monotonic()
            why = "" if answers(self.head) else f"waiting for the head at {self.head}"
        if why:
            self.say(work=False, why=why)
            return
        self.prepare()
        self.ray = subprocess.Popen(["ray", "start", "--block", *self.arguments], start_new_session=True)
        self.until = None
        self.say(work=True)

    def watch(self, why: str) -> None:
        assert self.ray
        moment = time.monotonic()
        if why:
            within = STOP if self.told else float(self.want.get("within", 0)) if not self.wanted() else LAST
            if self.until is None:
                print(f"Ray is drained: {why}", flush=True)
                # It takes nothing more, and ends when nothing runs.
                self.ray.terminate()
                self.until = moment + within
                self.asked_to = why
            elif why != self.asked_to:
                self.until, self.asked_to = min(self.until, moment + within), why
        if self.until is not None and moment > self.until - LAST:
            hard = moment > self.until
            for pid in descendants(self.ray.pid):
                # The raylet itself says goodbye to the head: nobody has to find out that it is gone.
                with contextlib.suppress(OSError):
                    if hard or Path(f"/proc/{pid}/comm").read_text().strip() == "raylet":
                        os.kill(pid, signal.SIGKILL if hard else signal.SIGTERM)
            if hard:
                self.ray.kill()
        self.say(work=True, why=why)

    def clear(self) -> None:
        """Nothing of Ray runs any more."""
        self.ray, self.until = None, None
        for pid in descendants(os.getpid()):
            if pid != self.sweeper:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def reap(self) -> None:
        """Processes that lost their parents are this one's."""
        for pid in children(os.getpid()):
            if pid != self.sweeper and (self.ray is None or pid != self.ray.pid):
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    def say(self, *, work: bool, why: str = "") -> None:
        """On every change and every few seconds."""
        what = {"work": work, "running": [], "why": why}
        if what == self.said and time.monotonic() - self.said_at < SAY:
            return
        if why and not work and why != self.said.get("why"):
            print(f"Ray rests: {why}", flush=True)
        path = said_path(self.folder)
        fresh = path.with_suffix(".new")
        with contextlib.suppress(OSError):
            fresh.write_text(json.dumps({**what, "at": time.time()}))
            fresh.replace(path)
            self.said, self.said_at = what, time.monotonic()


def rests(folder: Path) -> bool:
    """Whether a node is there and does not run Ray, as it should; a server's should, unless it is drained."""
    try:
        said = json.loads(said_path(folder).read_text())
        meant = os.environ.get("MUSTER_LAPTOP") or not json.loads((folder / "want").read_text())["work"]
        return bool(meant) and not said["work"] and abs(time.time() - float(said["at"])) < SILENT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def healthy(urls: list[str]) -> bool:
    """Whether Ray itself answers well at every address; it may also rest."""
    if (folder := wanted_in()) and rests(folder):
        return True
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
