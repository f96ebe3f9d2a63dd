"""`muster laptops` as an operator types it: the real playbook, a real broker, and laptops that nobody can reach."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
import yaml

from celery_app.hosts import LAPTOPS
from muster import cli
from tests.delivery.conftest import ROOT, RedisServer, free_port

# In place of Docker's own command, which may lack Compose here: what is in the container is run beside it.
DOCKER = f"""#!{sys.executable}
import json, os, sys
words = sys.argv[1:]
if "exec" in words:
    command = words[words.index("metrics") + 1:]
    os.execv(sys.executable, [sys.executable, *command[1:]])
print(json.dumps({{"version": "2.26.1"}}) if "compose" in words else json.dumps({{}}))
"""


@pytest.fixture
def inventory(redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This machine has the figures; the laptops' addresses are nobody's."""
    (tmp_path / "celery_metrics").mkdir()
    (tmp_path / "celery_metrics/compose.yml").write_text("services: {}\n")
    (tmp_path / "docker").write_text(DOCKER)
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MUSTER_REDIS_URL", redis_server.url)
    head = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "muster_dir": str(tmp_path)}
    addresses = {"anna": "192.0.2.1", "bert": "192.0.2.2", "new": "192.0.2.3"}
    hosts = {
        "celery_metrics": {"hosts": {"head": head}},
        "laptop": {"hosts": {name: {"ansible_host": address} for name, address in addresses.items()}},
    }
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": hosts}}))
    return tmp_path / "hosts.yml"


def test_it_asks_the_broker_and_no_laptop(
    inventory: Path, redis_server: RedisServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = redis_server.client
    now = float(client.time()[0])
    report = {"state": "draining", "why": "on battery", "since": now - 300, "at": now, "battery": 71, "plugged": False}
    client.hset(LAPTOPS, "anna", json.dumps(report))
    client.hset(LAPTOPS, "bert", json.dumps({"state": "ready", "since": now - 9000, "at": now - 7260, "address": "x"}))
    client.hset(LAPTOPS, "old", json.dumps({"state": "ready", "at": now - 20 * 86_400}))
    assert cli.main(["laptops", "-i", str(inventory)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.split("  +", line) for line in lines[1:5]] == [
        ["anna", "draining", "5 min", "on battery", "71 %, unplugged", "192.0.2.1", "-"],
        ["bert", "asleep", "2 h 1 min", "silent", "-", "x", "-"],
        ["new", "unknown", "-", "it never reported", "-", "192.0.2.3", "-"],
        ["old", "lost", "20 d", "away for more than 14 days", "-", "-", "-"],
    ]
    assert [line.partition(":")[0] for line in lines[6:]] == ["new", "old"]
    monkeypatch.setenv("MUSTER_REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    assert cli.main(["laptops", "-i", str(inventory)]) == 3
    said = capsys.readouterr().err
    assert "the broker does not answer" in said and said.count("\n") == 1
