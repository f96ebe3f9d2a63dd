"""Muster leaves, after everything else that is tried here: the hosts have what they had before the first run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
import snapshot
from celery_lab import Broker
from ray_lab import ROOT, Lab

LAB = Lab(os.environ.get("MOLECULE_SCENARIO_NAME", "operate"))
SECRETS = ROOT / ".secrets" / LAB.name
BROKER = Broker(LAB)
HOSTS = {"head", "server1", "laptop1"} | ({"server2"} if LAB.name == "operate" else set())
DATA = re.compile(r" /var/lib/muster(/| |$)")
MODEL = "/srv/share/models/of-the-operator"


def uninstall(*words: str) -> subprocess.CompletedProcess[str]:
    return LAB.play("playbooks/uninstall.yml", *words)


def meant(*words: str) -> str:
    run = uninstall("-e", f"confirm={LAB.name}", *words)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    return run.stdout


def differs(host: str, *, data: bool = False) -> list[str]:
    """What is not as it was; `data`: but for what services kept."""
    # Written by converge.yml, not by Muster.
    LAB.on(host, "rm", "-rf", "/var/lib/drill")
    found = snapshot.changes(snapshot.kept(LAB)[host], snapshot.look(LAB, host))
    return [line for line in found if not (data and DATA.search(line))]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), f"nobody confirmed that. Fix: type {LAB.name} when you are asked, or add -e confirm={LAB.name}."),
        (("-e", "confirm=mine"), f"this cluster is {LAB.name}, not mine"),
        (
            ("-e", f"confirm={LAB.name}", "-e", "keep_date=false"),
            "the argument keep_date is unknown. Fix: write keep_data",
        ),
    ],
    ids=["nobody", "another", "misspelt"],
)
def test_without_its_name_nothing_is_changed(words: tuple[str, ...], said: str) -> None:
    run = uninstall(*words)
    assert run.returncode and said in " ".join(run.stdout.split()), run.stdout[-3000:]
    assert not re.search(r"changed=[1-9]", run.stdout)
    assert BROKER.ask("operator", "ping") == "PONG"


def test_in_check_mode_nothing_is_changed() -> None:
    run = uninstall("-e", f"confirm={LAB.name}", "--check", "--limit", "server1")
    assert run.returncode == 0, run.stdout[-6000:]
    assert re.search(r"^server1 .*changed=[1-9]", run.stdout, re.M), "it says what it would do"
    assert LAB.containers("server1", "ray_worker") and LAB.on("server1", "test", "-e", "/etc/muster/before.json") == ""


def test_somebody_elses_container_stops_it_on_its_host_before_anything_is_changed() -> None:
    """Where Docker came with Muster."""
    if "package installed docker.io" in snapshot.kept(LAB)["server1"]:
        pytest.skip("on this scenario's server1 Docker was there before")
    LAB.on("server1", "docker", "volume", "create", "annas")
    try:
        run = uninstall("-e", f"confirm={LAB.name}", "--limit", "server1")
        assert run.returncode and "holds what is not Muster's: volume annas. Fix" in " ".join(run.stdout.split())
        assert not re.search(r"changed=[1-9]", run.stdout) and LAB.containers("server1", "ray_worker")
    finally:
        LAB.on("server1", "docker", "volume", "rm", "annas")


def test_all_hosts_but_one_that_is_away_have_what_they_had() -> None:
    BROKER.ask("operator", "set", "kept", "by the broker")
    LAB.on("server1", "sh", "-c", f"mkdir -p $(dirname {MODEL}) && echo mine >{MODEL}")
    LAB.freeze("laptop1")
    try:
        run = uninstall("-e", f"confirm={LAB.name}")
    finally:
        LAB.thaw("laptop1")
    said = " ".join(run.stdout.split())
    assert run.returncode and "laptop1 does not answer at" in said, run.stdout[-6000:]
    assert f"are still here: {SECRETS}" in said and SECRETS.is_dir()
    assert LAB.containers("laptop1", "celery_worker")
    for host in HOSTS - {"laptop1"}:
        assert not differs(host, data=True), host
        assert LAB.on(host, "cat", MODEL) == "mine\n", "what the operator has mounted is not ours"
    assert "muster" not in LAB.on("server1", "ls", "/var/lib"), "it kept nothing that anybody misses"


def test_one_host_alone_leaves() -> None:
    said = meant("--limit", "laptop1")
    assert not differs("laptop1")
    assert "laptop1: nothing of Muster is there any more" in said and "head" not in said.partition("PLAY RECAP")[2]


def test_again_it_finds_nothing_to_do() -> None:
    assert not re.search(r"changed=[1-9]", meant())


def test_what_services_kept_is_found_again_and_goes_when_that_is_asked_for() -> None:
    run = LAB.play("site.yml", "--limit", "head,controller")
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert BROKER.ask("operator", "get", "kept") == "by the broker"
    meant("-e", "keep_data=false")
    assert not differs("head")
    assert LAB.on("head", "cat", MODEL) == "mine\n"
