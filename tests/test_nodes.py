"""What `muster nodes` shows, from three who may each be silent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from muster import figures, nodes
from muster.errors import MusterError
from muster.planned import planned
from muster.tables import plain

from .conftest import ROOT, Inventories
from .test_queues import figure

NOW = 1_000_000.0
PLANNED = {
    "nodes": {"head": ["head"], "server1": ["worker-1", "worker-2"], "server2": ["worker-1"], "anna": ["worker-1"]},
    "laptops": ["anna"],
    "workers": ["server1/default"],
}
CELERY = {"hosts": {"anna": {"kind": "laptop", "state": "asleep"}, "head": {"kind": "server", "state": "ready"}}}


def node(name: str, state: str = "alive", message: str = "") -> dict[str, Any]:
    sizes = {"cpus": 2.0, "gpus": 0.0, "memory": 2**31, "object_store": 2**30, "started": NOW - 7200}
    return {"name": name, "state": state, "message": message, **sizes}


RAY = {
    "version": "2.60.0",
    "nodes": [
        node("head/head"),
        node("server1/worker-1", "dead", "an older death"),
        node("server1/worker-1", "dead", "heartbeats stopped"),
        node("server2/worker-1"),
        node("old/worker-1"),
    ],
}
ANSWER = [
    figure("up", "1", host="head", kind="server"),
    figure("up", "1", host="server1", kind="server"),
    figure("up", "0", host="server2", kind="server"),
    figure("up", "0", host="anna", kind="laptop"),
    figure("up", "1", host="bert", kind="laptop"),
    figure("state", "1", host="anna", kind="laptop", state="draining"),
    figure("battery", "71", host="anna"),
    figure("cpu", "0.456", host="head"),
    figure("memory", "0.3", host="head"),
    figure("disk", "0.7", host="head"),
    figure("store", "NaN", host="head"),
    figure("cpu", "0.9", host="server2"),
    figure("tasks", "3", host="server1"),
]


def screen(ray: Any = RAY, answer: Any = ANSWER, celery: Any = CELERY) -> list[str]:
    return plain(nodes.shown(nodes.facts(PLANNED, ray, answer, celery, NOW))).splitlines()


def test_every_host_and_every_ray_node_has_a_line() -> None:
    lines = screen()
    assert lines[0] == "3 of 5 hosts are ready, 3 of 6 Ray nodes are alive"
    assert [line.split() for line in lines[2:8]] == [
        ["host", "kind", "state", "CPU", "memory", "disk", "objects", "tasks", "battery"],
        ["head", "server", "ready", "46", "%", "30", "%", "70", "%", "-", "-", "-"],
        ["server1", "server", "ready", "-", "-", "-", "-", "3", "-"],
        # What is left of its figures is old.
        ["server2", "server", "down", "-", "-", "-", "-", "-", "-"],
        ["anna", "laptop", "draining", "-", "-", "-", "-", "-", "71", "%"],
        ["bert", "laptop", "ready", "-", "-", "-", "-", "-", "-"],
    ]
    assert [line.split() for line in lines[9:16]] == [
        ["Ray", "node", "state", "CPUs", "GPUs", "memory", "objects", "for"],
        ["head/head", "alive", "2", "0", "2.0G", "1.0G", "2", "h"],
        ["server1/worker-1", "missing", "-", "-", "-", "-", "-"],
        ["server1/worker-2", "missing", "-", "-", "-", "-", "-"],
        ["server2/worker-1", "alive", "2", "0", "2.0G", "1.0G", "2", "h"],
        ["anna/worker-1", "draining", "-", "-", "-", "-", "-"],
        ["old/worker-1", "alive", "2", "0", "2.0G", "1.0G", "2", "h"],
    ]
    assert lines[17:] == [
        "missing: server1/worker-1: Ray says: heartbeats stopped: run site.yml --tags ray --limit server1",
        "missing: server1/worker-2: Ray has not seen it: run site.yml --tags ray --limit server1",
        "not planned: old/worker-1: run site.yml --tags ray",
    ]


def test_without_prometheus_the_broker_and_ray_know_the_states_and_nobody_the_use() -> None:
    lines = screen(answer=None)
    assert [line.split()[2] for line in lines[3:7]] == ["ready", "unknown", "ready", "asleep"]
    assert any(line.split()[:2] == ["anna/worker-1", "asleep"] for line in lines)
    assert any(line.startswith("Prometheus does not answer") for line in lines)


def test_a_drained_server_is_neither_down_nor_missing() -> None:
    drained = figure("state", "1", host="server1", kind="server", state="drained")
    lines = screen(answer=[*ANSWER, drained])
    assert lines[4].split()[:3] == ["server1", "server", "drained"]
    assert [line.split()[1] for line in lines if line.startswith("server1/")] == ["drained", "drained"]
    assert not any(line.startswith("missing: server1") for line in lines)


def test_without_the_head_no_node_is_called_missing() -> None:
    lines = screen(ray=None)
    assert any(line.split()[:2] == ["server1/worker-1", "unknown"] for line in lines)
    assert not any(line.startswith("missing") for line in lines)
    assert any(line.startswith("The head does not answer") for line in lines)


def test_a_silent_broker_is_said() -> None:
    assert any(line.startswith("Celery's broker does not answer") for line in screen(celery=None))
    assert not any("broker" in line for line in screen())


def test_one_question_has_all_queries_of_the_page() -> None:
    queries = json.loads((ROOT / "roles/gateway/files/page/queries.json").read_text())
    text = figures.question(queries)
    for name, query in queries.items():
        assert f'label_replace({query}, "figure", "{name}", "", "")' in text
    assert {"up", "state", "battery", "tasks", "oldest", *nodes.USED.values()} <= set(queries)


def test_what_is_planned_is_what_the_inventory_says(inventories: Inventories) -> None:
    hostvars, groups = inventories.load(server1={"ray_workers": 2}, laptop1={"ray_workers": 1})
    found = planned(hostvars, groups)
    assert found["nodes"] == {"head": ["head"], "server1": ["worker-1", "worker-2"], "laptop1": ["worker-1"]}
    assert found["laptops"] == ["laptop1"]
    assert found["workers"] == ["head/default-data", "head/ml", "server1/default-data", "laptop1/default-data"]
    assert planned(hostvars, {**groups, "celery_metrics": []})["workers"] == []
    with pytest.raises(MusterError, match=r"no host is in the group ray_head\. Fix"):
        planned(hostvars, {**groups, "ray_head": []})
