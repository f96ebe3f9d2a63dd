"""The library's jobs as a user runs them: `muster run` on this machine, through the gateway, on a real cluster."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
from ray_lab import ROOT, Lab, until

LAB = Lab("cluster")
HEAD = "ray_head-head-1"
# Without a CPU it might run on the head, and end with it.
COUNTER = """
@ray.remote(num_cpus=0.1)
class Counter:
    def __init__(self): self.count = 0
    def add(self):
        self.count += 1
        return self.count
    def read(self): return self.count
counter = Counter.options(name="counter", lifetime="detached").remote()
ray.get([counter.add.remote() for _ in range(3)])
"""


def muster(command: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "muster.cli", command, *words, *LAB.inventory],
        cwd=ROOT, env=LAB.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip


def test_hello_runs_on_the_servers() -> None:
    done = muster("run", "hello", "-p", "tasks=40", "-p", "iterations=200000", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    # Neither the head nor the laptop. A node whose worker is still starting when the others are through has none.
    assert set(said["nodes"]) <= {"server1/worker-1", "server1/worker-2", "server2/worker-1"}
    assert sum(said["nodes"].values()) == 40
    (run,) = [line.split()[0] for line in done.stderr.splitlines() if line.endswith("is submitted")]
    again = muster("result", run, "--json")
    assert json.loads(again.stdout) == said
    assert run in muster("runs").stdout
    # What can be repeated lies on what all servers share, whichever of them ran it.
    about = json.loads(LAB.on("server2", "sh", "-c", f"cat /srv/share/results/hello/*-{run}/run.json"))
    assert about["state"] == "succeeded" and about["metrics"] == said and about["parameters"]["tasks"] == 40


def test_a_job_that_the_image_is_too_small_for_says_so() -> None:
    """The lab's image is the core profile's: what a person gets who has not chosen the other one."""
    done = muster("run", "train_forest")
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert "node_image_profile: ml" in done.stderr


def test_a_job_goes_through_celery() -> None:
    done = muster("run", "hello", "--queue", "-p", "tasks=5", "-p", "iterations=10")
    assert done.returncode == 0, done.stderr
    task = done.stdout.strip()
    until(120, "the job has ended", lambda: muster("result", task).returncode == 0)
    assert json.loads(muster("result", task, "--json").stdout)["tasks"] == 5


def state(run: str) -> str:
    """As `muster runs` lists it."""
    listed = json.loads(muster("runs", "--json").stdout)
    return next((str(one["state"]) for one in listed if one["id"] == run), "not listed")


def test_a_stopped_run_is_stopped() -> None:
    done = muster("run", "hello", "--detach", "-p", "tasks=1000", "-p", "iterations=100000000")
    assert done.returncode == 0, done.stderr
    name = done.stdout.strip()
    until(90, "it runs", lambda: state(name) == "running")
    assert muster("stop", name).returncode == 0
    until(90, "it is stopped", lambda: state(name) == "stopped")
    assert muster("result", name).returncode == 1


def workers() -> dict[str, str]:
    """The Ray nodes that are alive, and their ids."""
    return {name: node["id"] for name, node in LAB.nodes().items() if name != "head/head"}


def test_the_head_is_killed_while_a_job_is_followed() -> None:
    """Who follows it hears nothing for a while, and then what came out; nodes and actors are the same as before."""
    LAB.driver(COUNTER)
    before = workers()
    assert len(before) == 3
    words = ["run", "hello", "-p", "tasks=30", "-p", "iterations=30000000", "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "muster.cli", *words, *LAB.inventory],
        cwd=ROOT, env=LAB.environment, stdin=subprocess.DEVNULL, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stderr
        name = child.stderr.readline().split()[0]
        status = ("docker", "exec", HEAD, "ray", "job", "status", name)
        until(90, "the job runs", lambda: "RUNNING" in LAB.on("head", *status, check=False))
        time.sleep(3)
        LAB.kill_hard("head", HEAD)
        said, log = child.communicate(timeout=400)
    assert child.returncode == 0, log
    assert json.loads(said)["tasks"] == 30
    assert "waiting: " in log
    until(120, "the nodes of before", lambda: workers() == before)
    read = "counter = ray.get_actor('counter')\nprint(ray.get(counter.read.remote(), timeout=30))\nray.kill(counter)"
    assert LAB.driver(read).split()[-1] == "3"
