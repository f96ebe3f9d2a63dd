"""A real Redis from the infra image, and real workers on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

ROOT = Path(__file__).resolve().parents[2]
WAIT = 60.0


def until(condition: Callable[[], object], what: str, seconds: float = WAIT) -> None:
    """Wait for it; the one place that sleeps."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds:.0f} s still not: {what}"
        time.sleep(0.05)


def all_held(client: redis.Redis) -> list[str]:
    """What workers hold. Beside it lies Kombu's lock, which a cut leaves there until it expires."""
    return [tag for key in client.scan_iter("muster:unacked:*", _type="hash") for tag in client.hkeys(key)]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def missing(what: str) -> None:
    """No test without the images; make test, which makes them, takes that for a failure."""
    (pytest.fail if os.environ.get("MUSTER_NO_SKIP") else pytest.skip)(what)


def infra_image() -> str:
    """The newest infra image of this machine; MUSTER_TEST_INFRA_IMAGE names another."""
    if named := os.environ.get("MUSTER_TEST_INFRA_IMAGE"):
        return named
    command = ["docker", "images", "--filter", "label=muster.image=infra", "--format", "{{.ID}}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    if not found:
        missing("no infra image on this machine: run make up, or set MUSTER_TEST_INFRA_IMAGE")
    return found[0]


class RedisServer:
    """redis-server with a log on disk; `kill` and `start` keep the data."""

    def __init__(self, folder: Path) -> None:
        self.port, self.folder = free_port(), folder
        self.name = f"muster-delivery-{uuid.uuid4().hex[:8]}"
        self.url, self.client = self.address()
        folder.chmod(0o777)
        subprocess.run(
            [
                *("docker", "run", "-d", "--name", self.name, "--network", "host", "-v", f"{folder}:/data"),
                *("--entrypoint", "redis-server", infra_image(), *self.options(), "--bind", "127.0.0.1"),
                *("--dir", "/data", "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            ],
            check=True,
            capture_output=True,
        )
        self.answers()

    def address(self) -> tuple[str, redis.Redis]:
        return f"redis://127.0.0.1:{self.port}/0", redis.Redis(port=self.port, decode_responses=True)

    def options(self) -> list[str]:
        return ["--port", str(self.port)]

    def answers(self) -> None:
        def ping() -> bool:
            try:
                return bool(self.client.ping())
            except redis.RedisError:
                return False

        until(ping, "Redis answers")

    def kill(self) -> None:
        subprocess.run(["docker", "kill", self.name], check=True, capture_output=True)

    def start(self) -> None:
        subprocess.run(["docker", "start", self.name], check=True, capture_output=True)
        self.answers()

    def remove(self) -> None:
        # What Redis wrote is its user's; it goes with the container's own rights.
        command = ["docker", "exec", self.name, "sh", "-c", "rm -rf /data/*"]
        subprocess.run(command, check=False, capture_output=True)
        subprocess.run(["docker", "rm", "-f", "-v", self.name], check=False, capture_output=True)


class Worker:
    """A supervised worker as in its container, in a session of its own."""

    def __init__(self, server: RedisServer, folder: Path, name: str, **settings: object) -> None:
        self.server, self.name = server, f"{name}/default"
        self.heartbeat = folder / f"{name}.heartbeat"
        self.log = folder / f"{name}.log"
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "MUSTER_REDIS_URL": server.url,
            "MUSTER_WORKER": self.name,
            "MUSTER_QUEUES": "default",
            "MUSTER_CONCURRENCY": "2",
            "MUSTER_LEASE": "12",
            "MUSTER_HEARTBEAT": str(self.heartbeat),
            "MUSTER_INCLUDE": "tests.delivery.tasks",
            **{f"MUSTER_{key.upper()}": str(value) for key, value in settings.items()},
        }
        self.start()

    def start(self) -> None:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery_app.supervise"],
                env=self.environment,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ready(self) -> Worker:
        until(lambda: self.said(" ready."), f"{self.name} is ready")
        return self

    def said(self, text: str) -> bool:
        return text in self.log.read_text()

    @property
    def main(self) -> int:
        """Pid of Celery's main process."""
        return children(self.process.pid)[0]

    def kill(self) -> None:
        """As a power cut: the supervisor first, so that it cannot give anything back."""
        pids = [self.process.pid, *children(self.process.pid)]
        pids += [child for pid in pids[1:] for child in children(pid)]
        for pid in pids:
            kill(pid)
        self.process.wait()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(part) for part in path.read_text().split()] if path.exists() else []


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder)
    yield server
    server.remove()


@pytest.fixture
def app(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """The sender: Celery as any application has it, with the address alone."""
    from celery import Celery

    found = Celery("sender", broker=redis_server.url, backend=redis_server.url, set_as_current=False)
    found.conf.update(task_default_queue="default", broker_transport_options={"priority_steps": [0, 3, 6, 9]})
    yield found
    found.close()


@pytest.fixture
def worker(
    redis_server: RedisServer, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Worker]]:
    """Starts workers; all are killed at the end, and their logs are shown when the test failed."""
    started: list[Worker] = []

    def start(name: str = "one", **settings: object) -> Worker:
        started.append(Worker(redis_server, tmp_path, name, **settings))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.kill()
        print(f"--- {one.name}\n{one.log.read_text()[-6000:]}")
