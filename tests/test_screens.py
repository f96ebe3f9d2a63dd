"""The screens from end to end: the command, the real playbooks, and HTTP servers that answer as Prometheus and
Alertmanager do. What the keys of --json are called is in docs/cli.md."""

from __future__ import annotations

import json
import os
import pty
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import yaml

from muster import alerts, cli, figures, fleet, nodes, queues, status

from . import test_fleet, test_nodes, test_queues, test_status
from .conftest import ROOT
from .test_alerts import NOW, alert, silence

QUERIES = json.loads((ROOT / "roles/gateway/files/page/queries.json").read_text())


class Watcher(ThreadingHTTPServer):
    """Prometheus, or Alertmanager."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", low_port()), Answers)
        self.firing: list[dict[str, Any]] = []
        self.asked: list[str] = []

    def end(self) -> None:
        self.shutdown()
        self.server_close()


class Answers(BaseHTTPRequestHandler):
    server: Watcher

    def do_GET(self) -> None:
        found: dict[str, Any] = {
            "/prometheus/api/v1/alerts": {"status": "success", "data": {"alerts": self.server.firing}},
            "/alertmanager/api/v2/silences": [],
        }
        self.say(found[self.path])

    def do_POST(self) -> None:
        assert self.path == "/prometheus/api/v1/query"
        body = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.server.asked += body["query"]
        self.say({"status": "success", "data": {"resultType": "vector", "result": test_nodes.ANSWER}})

    def say(self, answer: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None:
        """The tests' output is theirs."""


def low_port() -> int:
    """Free, and below those that the table of ports refuses."""
    for port in range(31000, 32000):
        with socket.socket() as found:
            if found.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no port is free")


@contextmanager
def running() -> Iterator[Watcher]:
    server = Watcher()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.end()


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    with running() as server:
        yield server


@pytest.fixture
def inventory(watcher: Watcher, tmp_path: Path) -> Iterator[Path]:
    """This machine watches; nobody here is Ray's head or knows the broker."""
    (tmp_path / "groups.yml").write_text((ROOT / "inventory/example/groups.yml").read_text())
    here = {
        "ansible_host": "127.0.0.1",
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "muster_dir": str(tmp_path / "nothing"),
    }
    hosts = {"server": {"hosts": {"head": here}}, "ray_head": {"hosts": {"head": None}}}
    with running() as alertmanager:
        ports = {"prometheus": {"port": watcher.server_port}, "alertmanager": {"port": alertmanager.server_port}}
        everywhere = {"muster_ports_extra": ports}
        (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": hosts, "vars": everywhere}}))
        yield tmp_path


def test_alerts_end_with_a_number_for_scripts(
    watcher: Watcher, inventory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["alerts", "-i", str(inventory)]
    assert cli.main(asked) == 0
    assert capsys.readouterr().out == "No alerts\n"
    watcher.firing = [alert("the head is down", "critical", NOW), alert("soon", "warning", NOW) | {"state": "pending"}]
    assert cli.main([*asked, "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)["alerts"]
    assert found["severity"] == "critical" and found["labels"]["alertname"] == "X" and found["fix"] == "mend it"
    watcher.end()
    assert cli.main([*asked, "--json"]) == 3
    said = capsys.readouterr()
    assert said.out == "" and "Connection refused" in said.err and said.err.count("\n") == 1


def test_only_a_terminal_gets_colours(inventory: Path) -> None:
    command = [sys.executable, "-m", "muster.cli", "nodes", "-i", str(inventory)]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    subprocess.run(command, cwd=ROOT, stdout=theirs, env=environment, check=True)
    assert b"\x1b[32mready" in os.read(ours, 65536)
    piped = subprocess.run(command, cwd=ROOT, capture_output=True, env=environment, check=True).stdout
    assert b"ready" in piped and b"\x1b" not in piped


def test_nodes_from_prometheus_alone(watcher: Watcher, inventory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["nodes", "-i", str(inventory), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert watcher.asked == [figures.question(QUERIES)]
    states = {host["name"]: (host["kind"], host["state"]) for host in facts["hosts"]}
    assert states["head"] == ("server", "ready") and states["anna"] == ("laptop", "draining")
    assert facts["hosts"][0]["cpu_used"] == 0.456
    assert {node["state"] for node in facts["nodes"]} == {"unknown"}
    assert facts["notes"][0].startswith("The head does not answer")
    watcher.end()
    assert cli.main(["nodes", "-i", str(inventory), "--json"]) == 3
    said = capsys.readouterr()
    assert said.out == "" and "neither Ray's head nor Prometheus answers" in said.err


def test_without_a_broker_there_are_no_queues(inventory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["queues", "-i", str(inventory), "--json"]) == 3
    assert capsys.readouterr().out == ""
    groups = yaml.safe_load((inventory / "groups.yml").read_text())
    groups["all"]["children"]["celery_metrics"] = None
    (inventory / "groups.yml").write_text(yaml.safe_dump(groups))
    assert cli.main(["queues", "-i", str(inventory)]) == 2
    assert capsys.readouterr().err.startswith("muster: nobody knows what waits. Fix: put one host into the group")


@pytest.mark.parametrize("command", ["status", "nodes"])
def test_a_mistake_in_the_inventory_is_the_operators(
    inventory: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    text = (inventory / "hosts.yml").read_text()
    (inventory / "hosts.yml").write_text(text.replace("127.0.0.1", "head.lan"))
    assert cli.main([command, "-i", str(inventory), "--json"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("muster: head: muster_address is 'head.lan', which is not")


def examples() -> dict[str, Any]:
    """The JSON of docs/cli.md by command."""
    text = (ROOT / "docs/cli.md").read_text()
    found = re.findall(r"^`muster (\w+) --json`[^\n]*:\n\n```json\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    return {name: json.loads(body) for name, body in found}


def shape(value: Any) -> Any:
    """The keys, however deep, of what is in lists by the first; labels are anybody's."""
    if isinstance(value, dict):
        return {key: {} if key == "labels" else shape(inner) for key, inner in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value and isinstance(value[0], dict) else None


FACTS = {
    "nodes": nodes.facts(test_nodes.PLANNED, test_nodes.RAY, test_nodes.ANSWER, None, test_nodes.NOW),
    "queues": queues.facts(test_queues.SEEN, test_queues.PLANNED),
    "laptops": fleet.facts({}, {"now": 1e6, "hosts": {"a": test_fleet.laptop("ready", tasks=[test_fleet.TASK])}}),
    "alerts": alerts.facts([alert("x", "warning", NOW)], [silence("active", host="a")], NOW),
    "status": status.facts(
        {"nodes": {"head": ["head"]}, "laptops": [], "workers": []},
        {"head": test_status.docker(("gateway", "caddy", "Up"))},
        test_status.ray("head/head"),
        {"queues": {}, "workers": {}, "hosts": {}, "dead": 0},
    ),
}


@pytest.mark.parametrize("name", ["status", "nodes", "queues", "laptops", "alerts"])
def test_the_keys_are_those_of_the_documentation(name: str) -> None:
    assert shape(FACTS[name]) == shape(examples()[name])
    json.dumps(FACTS[name], allow_nan=False)
