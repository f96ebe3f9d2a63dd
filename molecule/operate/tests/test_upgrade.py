"""Another Ray, and back, while work goes on; an image that does not work goes back by itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
from celery_lab import Broker
from history_lab import History
from ray_lab import ROOT, Lab, until

LAB = Lab(os.environ.get("MOLECULE_SCENARIO_NAME", "operate"))
BROKER = Broker(LAB)
SERVERS = ("head", "server1", "server2")
HISTORY = History(LAB, BROKER, (*SERVERS, "laptop1"))
HEAD = "ray_head-head-1"
OTHER = "2.59.0"
(PINNED,) = re.findall(r"^ray==(\S+)", (ROOT / "images/node/core.txt").read_text(), re.MULTILINE)
GCS = "/usr/local/lib/python3.11/dist-packages/ray/core/src/ray/gcs/gcs_server"
# Named, of the cluster and not of a driver, and alive again wherever there is room.
ACTOR = """
@ray.remote(num_cpus=0.1, max_restarts=-1)
class Here:
    def __init__(self): self.at = 1
    def say(self): return self.at
Here.options(name="here", lifetime="detached", get_if_exists=True).remote()
"""


def upgrade(*arguments: str, fails: bool = False) -> str:
    begun = time.monotonic()
    run = LAB.play("playbooks/upgrade.yml", *[part for one in arguments for part in ("-e", one)])
    assert bool(run.returncode) == fails, run.stdout[-8000:] + run.stderr[-2000:]
    print(f"upgrade {' '.join(arguments)}: {time.monotonic() - begun:.0f} s")
    return " ".join(run.stdout.split())


def version() -> str:
    return LAB.inside("head", HEAD, "python3", "-c", "import ray; print(ray.__version__)").strip()


def image(host: str, project: str) -> str:
    (found,) = set(re.findall(r"image: (\S+)", LAB.on(host, "cat", f"/opt/muster/{project}/compose.yml")))
    return str(found)


def images() -> set[str]:
    places = [("head", "ray_head"), ("server1", "ray_worker"), ("server2", "ray_worker"), ("server1", "celery_worker")]
    return {image(*place) for place in places}


def pause_of(events: list[float], begun: float) -> float:
    """The longest time in which no task began."""
    times = [at for at in sorted(events) if at > begun]
    return max(b - a for a, b in pairwise([begun, *times]))


def jobs() -> dict[str, str]:
    code = (
        "import json, os; from ray_jobs.jobs_api import JobsClient\n"
        "ray = JobsClient(os.environ['RAY_API_SERVER_ADDRESS'])\n"
        "print(json.dumps({job['submission_id']: job['status'] for job in ray.all() if job.get('submission_id')}))"
    )
    found: dict[str, str] = json.loads(LAB.inside("head", HEAD, "python3", "-c", code))
    return found


@pytest.fixture
def broken() -> Iterator[str]:
    """An image in which programs run, and Ray's control service does not."""
    now = image("head", "ray_head")
    name = now.rpartition(":")[0] + ":broken"
    recipe = f"FROM {now}\nUSER root\nRUN printf '#!/bin/sh\\nexit 1\\n' >{GCS}\nUSER muster\n"
    subprocess.run(["docker", "build", "-q", "-t", name, "-"], input=recipe, text=True, check=True, capture_output=True)
    # Not by -e, which nothing goes back from.
    mine = Path(__file__).parents[1] / "inventory/group_vars/all/broken.yml"
    mine.write_text(f"node_image_ref: {name}\n")
    yield name
    mine.unlink(missing_ok=True)
    subprocess.run(["docker", "rmi", "--force", name], check=False, capture_output=True)


def test_what_is_told_wrongly_changes_nothing() -> None:
    before = images()
    for words, line in (
        (("ray_version=2.59",), "ray_version is '2.59'. Fix: write it like ray_version="),
        (("within=soon",), "within is 'soon'. Fix: give whole seconds"),
    ):
        said = upgrade(*words, fails=True)
        assert line in said and "Nothing was changed." in said, said[-3000:]
    assert images() == before


@pytest.mark.usefixtures("broken")
def test_a_check_changes_nothing() -> None:
    before = images()
    said = LAB.play("playbooks/upgrade.yml", "--check")
    assert said.returncode == 0, said.stdout[-8000:] + said.stderr[-2000:]
    assert images() == before
    assert LAB.on("server1", "ls", "/var/lib/muster/drain").split() == ["said"]


@pytest.mark.usefixtures("broken")
def test_an_image_that_does_not_work_goes_back_by_itself() -> None:
    before = images()
    LAB.driver(ACTOR)
    with HISTORY.under_load(1.0):
        said = upgrade("service_wait_timeout=60", "within=0", fails=True)
    assert "The new image did not work, and everything runs the former one again" in said, said[-4000:]
    assert "head-1 |" in said, "the head's last words"
    assert images() == before
    assert LAB.on("server1", "ls", "/var/lib/muster/drain").split() == ["said"], "queues wait still"
    until(60, "its actor is there", lambda: "1" in LAB.driver("print(ray.get(ray.get_actor('here').say.remote()))"))


@pytest.mark.parametrize("wanted", [OTHER, "pinned"])
def test_another_ray_and_back_while_tasks_and_jobs_run(wanted: str) -> None:
    now = OTHER if wanted == OTHER else PINNED
    assert version() != now
    LAB.driver(ACTOR)
    job, theirs = (f"{one}-{wanted.replace('.', '-')}-{time.time():.0f}" for one in ("hello", "theirs"))
    # The first time it would last.
    first = f"mkdir -p $MUSTER_DATA/results; if mkdir $MUSTER_DATA/results/{job}; then sleep 600; fi"
    entry = f"sh -c '{first}; python3 -m ray_jobs.hello -p tasks=4'"
    start = (
        "import os; from ray_jobs import afar; from ray_jobs.jobs_api import JobsClient, Wanted\n"
        "ray = JobsClient(os.environ['RAY_API_SERVER_ADDRESS'])\n"
        f"ray.submit(Wanted({job!r}, {entry!r},\n"
        "    label_selector=afar.SERVER, metadata={'muster_job': 'hello'}).body())\n"
        f"ray.submit(Wanted({theirs!r}, 'sleep 600', label_selector=afar.SERVER).body())"
    )
    LAB.inside("head", HEAD, "python3", "-c", start)
    until(60, "both jobs run", lambda: [jobs()[one] for one in (job, theirs)] == ["RUNNING"] * 2)
    with HISTORY.under_load(1.0):
        begun = time.time()
        said = upgrade(f"ray_version={wanted}", "within=5")
        ended = time.time()
        assert version() == now and len(images()) == 1
    told = re.search(r"Begun anew: (\S+)\. Cut, to be sent again by who sent them: (\S+)\.", said)
    assert told and told.groups() == (job, theirs), (told, jobs())
    until(180, "the job that bears it came to its end", lambda: jobs()[job] == "SUCCEEDED")
    until(60, "its actor is there", lambda: "1" in LAB.driver("print(ray.get(ray.get_actor('here').say.remote()))"))
    servers = [at for host in SERVERS for at in HISTORY.started(host) if at < ended]
    print(f"Ray {now}: no task began on a server for {pause_of(servers, begun):.0f} s")
    kept = LAB.secrets / "ray.version"
    assert (kept.read_text().strip() == OTHER) if wanted == OTHER else not kept.exists()
