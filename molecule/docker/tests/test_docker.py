"""What a host with Docker does: Compose, small logs, limits, containers that outlive the engine's restart."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
from canary import IMAGE, canary, canary_image, on, until

HOST, BOOKWORM = "docker-server1", "docker-bookworm"
PROJECT = f"""
services:
  web:
    image: {IMAGE}
    command: [sleep, infinity]
    volumes: [/usr:/usr:ro]
"""


@pytest.fixture(scope="module", autouse=True)
def image() -> Iterator[None]:
    canary_image(HOST)
    yield
    on(HOST, "sh", "-c", "docker ps -aq | xargs -r docker rm -f")
    on(HOST, "docker", "rmi", "-f", IMAGE)


def mtu(*command: str) -> int:
    return int(on(HOST, *command, "cat", "/sys/class/net/eth0/mtu"))


def test_compose_is_version_2_and_runs_a_project() -> None:
    assert on(HOST, "docker", "compose", "version", "--short").lstrip("v").startswith("2.")
    compose = ("docker", "compose", "-p", "probe", "-f", "-")
    try:
        on(HOST, *compose, "up", "-d", stdin=PROJECT.encode())
        assert on(HOST, "docker", "inspect", "-f", "{{.State.Running}}", "probe-web-1").strip() == "true"
        # Packets of Compose networks fit the way out, not only those of docker0.
        assert mtu("docker", "exec", "probe-web-1") == mtu()
        networks = json.loads(on(HOST, "docker", "network", "inspect", "probe_default"))
        assert networks[0]["IPAM"]["Config"][0]["Subnet"].startswith("10.213.")
    finally:
        on(HOST, *compose, "down", "-t", "0", stdin=PROJECT.encode())


def test_a_chatty_container_does_not_fill_the_disk() -> None:
    code = "import signal\nfor _ in range(45_000): print('x' * 1000)\nsignal.pause()"
    canary(HOST, command=("python3", "-u", "-c", code), name="chatty")
    try:
        path = Path(on(HOST, "docker", "inspect", "-f", "{{.LogPath}}", "chatty").strip())
        sizes = until(60, "the log was rotated", lambda: rotated(path.parent))
        assert sum(sizes) < 32_000_000
    finally:
        on(HOST, "docker", "rm", "-f", "chatty", check=False)


def rotated(folder: Path) -> list[int]:
    """Sizes of a container's log files, once there are as many as there may be."""
    files = on(HOST, "find", str(folder), "-name", "*-json.log*", "-printf", "%s\\n").split()
    assert len(files) == 3, f"{len(files)} files"
    return [int(size) for size in files]


def test_a_container_cannot_take_more_memory_than_it_was_given() -> None:
    canary(HOST, "--memory", "64m", command=("python3", "-c", "x = bytearray(300_000_000)"), name="greedy")
    state = until(30, "the container ended", lambda: ended("greedy"))
    assert state["ExitCode"] == 137, state


def ended(name: str) -> dict[str, object]:
    state: dict[str, object] = json.loads(on(HOST, "docker", "inspect", "-f", "{{json .State}}", name))
    assert state["Status"] == "exited", state
    return state


def test_containers_outlive_a_restart_of_the_engine() -> None:
    canary(HOST, command=("sleep", "infinity"), name="steady")
    before = on(HOST, "docker", "inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", "steady")
    on(HOST, "systemctl", "restart", "docker")
    assert on(HOST, "docker", "inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", "steady") == before
    on(HOST, "docker", "rm", "-f", "steady")


def test_published_ports_take_no_proxy_process() -> None:
    canary(HOST, "-p", "8000:8000", name="published")
    until(10, "the port answers", lambda: "Directory" in on(HOST, "curl", "-s", "http://127.0.0.1:8000/"))
    assert on(HOST, "pgrep", "docker-proxy", check=False) == ""
    on(HOST, "docker", "rm", "-f", "published")


def test_the_engine_starts_with_the_host() -> None:
    assert on(HOST, "systemctl", "is-enabled", "docker").strip() == "enabled"


def test_bookworm_takes_the_engine_from_the_mirror_that_it_was_given() -> None:
    wanted = on(BOOKWORM, "apt-get", "update", "--print-uris")
    assert "'http://mirror.invalid/docker/debian/dists/bookworm/InRelease'" in wanted
    assert on(BOOKWORM, "sh", "-c", "command -v dockerd", check=False) == ""
