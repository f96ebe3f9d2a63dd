"""The runner of `make test`: nothing is lost, nothing is run too early, a failure is shown."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "run_tests.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_tests", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_tests"] = module
    spec.loader.exec_module(module)
    return module


runner = load_script()


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(runner, "LOGS", tmp_path)
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    # Whatever TEST_LANES says to the run that this test is a part of.
    monkeypatch.setattr(runner, "LANES", 2)
    return tmp_path


def check(name: str, script: str, **more: Any) -> Any:
    return runner.Check(name, ["bash", "-c", script], more.pop("limit", 20), **more)


def test_order_and_lanes(logs: Path) -> None:
    def busy(name: str) -> str:
        return f"echo +{name} >>{logs}/order; sleep 0.2; echo -{name} >>{logs}/order"

    checks = [
        check("late", f"until [[ -e $MUSTER_QUIET ]]; do sleep 0.01; done; {busy('late')}", alone=True),
        check("b", busy("b"), after=("a",)),
        check("a", busy("a"), after=("absent",)),
        check("c", busy("c")),
    ]
    runner.Runner(checks).run()
    order = (logs / "order").read_text().split()
    assert order.index("-a") < order.index("+b")
    assert order[-2:] == ["+late", "-late"]
    assert all(item.passed == 1 and item.failed == 0 for item in checks)


def test_what_wants_to_be_alone_gets_ready_beside_others_and_waits_then(logs: Path) -> None:
    (logs / "quiet").touch()  # of an earlier run
    wait, made, over = "until [[ -e {} ]]; do sleep 0.01; done; ", logs / "made", logs / "over"
    checks = [
        check("hosts", f"touch {made}; {wait.format('$MUSTER_QUIET')} [[ -e {over} ]]", alone=True),
        check("other", f"{wait.format(made)} [[ ! -e {logs}/quiet ]] && sleep 0.3 && touch {over}"),
    ]
    runner.Runner(checks).run()
    assert [item.failed for item in checks] == [0, 0]


def test_in_one_lane_it_begins_when_the_others_are_through(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LANES", 1)
    checks = [
        check("alone", f"[[ -e {logs}/through ]] && [[ -e $MUSTER_QUIET ]]", alone=True),
        check("other", f"touch {logs}/through"),
    ]
    runner.Runner(checks).run()
    assert [item.failed for item in checks] == [0, 0]


def test_what_mostly_waits_takes_no_lane(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LANES", 1)
    # Each of the two ends only if the other runs at the same time.
    meet = "touch {0}/{1}; until [[ -e {0}/{2} ]]; do sleep 0.05; done"
    checks = [
        check("works", meet.format(logs, "a", "b")),
        check("later", f"[[ -e {logs}/a ]]"),
        check("waits", meet.format(logs, "b", "a"), beside=True),
    ]
    runner.Runner(checks).run()
    assert [item.failed for item in checks] == [0, 0, 0]


def test_a_failure_is_counted_and_its_log_is_shown(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checks = [check("good", "true"), check("bad", "echo before; echo 'fatal: [x]: no disk'; exit 3")]
    runner.Runner(checks).run()
    printed = capsys.readouterr().out
    assert (checks[0].failed, checks[1].failed) == (0, 1)
    assert "FAIL bad" in printed and "no disk" in printed


def test_what_hangs_is_stopped(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hangs = check("hangs", "sleep 60", limit=1)
    runner.Runner([hangs]).run()
    assert hangs.failed == 1
    assert "stopped after 1 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (0, "12 passed in 3.17s", (12, 0)),
        (1, "2 failed, 10 passed in 3.17s", (10, 2)),
        (1, "1 error in 0.1s", (0, 1)),
        (1, "10 passed in 1s", (10, 1)),
        (4, "usage: pytest", (0, 1)),
    ],
)
def test_unit_tests_count_one_by_one(code: int, text: str, expected: tuple[int, int]) -> None:
    assert runner.counts("unit", code, text) == expected


def test_a_long_log_is_cut_to_where_it_failed() -> None:
    noise = "\n".join(f"ok: {n}" for n in range(1000))
    lines = runner.relevant(f"{noise}\nTASK [x]\nfatal: [server1]: no route\n{noise}\nthe end")
    assert len(lines) < 100
    assert "fatal: [server1]: no route" in lines
    assert lines[-1] == "the end"


def test_what_a_test_said_comes_before_its_source() -> None:
    source = "\n".join(f"    line {n}" for n in range(60))
    text = f"=================================== FAILURES =====\n{source}\nE       AssertionError: 2 != 1\nthe end"
    assert runner.relevant(text)[0] == "E       AssertionError: 2 != 1"


def test_an_unknown_scenario_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="no scenario 'nonsense'"):
        runner.scenario_checks(["nonsense"])
