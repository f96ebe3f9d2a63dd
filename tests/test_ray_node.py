"""The start script of Ray's containers: what it deletes, whom it asks, how it waits."""

from __future__ import annotations

import http.server
import importlib.util
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

SCRIPT = Path(__file__).resolve().parents[1] / "roles/ray_node/files/ray_node.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ray_node", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four sessions; the oldest by time is the current one, as after a head that came back."""
    for number, age in enumerate((40, 30, 20, 10)):
        logs = tmp_path / f"session_{number}" / "logs"
        logs.mkdir(parents=True)
        stamp = time.time() - age
        os.utime(logs.parent, (stamp, stamp))
    (tmp_path / "session_latest").symlink_to(tmp_path / "session_0")
    return tmp_path


def test_the_current_session_stays_however_old(script: ModuleType, root: Path) -> None:
    gone = script.old_sessions(root, keep=2)
    assert sorted(path.name for path in gone) == ["session_1", "session_2"]
    assert script.old_sessions(root, keep=9) == []


def test_only_old_logs_of_dead_processes_go(script: ModuleType, root: Path) -> None:
    logs = root / "session_0" / "logs"
    names = ["worker-a-01-111.out", "worker-b-01-222.err", "gcs_server.out", "python-core-worker-c_333.log"]
    for name in names:
        (logs / name).write_text("x")
        os.utime(logs / name, (0, 0))
    (logs / "fresh-444.out").write_text("x")
    found = script.old_logs(root, days=14, now=time.time(), alive={111})
    assert {path.name for path in found} == {names[1], names[2], names[3]}


def test_a_new_life_begins_without_spilled_objects(script: ModuleType, root: Path, tmp_path: Path) -> None:
    spill = tmp_path / "spill"
    (spill / "deep").mkdir(parents=True)
    (spill / "object").write_text("x")
    script.prepare(root, spill, keep=2, days=14)
    assert list(spill.iterdir()) == []
    assert sorted(path.name for path in root.glob("session_?")) == ["session_0", "session_3"]


@pytest.fixture
def server() -> Iterator[http.server.HTTPServer]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/well" else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def test_health_is_what_every_address_says(
    script: ModuleType, server: http.server.HTTPServer, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{server.server_port}"
    assert script.healthy([f"{url}/well"])
    assert not script.healthy([f"{url}/well", f"{url}/ill"])
    assert "503" in capsys.readouterr().out
    assert not script.healthy(["http://127.0.0.1:9/closed"])


def test_a_head_asks_no_cloud_for_its_name(script: ModuleType, tmp_path: Path) -> None:
    """Ray's own reader finds a configuration without one, and does not look any further."""
    script.no_cloud(tmp_path)
    assert yaml.safe_load((tmp_path / "ray_bootstrap_config.yaml").read_text()) == {}
    # A home that cannot be written is no reason not to start.
    script.no_cloud(tmp_path / "nowhere")
