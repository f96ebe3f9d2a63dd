"""Workers: several on one address, each for itself, added and removed one by one."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
from ray_lab import Lab, until

LAB = Lab("ray_worker")
WORKERS = {"server1/worker-1", "server1/worker-2"}


def all_there() -> bool:
    return set(LAB.nodes()) == {"head/head", *WORKERS}


def test_both_workers_are_alive_as_planned() -> None:
    nodes = LAB.nodes()
    assert set(nodes) == {"head/head", *WORKERS}
    assert nodes["head/head"]["cpus"] == 0
    for name in WORKERS:
        assert nodes[name]["cpus"] == 1
        assert 0.25 < nodes[name]["object_store"] / 2**31 < 0.35


def test_every_port_is_a_planned_one() -> None:
    listening = [line for line in LAB.on("server1", "ss", "-Hltnp").splitlines() if "ray" in line.split("users:")[-1]]
    ports = sorted({int(line.split()[3].rsplit(":", 1)[1]) for line in listening})
    assert len(ports) >= 12, "two nodes listen on six ports each: this would prove nothing"
    outside = [port for port in ports if not 24256 <= port <= 24767]
    assert not outside, "\n".join(listening)


def test_a_driver_on_a_worker_uses_that_worker() -> None:
    code = (
        "import ray, os; ray.init(logging_level='ERROR'); "
        "labels = ray.get_runtime_context().get_node_labels(); print('driver', labels['host'] + '/' + labels['node'])"
    )
    seen = set()
    for name in sorted(WORKERS):
        selector = json.dumps({"node": name.split("/")[1]})
        said = LAB.inside(
            "head", "ray_head-head-1", "ray", "job", "submit", "--entrypoint-num-cpus", "0.5",
            "--entrypoint-label-selector", selector, "--", "python3", "-c", code, check=False,
        )  # fmt: skip
        assert f"driver {name}" in said, said
        seen.add(name)
    assert seen == WORKERS


# Ray's monitor looks four times a second and says what it did; a task that is faster than that meets the kernel.
@pytest.mark.parametrize(
    ("pause", "deaths"),
    [(0.05, {"OutOfMemoryError"}), (0.003, {"OutOfMemoryError", "WorkerCrashedError"})],
    ids=["slowly", "at once"],
)
def test_a_task_that_eats_all_memory_dies_alone(pause: float, deaths: set[str]) -> None:
    before = LAB.containers("server1", "ray_worker")
    said = LAB.driver(
        "@ray.remote(max_retries=0)\n"
        "def eat():\n"
        "    import time\n"
        "    hoard = []\n"
        "    while True:\n"
        f"        hoard.append(bytearray(b'x' * 10_000_000)); time.sleep({pause})\n"
        "try: ray.get(eat.remote())\n"
        "except ray.exceptions.RayError as error: print('died of', type(error).__name__)\n"
    )
    # What Ray itself says about it may come before or after.
    found = re.search(r"died of (\w+)", said)
    assert found and found[1] in deaths, said
    assert LAB.containers("server1", "ray_worker") == before
    assert all_there()


def test_a_killed_worker_comes_back_and_the_other_stays() -> None:
    before = LAB.nodes()
    LAB.kill_hard("server1", "ray_worker-worker-1-1")
    until(
        60,
        "a new node in its place",
        lambda: all_there() and LAB.nodes()["server1/worker-1"]["id"] != before["server1/worker-1"]["id"],
    )
    assert LAB.nodes()["server1/worker-2"]["id"] == before["server1/worker-2"]["id"]


def test_a_worker_waits_for_a_head_that_is_away() -> None:
    LAB.on("head", "docker", "stop", "ray_head-head-1")
    try:
        LAB.on("server1", "docker", "restart", "ray_worker-worker-1-1")
        until(
            30,
            "it says that it waits",
            lambda: (
                "waiting for the head"
                in LAB.on("server1", "sh", "-c", "docker logs --tail 3 ray_worker-worker-1-1 2>&1")
            ),
        )
    finally:
        LAB.on("head", "docker", "start", "ray_head-head-1")
    until(180, "all nodes", all_there)


def test_scaling_by_one_number_leaves_the_others_running() -> None:
    first = LAB.containers("server1", "ray_worker")
    assert set(first) == {"worker-1", "worker-2"}
    for count, services in ((1, {"worker-1"}), (2, {"worker-1", "worker-2"})):
        run = LAB.play("playbooks/ray.yml", "-e", f"ray_workers={count}", "--limit", "server1", "--tags", "ray_worker")
        assert run.returncode == 0, run.stdout[-4000:]
        now = LAB.containers("server1", "ray_worker")
        assert set(now) == services
        assert now["worker-1"] == first["worker-1"]
        data = LAB.on("server1", "ls", "/var/lib/muster/ray_worker").split()
        assert set(data) == services
    until(180, "all nodes", all_there)


def test_without_workers_the_project_is_gone() -> None:
    run = LAB.play("playbooks/ray.yml", "-e", "ray_workers=0", "--limit", "server1", "--tags", "ray_worker")
    assert run.returncode == 0, run.stdout[-4000:]
    assert LAB.containers("server1", "ray_worker") == {}
    assert "ray_worker" not in LAB.on("server1", "ls", "/opt/muster", "/var/lib/muster").split()

    smoke = LAB.play("playbooks/smoke.yml")
    assert smoke.returncode != 0, "a planned worker is missing: the smoke test must say so"
    assert "server1/worker-1 is planned but not alive" in smoke.stdout
    status = LAB.play("playbooks/status.yml")
    assert status.returncode == 0, status.stdout[-4000:]
    assert "missing: server1/worker-1: it has no container: run site.yml --tags ray --limit server1" in status.stdout

    run = LAB.play("playbooks/ray.yml", "--limit", "server1", "--tags", "ray_worker")
    assert run.returncode == 0, run.stdout[-4000:]
    smoke = LAB.play("playbooks/smoke.yml")
    assert smoke.returncode == 0, smoke.stdout[-4000:]
    assert "a job without a token (401)" in smoke.stdout
