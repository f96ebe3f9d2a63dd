"""The probe's two halves: what it sees on a host, and what only the controller can tell."""

import asyncio
import importlib.util
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure

from .conftest import ROOT


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.replace("/", "_").removesuffix(".py"), ROOT / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


module = load("roles/preflight/library/muster_probe.py")
action = load("roles/preflight/action_plugins/muster_probe.py")


class Door:
    """A listening socket of ours, which says something to whoever connects, or nothing."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]

    def __enter__(self) -> "Door":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def plugin(result: Callable[[], dict[str, Any]] = dict, **options: Any) -> Any:
    """The action plugin, with a made-up connection and a made-up module."""
    made = action.ActionModule.__new__(action.ActionModule)
    given = {"host": "127.0.0.1", "port": 22, "ssh_args": "", "ssh_common_args": "", "ssh_extra_args": "", **options}
    made._connection = SimpleNamespace(transport=options.get("transport", "ssh"), get_option=given.get)
    made._task = SimpleNamespace(args={})
    made._execute_module = lambda **_: result()
    return made


@pytest.fixture(autouse=True)
def no_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(action.ActionBase, "run", lambda *_: {})


def test_it_sees_this_machine() -> None:
    assert module.memory_mb() > 100
    assert module.disk()["disk_gb"] >= module.disk()["disk_free_gb"] > 0
    assert set(module.system()) == {"os", "os_id", "os_version"} and module.system()["os_id"]


def test_it_sees_who_listens() -> None:
    try:
        alone = Path("/proc/1/ns/pid").readlink() != Path("/proc/self/ns/pid").readlink()
    except PermissionError:
        alone = True
    if alone:
        pytest.skip("not root, or in a container of somebody else's")
    with Door() as door:
        found = {one["port"]: one for one in module.listening()}
    assert found[door.port]["process"] and found[door.port]["uid"] == os.geteuid()


def test_it_says_how_far_the_record_of_what_was_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "muster/before.json"
    monkeypatch.setattr(module, "RECORD", str(file))
    assert module.record() == "none"
    file.parent.mkdir()
    assert module.record() == "late"
    for state, word in ("before", "begun"), ("after", "done"):
        file.write_text(json.dumps({"packages": []} if state == "before" else {"installed": []}))
        assert module.record() == word


def test_a_refused_connection_is_not_blocked_but_silence_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with Door() as door:
        closed = {"host": "a", "address": "127.0.0.1", "port": door.port}
    assert asyncio.run(module.blocked([closed], 1)) == []

    async def nothing_comes_back(*_: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(asyncio, "open_connection", nothing_comes_back)
    assert asyncio.run(module.blocked([closed], 0.1)) == [
        {"host": "a", "port": closed["port"], "why": "no answer within 0.1 s"}
    ]


def test_somebody_who_accepts_but_says_nothing_is_asleep() -> None:
    with Door() as door:
        started = time.monotonic()
        assert plugin(port=door.port)._knock(0.3) == "no answer within 0.3 s"
        assert time.monotonic() - started < 10


def test_nobody_behind_the_door() -> None:
    with Door() as door:
        closed = door.port
    assert plugin(port=closed)._knock(1) == "Connection refused"


@pytest.mark.parametrize(
    "options",
    [
        {"transport": "local"},
        {"ssh_common_args": "-o ProxyJump=gate"},
        {"ssh_extra_args": "-J gate"},
        {"host": "no-such-host.invalid"},
    ],
)
def test_where_a_knock_tells_nothing_there_is_none(options: dict[str, Any]) -> None:
    assert plugin(dict, **{"port": 1, **options})._knock(0.5) == ""


@pytest.mark.parametrize(("ahead", "skew"), [(0.0, 0.0), (30.0, 30.0), (-30.0, -30.0)])
def test_the_way_to_the_host_is_no_skew(ahead: float, skew: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])

    def slow() -> dict[str, Any]:
        clock = now[0] + 0.25 + ahead
        now[0] += 0.5
        return {"clock": clock, "cpus": 4}

    result = plugin(slow).run(task_vars={})
    assert result["cpus"] == 4 and "clock" not in result
    # What the way took may hide as much of it, and adds nothing.
    assert result["clock_skew"] == skew - (0.25 if skew > 0 else -0.25 if skew else 0)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Failed to connect: Permission denied (publickey)", "refused"),
        ("Failed to connect: Connection timed out", "silent"),
    ],
)
def test_who_shows_us_the_door_is_awake(message: str, expected: str) -> None:
    def fail() -> dict[str, Any]:
        raise AnsibleConnectionFailure(message)

    result = plugin(fail).run(task_vars={})
    assert list(result) == [expected] and result[expected].endswith(message)


def test_a_module_that_cannot_run_says_why() -> None:
    failed = {"failed": True, "module_stderr": "noise\n/bin/sh: python3: not found\n", "msg": "deserialization failed"}
    assert plugin(lambda: failed).run(task_vars={}) == {"broken": "/bin/sh: python3: not found"}
