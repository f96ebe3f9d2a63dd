"""Workers, beat and Flower: what runs, what a change restarts, and what is never cut short."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
from celery_lab import ROOT, Broker, secret
from ray_lab import Lab, until

LAB = Lab("celery_worker")
BROKER = Broker(LAB)
WORKERS = {"head": {"default-data"}, "server1": {"default", "data"}}
INSIDE = "celery_worker-default-data-1"
PLAY = ("playbooks/celery.yml", "--limit", "server1", "--tags", "celery_worker")


def python(code: str, host: str = "head", container: str = INSIDE) -> str:
    """Run Python where the app's settings are; what it prints last."""
    said = LAB.inside(host, container, "timeout", "90", "python3", "-", stdin=f"from celery_app import app\n{code}\n")
    return said.strip().splitlines()[-1] if said.strip() else ""


def send(task: str, *args: Any, **options: Any) -> str:
    """Send a task by its name, as an application would; its id."""
    return python(f"print(app.send_task('probe.{task}', args={list(args)!r}, **{options!r}).id)")


def result(task_id: str, seconds: float = 30) -> str:
    return python(f"print(app.AsyncResult({task_id!r}).get(timeout={seconds}))")


def trace(key: str) -> list[str]:
    return BROKER.ask("app", "lrange", f"probe:{key}", "0", "-1").splitlines()


@pytest.fixture(autouse=True)
def everybody() -> Iterator[None]:
    until(60, "all workers have a lease", lambda: BROKER.all_there(WORKERS))
    yield


def test_what_the_inventory_says_runs() -> None:
    for host, workers in WORKERS.items():
        assert set(LAB.containers(host, "celery_worker")) == workers
        assert set(LAB.containers(host, "celery_beat")) == {"beat"}
    for project in ("celery_metrics", "flower", "celery_redis"):
        assert LAB.containers("head", project) and not LAB.containers("server1", project)


@pytest.mark.parametrize("queue", ["default", "data"])
def test_a_task_runs(queue: str) -> None:
    assert result(send("version", queue=queue)) == "1"


def test_idle_memory_is_within_the_promise() -> None:
    for host in WORKERS:
        listing = LAB.on(host, "docker", "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}} {{.CPUPerc}}")
        print(f"{host}:\n{listing}")
        for name, used, *_ in map(str.split, listing.splitlines()):
            if name.startswith("celery_worker"):
                assert used.endswith("MiB") and float(used.removesuffix("MiB")) < 300, listing


def test_containers_have_limits_and_no_privileges() -> None:
    projects = ("celery_worker", "celery_beat", "celery_metrics", "flower")
    for container in [found for project in projects for found in LAB.containers("head", project).values()]:
        config = json.loads(LAB.on("head", "docker", "inspect", "-f", "{{json .HostConfig}}", container))
        assert config["Memory"] == config["MemorySwap"] > 0 and config["NanoCpus"] and config["PidsLimit"]
        assert config["CapDrop"] == ["ALL"] and config["ReadonlyRootfs"]
        assert LAB.inside("head", container, "id", "-u").strip() == "10077"


def test_no_password_lies_open() -> None:
    everything = LAB.on("head", "sh", "-c", "docker inspect $(docker ps -q); cat /opt/muster/*/compose.yml")
    for name in ("celery_app_password", "flower_password"):
        assert secret(name) not in everything
    for path in ("celery_worker/celery_password", "flower/flowerconfig.py"):
        refused = LAB.on("head", "runuser", "-u", "nobody", "--", "cat", f"/opt/muster/{path}", check=False)
        assert "Permission denied" in refused


def http(url: str, *options: str) -> str:
    return LAB.on("head", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *options, url, check=False)


FLOWER = "http://127.0.0.1:5555/flower"


def test_flower_asks_for_a_login_and_is_on_loopback() -> None:
    login = ("-u", f"operator:{secret('flower_password')}")
    assert http(f"{FLOWER}/workers") == "401"
    assert http(f"{FLOWER}/workers", "-u", "operator:wrong") == "401"
    assert http(f"{FLOWER}/workers", *login) == "200"
    assert http("http://172.30.89.10:5555/flower/workers", *login) == "000"
    seen = LAB.on("head", "curl", "-s", *login, f"{FLOWER}/api/workers?refresh=true")
    assert len(json.loads(seen)) == 3, seen


def test_flower_remembers() -> None:
    task = send("version")
    login = ("-u", f"operator:{secret('flower_password')}")
    until(
        30,
        "flower sees the task",
        lambda: task in LAB.on("head", "curl", "-s", *login, f"{FLOWER}/api/task/info/{task}"),
    )
    LAB.on("head", "docker", "restart", *LAB.containers("head", "flower").values())
    until(
        60,
        "flower is back with it",
        lambda: task in LAB.on("head", "curl", "-s", *login, f"{FLOWER}/api/task/info/{task}", check=False),
    )


def test_figures_are_served() -> None:
    figures = LAB.on("head", "curl", "-sf", "http://172.30.89.10:9540/metrics")
    for name in ("muster_queue_length", "muster_worker_up", "muster_dead_letters"):
        assert f"\n{name}" in figures, figures
    assert 'muster_worker_up{host="server1",kind="server",worker="server1/data"} 1.0' in figures


def ticks(start: float) -> list[tuple[float, str]]:
    found = [line.split() for line in trace("ticks")]
    return [(float(when), task) for when, task in found if float(when) > start]


def test_with_two_instances_every_tick_fires_once() -> None:
    until(60, "the first tick", lambda: trace("ticks"))
    start = time.time()
    until(60, "five ticks", lambda: len(ticks(start)) >= 5)
    seen = ticks(start)
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(seen)]
    assert all(3 < gap < 8 for gap in gaps), seen
    assert len({task for _, task in seen}) == len(seen)


def test_when_the_instance_that_fires_is_gone_the_other_goes_on() -> None:
    start = time.time()
    LAB.on("head", "docker", "stop", "celery_beat-beat-1")
    try:
        until(90, "ticks go on", lambda: len(ticks(start)) >= 5)
        assert len({task for _, task in ticks(start)}) == len(ticks(start))
    finally:
        LAB.on("head", "docker", "start", "celery_beat-beat-1")
    print(f"five ticks of 5 s within {time.time() - start:.0f} s of the stop")


def code(version: str) -> None:
    path = ROOT / ".lab/celery_worker_code/probe/__init__.py"
    path.write_text(re.sub(r'^VERSION = ".*"$', f'VERSION = "{version}"', path.read_text(), flags=re.MULTILINE))


def play(*arguments: str) -> str:
    run = LAB.play(*arguments)
    assert run.returncode == 0, run.stdout[-4000:]
    return run.stdout


def test_changed_code_restarts_the_workers_and_what_runs_may_end() -> None:
    before = LAB.containers("head", "celery_worker") | LAB.containers("head", "celery_redis")
    BROKER.ask("app", "del", "probe:nap")
    code("2")
    play("playbooks/ray.yml", "--tags", "code")
    LAB.on("server1", "docker", "stop", "celery_worker-data-1")
    try:
        task = send("nap", "nap", 13, queue="data")
        until(20, "the task runs", lambda: trace("nap") == ["start"])
        play("playbooks/celery.yml", "--tags", "celery_worker", "--limit", "head")
        assert result(task) == "1", "it began with the old code and ended with it"
        assert trace("nap") == ["start", "end"]
        ended = float(python(f"print(app.AsyncResult({task!r}).date_done.timestamp())"))
        since = LAB.on("head", "docker", "inspect", "-f", "{{.State.StartedAt}}", INSIDE).strip()
        waited = datetime.fromisoformat(since[:19] + "+00:00").timestamp() - ended
        assert -1 < waited < 30, "the new worker started when the task had ended, and because of that"
    finally:
        play("playbooks/celery.yml", "--tags", "code")
    assert result(send("version", queue="data")) == "2"
    after = LAB.containers("head", "celery_worker") | LAB.containers("head", "celery_redis")
    assert after["default-data"] != before["default-data"] and after["redis"] == before["redis"]
    again = play("playbooks/celery.yml", "--tags", "code")
    assert not re.search(r"changed=[1-9]", again)
    assert LAB.containers("head", "celery_worker").items() <= after.items()


def test_what_takes_longer_than_a_stop_goes_back_and_runs_again() -> None:
    BROKER.ask("app", "del", "probe:long")
    LAB.on("head", "docker", "stop", INSIDE)
    try:
        task = python(
            "print(app.send_task('probe.nap', args=['long', 25], queue='data').id)",
            "server1", "celery_worker-default-1",
        )  # fmt: skip
        until(30, "the task runs", lambda: trace("long") == ["start"])
        start = time.monotonic()
        LAB.on("server1", "docker", "stop", "celery_worker-data-1")
        print(f"a worker with a task of 25 s and 15 s to end stopped after {time.monotonic() - start:.0f} s")
        held = BROKER.status()["workers"].get("server1/data", {"tasks": []})["tasks"]
        assert not held and sum(BROKER.status()["queues"]["data"].values()) == 1
    finally:
        LAB.on("server1", "docker", "start", "celery_worker-data-1")
        LAB.on("head", "docker", "start", INSIDE)
    until(60, "the workers are back", lambda: BROKER.all_there(WORKERS))
    assert result(task, 60)
    assert trace("long") == ["start", "start", "end"]


def test_a_worker_taken_out_of_the_inventory_is_gone_and_the_others_stay() -> None:
    before = LAB.containers("server1", "celery_worker")
    play(*PLAY, "-e", json.dumps({"celery_workers": [{"queues": ["default"], "concurrency": 2}]}))
    assert LAB.containers("server1", "celery_worker") == {"default": before["default"]}
    screen = play("playbooks/status.yml")
    assert "missing: Celery worker server1/data: run site.yml --tags celery --limit server1" in screen
    play(*PLAY, "-e", '{"celery_workers": []}')
    assert LAB.containers("server1", "celery_worker") == {}
    assert "celery_worker" not in LAB.on("server1", "ls", "/opt/muster").split()
    play(*PLAY)
    assert set(LAB.containers("server1", "celery_worker")) == {"default", "data"}


def test_the_screen_says_what_waits_and_who_works_on_what() -> None:
    BROKER.ask("app", "del", "probe:shown")
    send("nap", "shown", 60, queue="data")
    until(20, "the task runs", lambda: trace("shown") == ["start"])
    screen = play("playbooks/status.yml")
    assert "Celery: " in screen and "dead letters" in screen
    assert "alive probe.nap" in " ".join(screen.split())
