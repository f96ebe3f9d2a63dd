"""A worker's Ray node: the container stays while Ray comes and goes. `ray` is a script here."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.laptop_folder import LaptopFolder

SCRIPT = Path(__file__).resolve().parents[1] / "roles/ray_node/files/ray_node.py"
# Like `ray start --block`: it notes what happens to it, and takes so long to end; it leaves a process behind. Where its
# sleep is killed a moment before it, it is not gone by itself.
RAY = """#!/bin/sh
echo start >>"$NOTES/events"
trap 'echo drained >>"$NOTES/events"; sleep "$(cat "$NOTES/takes")" && echo gone >>"$NOTES/events"; exit 1' TERM
sh -c 'echo $$ >"$NOTES/orphan"; exec sleep 600' &
while :; do sleep 0.05; done
"""


def until(seconds: float, what: str, condition: Callable[[], object]) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


class Node(LaptopFolder):
    """One container, as a process."""

    service = "ray_worker-1"

    def __init__(self, folder: Path, head: int) -> None:
        self.folder, self.head, self.address = folder, head, "127.0.0.1"
        for name in ("bin", "said", "ray"):
            (folder / name).mkdir()
        ray = folder / "bin" / "ray"
        ray.write_text(RAY)
        ray.chmod(0o755)
        (folder / "takes").write_text("0")
        self.environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "NOTES": str(folder),
            "RAY_TMPDIR": str(folder),
            "MUSTER_RAY_SESSIONS": "2",
            "MUSTER_RAY_LOG_DAYS": "14",
            "MUSTER_LAPTOP": str(folder),
            "MUSTER_RAY_NODE": "worker-1",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Node:
        words = [f"--address=127.0.0.1:{self.head}", f"--node-ip-address={self.address}"]
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-I", str(SCRIPT), "start", *words], env=self.environment, start_new_session=True
        )
        return self

    @property
    def events(self) -> list[str]:
        path = self.folder / "events"
        return path.read_text().split() if path.exists() else []

    def healthy(self) -> bool:
        command = [sys.executable, "-S", "-I", str(SCRIPT), "healthy", "http://127.0.0.1:9/closed"]
        return subprocess.run(command, env=self.environment, stdout=subprocess.DEVNULL, check=False).returncode == 0

    def orphan_lives(self) -> bool:
        pid = int((self.folder / "orphan").read_text())
        return Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]

    def works(self) -> bool:
        return self.said.get("work") is True and self.events[-1:] == ["start"] and (self.folder / "orphan").exists()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with socket.create_server(("127.0.0.1", 0)) as head:
        one = Node(tmp_path, head.getsockname()[1])
        yield one
    if one.process and one.process.poll() is None:
        one.process.terminate()
        one.process.wait(15)


def test_ray_runs_while_nobody_says_otherwise(node: Node) -> None:
    node.start()
    until(5, "Ray runs", node.works)
    assert not node.healthy(), "health is what Ray says, and that says nothing here"


def test_a_pause_drains_ray_and_leaves_nothing_of_it(node: Node) -> None:
    node.start()
    until(5, "Ray runs", node.works)
    node.want(False, 20)
    until(3, "it rests", node.rests)
    assert node.events == ["start", "drained", "gone"]
    assert not node.orphan_lives()
    assert node.healthy()
    assert node.process and node.process.poll() is None
    node.want(True)
    until(5, "Ray runs again", node.works)


def test_what_takes_longer_than_it_may_is_killed(node: Node) -> None:
    (node.folder / "takes").write_text("60")
    node.start()
    until(5, "Ray runs", node.works)
    node.want(False, 30)
    until(2, "it is drained", lambda: "drained" in node.events)
    assert node.said["work"], "something may still run"
    begin = time.monotonic()
    fresh = {"work": False, "within": 2, "why": "going to sleep", "at": time.time()}
    (node.folder / "want").write_text(json.dumps(fresh))
    until(4, "it rests", node.rests)
    assert time.monotonic() - begin > 1.5
    assert "gone" not in node.events
    assert not node.orphan_lives()


def server(node: Node) -> Node:
    """The same container on a server."""
    node.environment["MUSTER_DRAIN"] = node.environment.pop("MUSTER_LAPTOP")
    return node


def test_a_drained_server_rests_when_celery_needs_ray_no_more(node: Node) -> None:
    server(node).start()
    until(5, "Ray runs", node.works)
    begun = time.time()
    given: dict[str, object] = {"work": False, "within": 20, "why": "new disk", "at": begun}
    (node.folder / "want").write_text(json.dumps({**given, "ray": True}))
    until(9, "it has said so once more", lambda: float(node.said["at"]) > begun + 1)
    assert node.works()
    (node.folder / "want").write_text(json.dumps(given))
    until(3, "it rests", node.rests)
    assert node.said["why"] == "new disk" and node.events == ["start", "drained", "gone"] and node.healthy()
    (node.folder / "want").unlink()
    until(5, "Ray runs again", node.works)


def test_a_server_that_waits_for_the_head_is_not_well(node: Node) -> None:
    node.head = 9
    server(node).start()
    until(5, "it waits", node.rests)
    assert "waiting for the head" in node.said["why"] and not node.healthy()


def test_a_server_is_where_it_is(node: Node) -> None:
    node.address = "192.0.2.7"
    server(node).start()
    until(5, "Ray runs", node.works)


def test_a_laptop_at_another_address_does_not_run_ray_and_says_why(node: Node) -> None:
    node.address = "192.0.2.7"
    node.start()
    until(5, "it rests", node.rests)
    assert "not at 192.0.2.7" in node.said["why"]
    assert node.events == []
    assert node.healthy()


def test_without_the_head_it_waits(node: Node) -> None:
    node.head = 9
    node.start()
    until(5, "it waits", node.rests)
    assert "waiting for the head" in node.said["why"]


def test_ray_that_ends_of_itself_ends_the_container(node: Node) -> None:
    node.start()
    until(5, "Ray runs", node.works)
    assert node.process
    (ray,) = [pid for pid in children(node.process.pid) if "start" in Path(f"/proc/{pid}/cmdline").read_text()][-1:]
    os.kill(ray, signal.SIGKILL)
    assert node.process.wait(5) != 0
    assert not node.orphan_lives()


def test_told_to_stop_it_drains(node: Node) -> None:
    node.start()
    until(5, "Ray runs", node.works)
    assert node.process
    node.process.terminate()
    assert node.process.wait(5) == 0
    assert node.events == ["start", "drained", "gone"]
    assert node.rests()


def test_an_old_word_is_not_health(node: Node) -> None:
    (node.folder / "said" / "ray_worker-1.json").write_text(json.dumps({"work": False, "at": time.time() - 60}))
    assert not node.healthy()


def children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
