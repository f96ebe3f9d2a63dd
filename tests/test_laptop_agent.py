"""A laptop's agent: what it reads, what it decides, what it notices, and what its owner is told."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from muster.errors import MusterError
from muster.laptop_hours import parse_hours

SCRIPT = Path(__file__).resolve().parents[1] / "roles/laptop/files/muster_laptop.py"
spec = importlib.util.spec_from_file_location("muster_laptop", SCRIPT)
assert spec and spec.loader
agent: Any = importlib.util.module_from_spec(spec)
sys.modules["muster_laptop"] = agent
spec.loader.exec_module(agent)

# A Wednesday.
NOON = datetime(2026, 11, 18, 12, 0).timestamp()
Put = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """The laptop's hardware as files: put("path", "text"); its root without arguments."""

    def write(path: str = "", text: str = "") -> Path:
        if path:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text + "\n")
        return tmp_path

    return write


def supply(put: Put, name: str, kind: str, **values: object) -> None:
    put(f"sys/class/power_supply/{name}/type", kind)
    for key, value in values.items():
        put(f"sys/class/power_supply/{name}/{key}", str(value))


# What is read.


def test_a_machine_without_any_of_it_is_no_laptop_to_speak_of(put: Put) -> None:
    assert agent.read_power(put()) == (None, None)
    assert agent.read_temperature(put()) is None
    assert agent.read_lid(put()) is None


@pytest.mark.parametrize(("online", "plugged"), [(1, True), (0, False)])
def test_battery_and_plug(put: Put, online: int, plugged: bool) -> None:
    supply(put, "AC", "Mains", online=online)
    supply(put, "BAT0", "Battery", capacity=81, status="Unknown")
    assert agent.read_power(put()) == (81, plugged)


def test_one_of_several_plugs_is_enough_and_batteries_count_together(put: Put) -> None:
    supply(put, "AC", "Mains", online=0)
    supply(put, "ucsi-1", "USB", online=1)
    supply(put, "BAT0", "Battery", capacity=40)
    supply(put, "BAT1", "Battery", capacity=61)
    assert agent.read_power(put()) == (50, True)


def test_the_battery_of_a_mouse_is_not_the_laptops(put: Put) -> None:
    supply(put, "hidpp_battery_0", "Battery", capacity=5, scope="Device", status="Discharging")
    assert agent.read_power(put()) == (None, None)


@pytest.mark.parametrize(("status", "plugged"), [("Discharging", False), ("Full", True), ("Charging", True)])
def test_without_a_plug_to_see_the_battery_tells(put: Put, status: str, plugged: bool) -> None:
    supply(put, "BAT0", "Battery", capacity=70, status=status)
    assert agent.read_power(put()) == (70, plugged)


def test_what_says_nonsense_says_nothing(put: Put) -> None:
    supply(put, "BAT0", "Battery", capacity="", status="Full")
    supply(put, "AC", "Mains", online="")
    assert agent.read_power(put()) == (None, None)


def test_the_processors_temperature_goes_before_others(put: Put) -> None:
    put("sys/class/thermal/thermal_zone0/type", "acpitz")
    put("sys/class/thermal/thermal_zone0/temp", "99000")
    assert agent.read_temperature(put()) == 99
    put("sys/class/thermal/thermal_zone1/type", "x86_pkg_temp")
    put("sys/class/thermal/thermal_zone1/temp", "61500")
    put("sys/class/thermal/cooling_device0/temp", "80000")
    assert agent.read_temperature(put()) == 61.5
    put("sys/class/thermal/thermal_zone1/temp", "-274000")
    assert agent.read_temperature(put()) is None


@pytest.mark.parametrize("state", ["open", "closed"])
def test_the_lid(put: Put, state: str) -> None:
    put("proc/acpi/button/lid/LID0/state", f"state:      {state}")
    assert agent.read_lid(put()) == state


# What is decided.

POLICY = agent.Policy()
WELL = agent.Seen(battery=80, plugged=True, temperature=50, lid="open", clock_off=0.2)


@pytest.mark.parametrize(
    ("policy", "seen", "within", "why"),
    [
        ({}, {}, 0, ""),
        ({}, {"plugged": None, "battery": None, "temperature": None, "lid": None, "clock_off": None}, 0, ""),
        ({}, {"sleeping": True, "paused": agent.NEVER}, agent.HASTE, "going to sleep"),
        ({}, {"lid": "closed"}, agent.HASTE, "the lid is closed"),
        ({"lid": "ignore"}, {"lid": "closed"}, 0, ""),
        ({}, {"paused": agent.NEVER}, 30, "paused by its owner"),
        ({}, {"paused": NOON + 5400}, 30, "paused by its owner until 13:30"),
        ({}, {"paused": NOON - 1}, 0, ""),
        ({}, {"hot": True, "temperature": 95.4}, 30, "too hot: 95 C, the limit is 90 C"),
        ({}, {"plugged": False}, 30, "on battery"),
        ({"on_battery": "work"}, {"plugged": False}, 0, ""),
        ({"on_battery": "work"}, {"plugged": False, "low": True, "battery": 29}, 30, "less than 30 %"),
        ({}, {"low": True, "battery": 5}, 0, ""),
        ({"hours": ((tuple(range(7)), 1200, 360),)}, {}, 30, "outside its hours"),
        ({}, {"clock_off": 7.0}, 30, "its clock is 7 s ahead"),
        ({}, {"clock_off": -3600.0}, 30, "its clock is 3600 s behind"),
        ({"clock_tolerance": 10.0}, {"clock_off": 7.0}, 0, ""),
        ({}, {"unsure": "woke up; waits for the broker"}, agent.BRIEF, "woke up; waits for the broker"),
        ({"grace": 5.0}, {"plugged": False}, 5, "on battery"),
    ],
)
def test_decisions(policy: dict[str, Any], seen: dict[str, Any], within: float, why: str) -> None:
    found = agent.decide(replace(POLICY, **policy), replace(WELL, **seen), NOON)
    assert (found.work, found.within) == (not why, within)
    assert why in found.why


def test_what_was_too_hot_must_cool_down_and_what_was_low_must_gain() -> None:
    assert [agent.too_hot(POLICY, degrees, False) for degrees in (None, 90, 91)] == [False, False, True]
    assert [agent.too_hot(POLICY, degrees, True) for degrees in (85, 86)] == [False, True]
    assert [agent.too_low(POLICY, percent, False) for percent in (None, 30, 29)] == [False, False, True]
    assert [agent.too_low(POLICY, percent, True) for percent in (34, 35)] == [True, False]


# Hours: 2026-11-16 is a Monday.


@pytest.mark.parametrize(
    ("hours", "day", "clock", "inside"),
    [
        (["mon-fri 09:00-17:30"], 18, "09:00", True),
        (["mon-fri 09:00-17:30"], 18, "17:29", True),
        (["mon-fri 09:00-17:30"], 18, "17:30", False),
        (["mon-fri 09:00-17:30"], 21, "12:00", False),
        (["sat,sun"], 21, "00:00", True),
        (["sat,sun"], 22, "23:59", True),
        (["sat,sun"], 23, "00:00", False),
        (["22:00-06:00"], 18, "23:00", True),
        (["22:00-06:00"], 18, "05:59", True),
        (["22:00-06:00"], 18, "06:00", False),
        # Over midnight it belongs to the day on which it begins.
        (["fri 22:00-06:00"], 20, "22:00", True),
        (["fri 22:00-06:00"], 21, "05:00", True),
        (["fri 22:00-06:00"], 20, "05:00", False),
        (["sun 20:00-04:00"], 23, "03:00", True),
        (["sat-mon 10:00-11:00"], 22, "10:30", True),
        (["sat-mon 10:00-11:00"], 17, "10:30", False),
        (["mon 08:00-24:00", "12:00-13:00"], 16, "23:59", True),
        (["mon 08:00-24:00", "12:00-13:00"], 18, "12:30", True),
        (["mon 08:00-08:00"], 17, "07:59", True),
    ],
)
def test_hours(hours: list[str], day: int, clock: str, inside: bool) -> None:
    policy = agent.Policy.of({"hours": parse_hours(hours)})
    hour, minute = map(int, clock.split(":"))
    moment = datetime(2026, 11, day, hour, minute).timestamp()
    assert agent.within_hours(policy.hours, moment) is inside


@pytest.mark.parametrize("wrong", ["", "tomorrow", "mon-fry 9:00-10:00", "25:00-26:00", "9-17", "mon tue 9:00-10:00"])
def test_hours_that_say_no_time(wrong: str) -> None:
    with pytest.raises(MusterError, match="says no time"):
        parse_hours([wrong])


def test_hours_must_be_a_list() -> None:
    assert parse_hours(None) == []
    with pytest.raises(MusterError, match="no list"):
        parse_hours("mon-fri 9:00-10:00")


# What it notices, with a broker that only notes what it is told, and clocks that tests set.


class Clocks:
    """Time as the agent sees it: the day's, the boot's, and how much of that the host slept."""

    def __init__(self) -> None:
        self.day, self.boot, self.slept = NOON, 1000.0, 0.0

    def passes(self, seconds: float, *, asleep: bool = False) -> None:
        self.day += seconds
        self.boot += seconds
        self.slept += seconds * asleep


def settings_of(folder: Path, root: Path, policy: dict[str, Any]) -> dict[str, Any]:
    """As the role writes them, with a broker that nobody is."""
    return {
        "name": "laptop1",
        "directory": str(folder),
        "root": str(root),
        "socket": str(folder / "socket"),
        "redis": {"host": "127.0.0.1", "port": 9},
        "policy": policy,
    }


class Lap:
    """An agent, with the broker's answers in the test's hands."""

    def __init__(self, folder: Path, root: Path, clocks: Clocks, **policy: Any) -> None:
        (folder / "said").mkdir(parents=True, exist_ok=True)
        self.folder, self.clocks, self.agent = folder, clocks, agent.Agent(settings_of(folder, root, policy))
        self.answer()

    def look(self, seconds: float = 1.0) -> Any:
        self.clocks.passes(seconds)
        self.agent.look()
        return self.agent.decision

    def answer(self, clock_off: float = 0.0) -> None:
        """The broker answers to what is asked now."""
        broker = self.agent.broker
        broker.begun_at = broker.good_at = agent.boottime()
        broker.clock_off, broker.error = clock_off, ""

    @property
    def want(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "want").read_text()))


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    found = Clocks()
    monkeypatch.setattr(agent, "boottime", lambda: found.boot)
    monkeypatch.setattr(agent, "asleep_for", lambda: found.slept)
    monkeypatch.setattr(agent.time, "time", lambda: found.day)
    return found


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found = ["10.0.0.85"]
    monkeypatch.setattr(agent, "local_address", lambda host, port: found[0])
    return found


@pytest.fixture
def lap(tmp_path: Path, put: Put, clocks: Clocks, address: list[str]) -> Lap:
    found = Lap(tmp_path / "laptop", put(), clocks)
    assert found.look().work
    return found


def test_it_writes_what_it_decides_and_reports_it(lap: Lap, put: Put) -> None:
    assert lap.want == {"work": True, "within": 0, "why": "", "at": NOON + 1}
    supply(put, "AC", "Mains", online=0)
    lap.look()
    assert (lap.want["work"], lap.want["within"], lap.want["why"]) == (False, 30, "on battery")
    assert lap.agent.report() == {
        "state": "draining",
        "why": "on battery",
        "battery": None,
        "plugged": False,
        "lid": None,
        "address": "10.0.0.85",
    }
    supply(put, "AC", "Mains", online=1)
    assert lap.look().work
    (lap.folder / "want").unlink()
    lap.look()
    assert lap.want["work"], "whoever removed it"


@pytest.mark.parametrize("asleep", [True, False])
def test_after_a_sleep_it_works_on_only_for_as_long_as_the_broker_may_need_to_answer(lap: Lap, asleep: bool) -> None:
    lap.look(3600 if not asleep else 1)
    lap.clocks.slept += 3600 if asleep else 0
    assert lap.look().work
    assert not lap.look(3).work
    assert "woke up; waits for the broker" in lap.want["why"]
    lap.answer()
    assert lap.look().work


def test_an_announced_sleep_ends_with_the_brokers_answer(lap: Lap) -> None:
    assert lap.agent.obey(["sleep"], root=True) == "going to sleep"
    assert lap.want["within"] == agent.HASTE
    lap.agent.asleep = True
    assert lap.agent.report()["state"] == "asleep"
    assert "woke up" in lap.look(7200).why
    lap.answer()
    assert lap.look().work
    assert lap.agent.report()["state"] == "ready"
    assert lap.agent.obey(["wake"], root=True) == "", "the hook comes late"


def test_a_sleep_that_never_came_is_over_after_a_while(lap: Lap) -> None:
    lap.agent.obey(["sleep"], root=True)
    for _ in range(119):
        assert not lap.look().work
    lap.look()
    lap.look()
    lap.answer()
    assert lap.look().work


def test_another_address_makes_it_ask_first(lap: Lap, address: list[str]) -> None:
    address[0] = "192.168.7.7"
    decision = lap.look()
    assert "its address is 192.168.7.7 now" in decision.why
    lap.answer()
    assert lap.look().work
    assert lap.agent.report()["address"] == "192.168.7.7"


def test_without_a_network_it_works_on_and_does_not_take_that_for_another_one(lap: Lap, address: list[str]) -> None:
    address[0] = ""
    assert lap.look().work
    address[0] = "10.0.0.85"
    assert lap.look().work


@pytest.mark.parametrize("jump", [3600, -3600])
def test_a_clock_that_jumps_is_asked_about_at_once_and_it_waits_until_it_is_right(lap: Lap, jump: int) -> None:
    lap.agent.broker.hurry = False
    lap.clocks.day += jump
    lap.look()
    assert lap.agent.broker.hurry
    lap.answer(jump)
    assert "its clock is 3600 s" in lap.look().why
    lap.agent.broker.hurry = False
    lap.look()
    assert lap.agent.broker.hurry, "it asks again and again"
    lap.answer(0.1)
    assert lap.look().work


def test_the_owners_wish_outlasts_a_boot(lap: Lap, put: Put) -> None:
    said = lap.agent.obey(["pause", "90"], root=False)
    assert said.startswith("laptop1 takes no more work until 13:30; what runs may end within 30 s")
    again = Lap(lap.folder, put(), lap.clocks)
    assert not again.look().work
    assert again.look(5400).work
    again.agent.obey(["pause"], root=False)
    last = Lap(lap.folder, put(), lap.clocks)
    assert last.look(1e9).why == "paused by its owner"
    assert last.agent.obey(["resume"], root=False) == "laptop1 works again"
    assert Lap(lap.folder, put(), lap.clocks).look().work


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["pause", "soon"], "error: say pause, or pause MINUTES"),
        (["pause", "-5"], "error: say pause, or pause MINUTES"),
        (["pause", "1e300"], "error: say pause, or pause MINUTES"),
        (["pause", "nan"], "error: say pause, or pause MINUTES"),
        (["dance"], "error: say pause [MINUTES], resume or status"),
        ([], "error: say pause [MINUTES], resume or status"),
        (["sleep"], "error: only root may say sleep"),
        (["wake"], "error: only root may say wake"),
    ],
)
def test_what_it_does_not_do(lap: Lap, words: list[str], answer: str) -> None:
    assert lap.agent.obey(words, root=False).startswith(answer)
    assert lap.look().work


def test_the_owner_reads_a_few_lines(lap: Lap, put: Put) -> None:
    supply(put, "AC", "Mains", online=1)
    supply(put, "BAT0", "Battery", capacity=81)
    celery = {"work": True, "running": [{"id": "1", "task": "celery_app.tasks.data.watch"}], "at": 0}
    ray = {"work": False, "running": [], "why": "the laptop is not at 10.0.0.85 now", "at": 0}
    for name, said in {"celery_default-data": celery, "ray_worker-1": ray}.items():
        path = lap.folder / "said" / f"{name}.json"
        path.write_text(json.dumps(said))
        os.utime(path, (NOON, NOON))
    lap.look()
    assert lap.agent.obey(["status"], root=False).splitlines() == [
        "laptop1 works",
        "runs     default-data: celery_app.tasks.data.watch",
        "rests    worker-1: the laptop is not at 10.0.0.85 now",
        "laptop   plugged in, battery 81 %",
        "network  10.0.0.85; the broker answers; clock 0.0 s off",
    ]
    lap.look(60)
    assert "runs     nothing" in lap.agent.obey(["status"], root=False), "they are gone"


# The command.


def run(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MUSTER_LAPTOP_SETTINGS": str(folder / "laptop.json")}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words], env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def running(tmp_path: Path) -> Any:
    """An agent of its own, without a broker."""
    (tmp_path / "said").mkdir()
    (tmp_path / "laptop.json").write_text(json.dumps(settings_of(tmp_path, tmp_path, {})))
    environment = {**os.environ, "MUSTER_LAPTOP_SETTINGS": str(tmp_path / "laptop.json")}
    process = subprocess.Popen([sys.executable, str(SCRIPT), "run"], env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while not (tmp_path / "want").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield tmp_path
    process.terminate()
    process.wait(10)


def test_the_command_as_its_owner_types_it(running: Path) -> None:
    assert run("pause", "5", folder=running).stdout.startswith("laptop1 takes no more work until")
    assert not json.loads((running / "want").read_text())["work"]
    assert "paused by its owner" in run("status", folder=running).stdout
    assert run("resume", folder=running).stdout == "laptop1 works again\n"
    wrong = run("pause", "soon", folder=running)
    assert (wrong.returncode, wrong.stderr) == (2, "muster-laptop: say pause, or pause MINUTES as in pause 90\n")
    assert "pause [MINUTES]" in run("help", folder=running).stdout


def test_a_sleep_waits_for_the_services_and_no_longer_than_it_must(running: Path) -> None:
    said = running / "said" / "celery_default-data.json"
    said.write_text(json.dumps({"work": True, "running": [], "at": time.time()}))
    start = time.monotonic()
    waiting = subprocess.Popen(
        [sys.executable, str(SCRIPT), "sleep"],
        env={**os.environ, "MUSTER_LAPTOP_SETTINGS": str(running / "laptop.json")},
        stdout=subprocess.PIPE,
        text=True,
    )
    while json.loads((running / "want").read_text())["work"]:
        assert time.monotonic() - start < 20
        time.sleep(0.02)
    assert waiting.poll() is None, "it waits for the worker"
    said.write_text(json.dumps({"work": False, "running": [], "at": time.time()}))
    assert "let go after" in waiting.communicate(timeout=20)[0]
    assert json.loads((running / "want").read_text())["why"] == "going to sleep"
    said.write_text(json.dumps({"work": True, "running": [], "at": time.time()}))
    start = time.monotonic()
    assert "celery_default-data did not let go" in run("sleep", folder=running).stdout
    assert 4 < time.monotonic() - start < 30


def test_without_the_agent_one_line_says_so_and_a_sleep_is_announced_all_the_same(tmp_path: Path) -> None:
    nothing = run("status", folder=tmp_path)
    assert (nothing.returncode, nothing.stderr.count("\n")) == (1, 1)
    assert "is this laptop set up?" in nothing.stderr
    settings = {"directory": str(tmp_path), "socket": str(tmp_path / "socket")}
    (tmp_path / "laptop.json").write_text(json.dumps(settings))
    silent = run("status", folder=tmp_path)
    assert (silent.returncode, silent.stderr.count("\n")) == (1, 1)
    run("sleep", folder=tmp_path)
    assert not json.loads((tmp_path / "want").read_text())["work"]


def test_it_is_python_of_old_and_nothing_else() -> None:
    import ast

    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 9))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules <= set(sys.stdlib_module_names)


@pytest.mark.parametrize(("logind", "called"), [("b true", ["sleep"]), ("b false", []), ("", [])])
def test_networkmanager_calls_it_only_when_the_laptop_falls_asleep(
    tmp_path: Path, logind: str, called: list[str]
) -> None:
    for name, text in {"busctl": f"echo {logind}", "muster-laptop": f"echo $@ >>{tmp_path}/called"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["sh", str(SCRIPT.parent / "nm-pre-down"), "wlan0", "pre-down"], env=environment, check=True)
    found = tmp_path / "called"
    assert (found.read_text().split() if found.exists() else []) == called
