"""The status screen: what is missing, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from muster import status as status_screen
from muster.tables import plain


def docker(*items: tuple[str, str, str]) -> str:
    return "\n".join(
        json.dumps(
            {
                "Names": f"{project}-{service}-1",
                "Status": state,
                "Image": "10.0.0.84:5000/muster/node:core-1",
                "Labels": f"com.docker.compose.project={project},com.docker.compose.service={service}",
            }
        )
        for project, service, state in items
    )


def ray(*names: str) -> dict[str, Any]:
    sizes = {"cpus": 2.0, "gpus": 0, "memory": 2**31, "object_store": 2**30, "state": "alive"}
    return {"version": "2.60.0", "nodes": [{"name": name, **sizes} for name in names]}


def status(
    nodes: dict[str, list[str]],
    hosts: Mapping[str, str | None],
    ray: dict[str, Any] | None,
    may_sleep: Sequence[str] = (),
    celery: dict[str, Any] | None = None,
    workers: Sequence[str] = (),
) -> str:
    """The screen."""
    planned = {"nodes": nodes, "laptops": may_sleep, "workers": workers}
    return plain(status_screen.shown(status_screen.facts(planned, hosts, ray, celery)))


PLAN = {"head": ["head"], "server1": ["worker-1", "worker-2"], "laptop1": ["worker-1"], "laptop2": []}
UP = "Up 2 hours (healthy)"


def test_a_whole_cluster_has_nothing_missing() -> None:
    hosts = {"head": docker(("ray_head", "head", UP)), "server1": docker(("ray_worker", "worker-1", UP))}
    text = status({"head": ["head"], "server1": ["worker-1"]}, hosts, ray("head/head", "server1/worker-1"))
    assert text.startswith("Ray 2.60.0: 2 of 2 planned nodes are alive; 4 CPUs, 4.0 GiB for tasks")
    assert "missing" not in text
    assert "server1/worker-1  alive  2     2.0G    1.0G     Up 2 hours (healthy)  node:core-1" in text


def test_every_missing_node_has_a_reason() -> None:
    hosts = {
        "head": docker(("ray_head", "head", UP), ("registry", "registry", UP)),
        "server1": docker(("ray_worker", "worker-1", "Restarting (1) 3 seconds ago")),
        "laptop1": None,
        "laptop2": None,
    }
    lines = status(PLAN, hosts, ray("head/head", "old/worker-1"), may_sleep=["laptop1", "laptop2"]).splitlines()
    restarting = "missing: server1/worker-1: its container says Restarting (1) 3 seconds ago: "
    assert restarting + "see `docker compose logs` on server1" in lines
    assert "missing: server1/worker-2: it has no container: run site.yml --tags ray --limit server1" in lines
    assert "missing: laptop1/worker-1: laptop1 does not answer, as laptops do" in lines
    assert "not planned: old/worker-1: run site.yml --tags ray" in lines
    assert "away: laptop2" in lines
    assert any(line.split()[:2] == ["head", "registry/registry"] for line in lines)


def test_a_silent_head_is_the_first_line() -> None:
    text = status({"head": ["head"]}, {"head": docker(("ray_head", "head", "Exited (1) 5 minutes ago"))}, None)
    assert text.startswith("The head does not answer")
    assert "its container says Exited (1) 5 minutes ago, the head says nothing" in text


CELERY = {
    "queues": {"default": {"critical": 1, "normal": 2, "low": 0, "batch": 0}},
    "workers": {
        "head/default-data": {"lease": 21.5, "tasks": [{"task": "app.report", "id": "0123456789", "queue": "default"}]},
        "server1/ml": {"lease": -3.0, "tasks": []},
        "old/ml": {"lease": None, "tasks": [{"task": "app.train", "id": "abcdefgh-1", "queue": "ml"}] * 6},
    },
    "dead": 4,
}


def test_celery_is_there_with_its_queues_and_who_works_on_what() -> None:
    text = status(
        {"head": ["head"]}, {"head": ""}, ray("head/head"), (), CELERY, ["head/default-data", "server1/ml", "x/y"]
    )
    assert "Celery: 3 tasks are waiting, 7 with workers, 4 dead letters" in text
    assert "queue    critical  normal  low  batch\ndefault  1         2       0    0" in text
    assert "head/default-data  alive    app.report 01234567\n" in text
    assert "old/ml             dead     app.train abcdefgh, app.train" in text and "and 2 more" in text
    assert "server1/ml         dead     -" in text and "x/y                missing  -" in text
    assert "missing: Celery worker server1/ml: run site.yml --tags celery --limit server1" in text
    assert "missing: Celery worker x/y" in text and "missing: Celery worker head" not in text


def test_a_broker_that_does_not_answer_is_said() -> None:
    text = status({"head": ["head"]}, {"head": ""}, ray("head/head"), (), None, ["head/default-data"])
    assert "Celery's broker does not answer" in text
    assert "Celery" not in status({"head": ["head"]}, {"head": ""}, ray("head/head"))


def guest(state: str, ago: float, why: str = "") -> dict[str, Any]:
    return {"kind": "laptop", "state": state, "why": why, "since": 1_000_000 - ago, "tasks": []}


def test_a_sleeping_laptop_is_no_gap_and_a_lost_one_is() -> None:
    laptops = {
        "laptop1": guest("asleep", 7200, "lid closed"),
        "laptop2": guest("draining", 300, "on battery"),
        "laptop3": guest("lost", 15 * 86_400),
        "laptop4": guest("ready", 60),
    }
    celery = {
        **CELERY,
        "now": 1_000_000,
        "hosts": laptops,
        "workers": {"laptop2/default-data": {"lease": 20.0, "tasks": []}},
    }
    hosts = {"head": docker(("ray_head", "head", UP)), **dict.fromkeys(laptops)}
    plan = {"head": ["head"], **{name: ["worker-1"] for name in laptops}}
    workers = [f"{name}/default-data" for name in laptops]
    lines = status(plan, hosts, ray("head/head"), list(laptops), celery, workers).splitlines()
    states = {line.split()[0]: line.split()[1] for line in lines if line.startswith("laptop")}
    assert states == {
        f"{name}/{what}": state
        for what, ready in (("worker-1", "missing"), ("default-data", "missing"))
        for name, state in zip(laptops, ("asleep", "draining", "lost", ready), strict=True)
    }
    assert [line for line in lines if line.startswith(("missing", "asleep", "draining", "away", "not planned"))] == [
        "missing: laptop4/worker-1: laptop4 does not answer, as laptops do",
        "asleep: laptop1 for 2 h (lid closed)",
        "draining: laptop2 for 5 min (on battery)",
        "missing: laptop3 is lost for 15 d: wake it, or "
        "ansible-playbook remove-laptop.yml -e host=laptop3 -e lost=true",
        "missing: Celery worker laptop4/default-data: run site.yml --tags celery --limit laptop4",
    ]


def test_a_laptop_without_ray_that_sleeps_is_said_once() -> None:
    celery = {**CELERY, "now": 1_000_000, "hosts": {"laptop2": guest("asleep", 60)}}
    text = status(
        {"head": ["head"], "laptop2": []}, {"head": "", "laptop2": None}, ray("head/head"), ["laptop2"], celery
    )
    assert text.count("laptop2") == 1 and "asleep: laptop2 for 1 min" in text


def test_builds_that_differ_are_named() -> None:
    hosts = {
        "server1": docker(("ray_worker", "worker-1", UP), ("celery_worker", "default", UP)).replace("core-1", "core-2"),
        "head": docker(("ray_head", "head", UP)),
        "server2": docker(("ray_worker", "worker-1", UP)).replace("core-1", "ml-5"),
    }
    plan = {"head": ["head"], "server1": ["worker-1"], "server2": ["worker-1"]}
    lines = status(plan, hosts, ray("head/head", "server1/worker-1", "server2/worker-1")).splitlines()
    assert [line for line in lines if line.startswith("skew")] == [
        "skew: server1: celery_worker/default, ray_worker/worker-1 run node:core-2, others node:core-1: "
        "run playbooks/upgrade.yml"
    ]
