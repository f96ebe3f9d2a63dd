"""The parts of ray_jobs that decide something, without a cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import hello, nodes, smoke


def node(name: str, cpus: float = 1, state: str = "alive", id: str = "a" * 56) -> nodes.Node:
    return nodes.Node(name, id, state, "", cpus, 0, 2**30, 2**28, 0)


def test_a_node_is_named_by_its_labels_and_else_by_its_id() -> None:
    listing: list[dict[str, Any]] = [
        {"node_id": "f" * 56, "state": "ALIVE", "labels": {"host": "server1", "node": "worker-2"},
         "resources_total": {"CPU": 2.0, "memory": 5.0}, "start_time_ms": 1000},
        {"node_id": "e" * 56, "state": "DEAD", "state_message": "gone", "labels": None, "resources_total": None},
    ]  # fmt: skip
    named, bare = sorted(nodes.parse(listing), key=lambda node: node.state)
    assert (named.name, named.cpus, named.memory, named.started) == ("server1/worker-2", 2.0, 5, 1.0)
    assert (bare.name, bare.state, bare.message) == ("e" * 12, "dead", "gone")


def test_differences_name_the_node_and_the_fix() -> None:
    planned = [
        smoke.Planned("head/head", 0),
        smoke.Planned("server1/worker-1", 2),
        smoke.Planned("server1/worker-2", 1),
        smoke.Planned("laptop1/worker-1", 1, may_sleep=True),
    ]
    alive = [node("head/head", 0), node("server1/worker-1", 1), node("server9/worker-1")]
    assert smoke.differences(planned, alive) == [
        "server1/worker-1 has 1 CPUs, planned are 2: run site.yml --tags ray",
        "server1/worker-2 is planned but not alive: see `docker compose logs` on its host",
        "server9/worker-1 is alive but not planned: run site.yml --tags ray",
    ]
    assert smoke.differences(planned[:1], alive[:1]) == []
    assert smoke.differences(planned[:1], alive[:2], others=["server1"]) == []
    assert smoke.differences(planned[:1], alive[:1] * 2) == ["head/head is alive twice"]


def test_the_report_says_who_ran_what() -> None:
    result = hello.Said(
        tasks=20, iterations=1_000_000, seconds=0.5, tasks_per_second=40.0, nodes={"server1/worker-1": 20}, versions={}
    )
    text = smoke.report([node("head/head", 0), node("server1/worker-1")], result, {"without a token": 401})
    lines = text.splitlines()
    assert lines[1].split() == ["head/head", "0", "1.0GiB", "0.2GiB", "-"]
    assert lines[2].split() == ["server1/worker-1", "1", "1.0GiB", "0.2GiB", "20"]
    assert lines[-2:] == [
        "20 tasks of 1,000,000 iterations in 0.5 s: 40.0 tasks/s",
        "refused: a job without a token (401)",
    ]


def test_the_table_of_hello_lists_every_node() -> None:
    nodes, versions = (
        {"a/worker-1": 1, "server1/worker-1": 2},
        {"a/worker-1": "Python 3", "server1/worker-1": "Python 4"},
    )
    said = hello.Said(tasks=3, iterations=10, seconds=0.1, tasks_per_second=30.0, nodes=nodes, versions=versions)
    assert [line.split() for line in hello.show(said).splitlines()] == [
        ["node", "tasks", "runs"],
        ["a/worker-1", "1", "Python", "3"],
        ["server1/worker-1", "2", "Python", "4"],
        ["3", "tasks", "of", "10", "iterations", "in", "0.1", "s:", "30.0", "tasks/s"],
    ]


def test_a_server_that_does_not_see_the_share_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUSTER_DATA", raising=False)
    assert smoke.shared([node("server1/worker-1")], 1) == []
    # A laptop.
    assert smoke.holds("/nowhere", "mark")
    monkeypatch.setenv("MUSTER_DATA", str(tmp_path))
    (tmp_path / "file").write_text("mark")
    assert smoke.holds(str(tmp_path / "file"), "mark")
    assert not smoke.holds(str(tmp_path / "file"), "other")
    assert not smoke.holds(str(tmp_path / "nothing"), "mark")
    monkeypatch.setattr(
        smoke, "on_each", lambda alive, seconds, ask, *words: ({"a/w": True, "b/w": False}, ["c is gone"])
    )
    assert smoke.shared([], 1) == [
        "c is gone",
        "b/w does not see what the head wrote to the shared storage: mount the same storage_path there, "
        "or see on its host what `ls /srv/muster/` says",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    monkeypatch.setenv("MUSTER_DATA", str(tmp_path / "file"))
    (line,) = smoke.shared([], 1)
    assert line.startswith("the shared storage cannot be written by user ") and "Not a directory" in line


def test_imports_are_cheap() -> None:
    code = "import sys, ray_jobs.hello, ray_jobs.nodes, ray_jobs.smoke; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
