"""Drain, undrain and reboot while work goes on: nothing is lost or done twice, nothing starts where none should."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
from celery_lab import Broker
from history_lab import History
from ray_lab import Lab, until
from watch_lab import Watch

LAB = Lab(os.environ.get("MOLECULE_SCENARIO_NAME", "operate"))
BROKER = Broker(LAB)
# In the order in which they are rebooted.
SERVERS = ("server1", "server2", "head")
HISTORY = History(LAB, BROKER, (*SERVERS, "laptop1") if LAB.name == "operate" else SERVERS)
HEAD = "ray_head-head-1"
WITHIN = 4
# Tasks go on coming until somebody says that it is enough; two must be repeated elsewhere where they are cut off.
RAY = """
import json, os, sys, time
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
ENOUGH = "/tmp/drill-enough"
if os.path.exists(ENOUGH): os.remove(ENOUGH)
@ray.remote(num_cpus=1, max_retries=-1, scheduling_strategy="SPREAD")
def work(number, seconds):
    began = time.time()
    time.sleep(seconds)
    return number, ray.get_runtime_context().get_node_labels()["host"], began
@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Counts:
    def where(self):
        return ray.get_runtime_context().get_node_labels()["host"]
first, second = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Labels"]["host"] == "server1"]
near = NodeAffinitySchedulingStrategy(first, soft=True)
counters = [Counts.options(scheduling_strategy="SPREAD").remote() for _ in range(8)]
counts = counters[ray.get([one.where.remote() for one in counters]).index("server1")]
running = [work.options(scheduling_strategy=near).remote("long", 25)]
print("begun", flush=True)
done, number = [], 0
while running:
    while len(running) < 5 and not os.path.exists(ENOUGH):
        running.append(work.remote(number, 0.5))
        number += 1
    ready, running = ray.wait(running, timeout=1)
    done += ray.get(ready)
print(json.dumps({"sent": number, "done": done, "actor": ray.get(counts.where.remote())}), flush=True)
"""
SPREAD = """
where = ray.remote(num_cpus=1)(lambda: ray.get_runtime_context().get_node_labels()["host"])
print(set(ray.get([where.options(scheduling_strategy="SPREAD").remote() for _ in range(9)])))
"""


def play(name: str, *arguments: str, fails: bool = False) -> str:
    run = LAB.play(f"playbooks/{name}.yml", *arguments)
    assert bool(run.returncode) == fails, run.stdout[-6000:] + run.stderr[-2000:]
    return run.stdout


def changed(output: str) -> int:
    return sum(map(int, re.findall(r" changed=(\d+)", output)))


@contextmanager
def ray_load() -> Iterator[dict[str, Any]]:
    """Ray tasks that come all the time; at the end the answers of all."""
    connect = "import ray\nray.init('auto', namespace='drill', log_to_driver=False, logging_level='ERROR')\n"
    LAB.inside("head", HEAD, "tee", "/tmp/drill.py", stdin=connect + RAY)
    command = ["docker", "exec", f"{LAB.name}-head", "docker", "exec", HEAD, "python3", "/tmp/drill.py"]
    driver = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    found: dict[str, Any] = {}
    try:
        assert driver.stdout and driver.stdout.readline() == "begun\n", driver.communicate()
        yield found
    finally:
        LAB.inside("head", HEAD, "touch", "/tmp/drill-enough")
        out, err = driver.communicate()
        assert driver.returncode == 0, err[-4000:]
        found.update(json.loads(out.splitlines()[-1]))


def nodes_of(host: str) -> set[str]:
    return {name for name in LAB.nodes() if name.startswith(f"{host}/")}


def test_what_is_told_wrongly_changes_nothing() -> None:
    for words, line in (
        ((), "no host is given. Fix: say which one, as in: ansible-playbook playbooks/drain.yml -e host=server1"),
        (("-e", "host=servr1"), "the inventory has no host servr1. Fix: write server1"),
        (("-e", "host=head"), "to restart it run playbooks/reboot.yml --limit head"),
        (("-e", "host=server1", "-e", "within=soon"), "within is 'soon'. Fix: give whole seconds"),
        (("-e", "host=server1", "--limit", "server2"), "--limit leaves out server1"),
    ):
        said = " ".join(play("drain", *words, fails=True).split())
        assert line in said and "Nothing was changed." in said and changed(said) == 0, said[-3000:]


def test_check_mode_changes_nothing() -> None:
    before = LAB.nodes()
    play("drain", "-e", "host=server1", "--check")
    play("undrain", "-e", "host=server1", "--check")
    play("reboot", "--check")
    assert LAB.nodes() == before
    assert LAB.on("server1", "ls", "/var/lib/muster/drain").split() == ["said"]


def test_a_host_is_drained_and_comes_back_under_load() -> None:
    with HISTORY.under_load(1.5):
        with ray_load() as ray:
            begun = time.time()
            play("drain", "-e", "host=server1", "-e", f"within={WITHIN}", "-e", "why=new_disk")
            drained = time.time()
            assert nodes_of("server1") == set() and nodes_of("server2")
            state = BROKER.status()
            assert state["hosts"]["server1"]["state"] == "drained" and state["hosts"]["server1"]["why"] == "new_disk"
            assert not [name for name in state["workers"] if name.startswith("server1/")]

            again = play("drain", "-e", "host=server1", "-e", f"within={WITHIN}", "-e", "why=new_disk")
            assert changed(again) == 0, again[-4000:]
            # What starts on the host anew obeys, too.
            LAB.on("server1", "sh", "-c", "docker restart $(docker ps -q --filter name=_worker-)")
            site = LAB.play("site.yml", "--tags", "ray_worker,celery_worker", "--limit", "server1")
            assert site.returncode == 0, site.stdout[-4000:]
            assert "server1: drained, and stays so" in " ".join(site.stdout.split()) and changed(site.stdout) == 0
        play("smoke")
        status = play("status")
        assert "drained: server1 for" in status and "missing:" not in status, status[-4000:]
        firing = Watch(LAB, next(one for one in LAB.on("head", "hostname", "-i").split() if "." in one)).firing()
        assert not [name for name, host in firing if host == "server1"], firing

        asked = time.time()
        play("undrain", "-e", "host=server1")
        back = time.time()
        assert len(nodes_of("server1")) == 2
        assert changed(play("undrain", "-e", "host=server1")) == 0
        until(60, "Celery's tasks run there again", lambda: max(HISTORY.started("server1")) > asked)
        until(60, "Ray's, too", lambda: "server1" in LAB.driver(SPREAD))
    print(f"drained after {drained - begun:.0f} s (within={WITHIN}), back after {back - asked:.0f} s")
    assert not [at for at in HISTORY.started("server1") if drained < at < asked], "something began while it was drained"
    there = [began for _, host, began in ray["done"] if host == "server1"]
    assert there and max(there) < drained, "Ray's work was there, and then no more"
    assert [at for _, _, at in ray["done"] if at > drained], "it went on elsewhere"
    numbers = [number for number, _, _ in ray["done"]]
    assert len(numbers) == len(set(numbers)) == ray["sent"] + 1, "each Ray task has one answer"
    (cut,) = [began for number, _, began in ray["done"] if number == "long"]
    assert cut > begun, "the long one was not begun anew: this shows nothing"
    assert ray["actor"] != "server1"


def booted(host: str) -> int:
    said = LAB.on(
        host, "systemctl", "show", "--value", "--property", "UserspaceTimestampMonotonic", check=False
    ).strip()
    return int(said) if said.isdecimal() else 0


@contextmanager
def no_way_back(host: str) -> Iterator[None]:
    """After a reboot nobody reaches it."""
    LAB.on(host, "systemctl", "disable", "ssh.service")
    try:
        yield
    finally:
        until(60, f"{host} can be told", lambda: booted(host))
        LAB.on(host, "systemctl", "enable", "--now", "ssh.service")


def test_servers_are_rebooted_one_after_the_other_and_the_first_that_fails_ends_it() -> None:
    before = {host: booted(host) for host in SERVERS}
    workers = {host: nodes_of(host) for host in SERVERS}
    with HISTORY.under_load(1.5):
        with no_way_back("server1"):
            said = play("reboot", "--limit", "server1:server2", "-e", "within=2", "-e", "back=25", fails=True)
            flat = " ".join(said.split())
            assert "server1 is not back" in flat and "Not rebooted yet: server2." in flat, flat[-4000:]
            assert "ansible-playbook playbooks/reboot.yml --limit server1:server2" in flat
            assert booted("server2") == before["server2"]
            assert nodes_of("server1") == set(), "it rests until somebody says otherwise"
        failed = booted("server1")
        assert failed > before["server1"], "it was not even rebooted"

        for host in SERVERS:
            LAB.on(host, "touch", "/run/reboot-required")
        begun = time.monotonic()
        play("reboot", "-e", "within=2", "-e", "only_if_needed=true")
        print(f"three servers rebooted within {time.monotonic() - begun:.0f} s")
        after = [booted(host) for host in SERVERS]
        assert after == sorted(after) and after[0] > failed, (before, after)
        assert {host: nodes_of(host) for host in SERVERS} == workers
    assert changed(play("reboot", "-e", "only_if_needed=true")) == 0
    assert [booted(host) for host in SERVERS] == after, "none of them asked for it"
