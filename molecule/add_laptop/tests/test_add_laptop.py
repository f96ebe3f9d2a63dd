"""A laptop joins and leaves: it works at once, others do not notice, and it has afterwards what it had before."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
import snapshot
from celery_lab import REDIS, ROOT, SECRETS, Broker, secret
from ray_lab import Lab, until

LAB = Lab("add_laptop")
BROKER = Broker(LAB)
FILE = ROOT / "molecule/add_laptop/inventory/laptops.yml"
LAPTOPS = {"anna": "172.30.83.101", "bert": "172.30.83.102"}
SERVERS = {"head": ("default",), "server1": ("default",)}
WORKER = ("default-data",)
INSIDE = "celery_worker-default-1"


@pytest.fixture(scope="module")
def before() -> dict[str, set[str]]:
    """Taken before the first test adds anybody; a run on kept hosts goes on with what was seen then."""
    if not FILE.exists():
        snapshot.keep(LAB, LAPTOPS)
    return snapshot.kept(LAB)


def play(name: str, **arguments: str) -> subprocess.CompletedProcess[str]:
    return LAB.play(name, *(part for word, value in arguments.items() for part in ("-e", f"{word}={value}")))


def good(run: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """What a run that went well has changed, by host."""
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    found = re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s+unreachable=0\s+failed=0", run.stdout, re.M)
    return {host: int(count) for host, count in found}


def python(code: str) -> str:
    said = LAB.inside("head", INSIDE, "timeout", "90", "python3", "-", stdin=f"from celery_app import app\n{code}\n")
    return said.strip().splitlines()[-1] if said.strip() else ""


def done_by_a_laptop() -> bool:
    """Nobody else takes from this queue."""
    return python("print(app.send_task('probe.version', queue='data').get(timeout=60))") == "1"


def trace(key: str) -> list[str]:
    """What probe.nap has written."""
    return BROKER.ask("app", "lrange", f"probe:{key}", "0", "-1").split()


def workers(*laptops: str) -> dict[str, Any]:
    return {**SERVERS, **dict.fromkeys(laptops, WORKER)}


def redis() -> str:
    """Changes when the broker's container or process does."""
    return LAB.on("head", "docker", "inspect", "-f", "{{.Id}} {{.State.StartedAt}}", REDIS)


@contextmanager
def asleep(host: str) -> Iterator[None]:
    LAB.freeze(host)
    try:
        yield
    finally:
        LAB.thaw(host)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, ["no host is given", "-e host=10.0.0.85"]),
        ({"host": "172.30.83.101", "memroy": "2G"}, ["memroy is unknown", "write memory"]),
        ({"host": "172.30.83.11"}, ["server1 is a server", "give a laptop's address"]),
        ({"host": "172.30.83.250"}, ["does not answer at 172.30.83.250", "start the machine, or correct ansible_host"]),
        ({"host": "172.30.83.101", "user": "stranger"}, ["refuses the login", "correct ansible_user or the key"]),
        ({"host": "172.30.83.101", "ray": "true", "memory": "900G"}, ["anna: 1 worker asks for 900.0G", "lower"]),
    ],
    ids=["nobody", "misspelt", "server", "silent", "stranger", "too much"],
)
def test_a_mistake_is_one_line_and_changes_nothing(
    before: dict[str, set[str]], arguments: dict[str, str], words: list[str]
) -> None:
    run = play("add-laptop.yml", **arguments)
    assert run.returncode != 0
    said = " ".join(run.stdout.split())
    for word in words:
        assert word in said, run.stdout[-3000:]
    assert "nothing was changed" in said.lower() and not FILE.exists()
    assert not re.search(r"changed=[1-9]", run.stdout), run.stdout[-3000:]


@pytest.mark.parametrize("name", LAPTOPS)
def test_a_laptop_joins_and_works(before: dict[str, set[str]], name: str) -> None:
    broker, start = redis(), time.monotonic()
    changed = good(play("add-laptop.yml", host=LAPTOPS[name]))
    print(f"{name} joined after {time.monotonic() - start:.0f} s ({'Docker present' if name == 'anna' else 'plain'})")
    assert set(changed) == {"localhost", "head", "server1", name}, "it touches no other laptop"
    assert f"    {name}: {{ansible_host: {LAPTOPS[name]}}}\n" in FILE.read_text()
    there = ("anna",) if name == "anna" else ("anna", "bert")
    until(30, "its worker has a lease", lambda: BROKER.all_there(workers(*there)))
    assert done_by_a_laptop()
    environment = LAB.inside(name, "celery_worker-default-data-1", "env")
    assert f"//laptop-{name}@" in environment and redis() == broker
    assert not LAB.containers(name, "ray_worker")


def test_its_owner_does_not_feel_it() -> None:
    script = "for p in $(ps -C python3 -o pid=); do echo $(ps -o ni= -p $p) $(ionice -p $p); done"
    said = LAB.inside("anna", "celery_worker-default-data-1", "sh", "-c", script).splitlines()
    assert set(said) == {"19 idle"} and len(said) >= 3, said
    (container,) = LAB.containers("anna", "celery_worker").values()
    limits = json.loads(LAB.on("anna", "docker", "inspect", "-f", "{{json .HostConfig}}", container))
    assert limits["CpuShares"] == 64 and limits["NanoCpus"] == 10**9 and limits["Memory"] == 512 * 2**20


def test_again_it_changes_nothing() -> None:
    text, broker = FILE.read_text(), redis()
    changed = good(play("add-laptop.yml", host="anna"))
    assert not any(changed.values()), changed
    assert FILE.read_text() == text and redis() == broker


def test_check_mode_takes_nobody_away() -> None:
    text, broker = FILE.read_text(), redis()
    run = LAB.play("remove-laptop.yml", "-e", "host=anna", "--check")
    assert good(run)["anna"] > 0
    assert FILE.read_text() == text and redis() == broker
    assert LAB.containers("anna", "celery_worker") and "Status: active" in LAB.on("anna", "ufw", "status")
    assert BROKER.all_there(workers(*LAPTOPS)) and secret("celery_laptop_anna_password")


def test_one_that_leaves_hands_back_and_has_what_it_had(before: dict[str, set[str]]) -> None:
    broker = redis()
    key = f"left-{time.time()}"
    held = python(f"print(app.send_task('probe.nap', args=[{key!r}, 90], queue='data').id)")
    until(30, "somebody is at it", lambda: trace(key) == ["start"])
    (busy,) = [name for name, one in BROKER.status()["workers"].items() if held in str(one["tasks"])]
    name, other = busy.partition("/")[0], {"anna": "bert", "bert": "anna"}[busy.partition("/")[0]]
    good(play("remove-laptop.yml", host=name))
    until(60, "the other has it", lambda: trace(key) == ["start", "start"])
    assert python(f"print(app.AsyncResult({held!r}).state)") in ("STARTED", "PENDING")
    assert BROKER.all_there(workers(other)) and redis() == broker
    gone(name)
    assert not snapshot.changes(before[name], snapshot.look(LAB, name))
    python(f"app.control.revoke({held!r}, terminate=True)")
    assert not any(good(play("remove-laptop.yml", host=LAPTOPS[name])).values())


def gone(name: str) -> None:
    """Nobody but itself knows it any more."""
    assert name not in FILE.read_text()
    assert not (SECRETS / f"celery_laptop_{name}_password").exists()
    assert not list((SECRETS / "pki/hosts").glob(f"{name}_*"))
    assert f"laptop-{name}" not in BROKER.ask("operator", "acl", "users").split()
    assert BROKER.ask("operator", "hget", "muster:laptops", name) == ""
    assert name not in BROKER.ask("operator", "zrange", "muster:leases", "0", "-1")
    for server in SERVERS:
        assert LAPTOPS[name] not in LAB.on(server, "ufw", "status")


def test_one_that_is_lost_is_shut_out_and_may_come_back(before: dict[str, set[str]]) -> None:
    (name,) = [name for name in LAPTOPS if name in FILE.read_text()]
    password, broker = secret(f"celery_laptop_{name}_password"), redis()
    assert BROKER.ask(f"laptop-{name}", "ping", password=password) == "PONG"
    with asleep(name):
        refused = play("remove-laptop.yml", host=name)
        assert refused.returncode != 0 and "add -e lost=true" in " ".join(refused.stdout.split())
        assert name in FILE.read_text()
        run = play("remove-laptop.yml", host=name, lost="true")
        good(run)
        said = " ".join(run.stdout.split())
        assert "It was not contacted" in said and "certificate cannot be called back" in said
        assert "token of Ray" not in said
        gone(name)
        assert "WRONGPASS" in BROKER.ask(f"laptop-{name}", "ping", password=password)
        assert BROKER.all_there(SERVERS) and redis() == broker
        assert not any(good(play("remove-laptop.yml", host=name, lost="true")).values())
    assert "WRONGPASS" in BROKER.ask(f"laptop-{name}", "ping", password=password)
    good(play("add-laptop.yml", host=name))
    assert secret(f"celery_laptop_{name}_password") != password
    until(30, "it works again", lambda: BROKER.all_there(workers(name)))
    good(play("remove-laptop.yml", host=name))
    gone(name)
    assert not snapshot.changes(before[name], snapshot.look(LAB, name))
