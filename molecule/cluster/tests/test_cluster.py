"""What only a whole cluster can promise: closed from outside, repeatable, and alive after its parts are killed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
INVENTORY = ROOT / "molecule/cluster/inventory"
HOSTS = {
    "head": "172.30.90.10",
    "server1": "172.30.90.11",
    "server2": "172.30.90.12",
    "laptop1": "172.30.90.101",
}
HEAD = "ray_head-head-1"


def on(host: str, *command: str, stdin: str | None = None, check: bool = True) -> str:
    """Run a command on a host as its root, and give what it printed."""
    done = subprocess.run(
        ["docker", "exec", "-i", f"cluster-{host}", *command], input=stdin, capture_output=True, text=True
    )
    if check and done.returncode:
        raise AssertionError(f"{host}: {' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def python_on_head(code: str, check: bool = True) -> str:
    """Run Python as a driver inside the head's container."""
    return on("head", "docker", "exec", "-i", HEAD, "python", "-", stdin=code, check=check)


def until[T](seconds: float, what: str, probe: Callable[[], T]) -> T:
    """Wait for a condition with a deadline; the last error tells why it never came true."""
    end, last = time.monotonic() + seconds, "nothing seen"
    while time.monotonic() < end:
        try:
            if seen := probe():
                return seen
        except (AssertionError, ValueError) as error:
            last = str(error)
        time.sleep(1)
    raise AssertionError(f"not within {seconds:.0f} s: {what}; last: {last}")


def play(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ansible-playbook against this cluster."""
    environment = dict(os.environ, ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"))
    return subprocess.run(
        ["ansible-playbook", "-i", str(INVENTORY), *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip


def changed(output: str) -> dict[str, int]:
    """Count of changes per host from a play recap."""
    return {host: int(count) for host, count in re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", output, re.M)}
