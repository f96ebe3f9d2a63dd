"""The muster command: quick, and short about mistakes."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from muster import __version__, cli, screen
from muster.errors import MusterError, UnansweredError

from .conftest import ROOT


def muster(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "muster.cli", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_version_and_help() -> None:
    assert muster("--version").stdout == f"muster {__version__}\n"
    assert "plan" in muster("--help").stdout


def test_help_is_there_at_once() -> None:
    # Time on the processor: a busy machine is not the command's fault.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    muster("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3


def test_nothing_heavy_is_imported_for_help() -> None:
    program = "import sys, muster.cli; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"ansible", "ray", "pydantic", "jinja2", "rich"} & set(loaded.stdout.split())


def test_the_plan_of_the_example() -> None:
    done = muster("plan", "-i", "inventory/example")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["HOST", "PORTS", "WHAT", "FROM"]
    assert ["server80", "25024:25279", "Ray", "node", "worker-4"] in [line[:5] for line in lines]
    assert ["server84", "8265", "ray_dashboard", "the", "host", "itself"] in lines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist. Fix: name an inventory with -i"),
        (
            "server: {hosts: {a: {ansible_host: a.lan}}}",
            "a: muster_address is 'a.lan', which is not an IP address. Fix:",
        ),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    path = tmp_path / "hosts.yml"
    if content:
        path.write_text(content)
    assert cli.main(["plan", "-i", str(path)]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_broken_inventory_ends_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hosts.yml").write_text("server: [")
    assert cli.main(["plan", "-i", str(tmp_path / "hosts.yml")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("Fix: correct the file that it names.")


def test_a_screen_is_what_the_playbook_says_last(tmp_path: Path) -> None:
    """With a real playbook, against this machine alone."""
    play = tmp_path / "playbooks"
    play.mkdir()
    text = "- hosts: localhost\n  gather_facts: false\n  tasks:\n    - debug: {msg: first}\n    - {TASK}\n"
    for name, task in (
        ("good", "debug: {msg: '{{ words | join }}'}"),
        ("facts", "debug: {msg: \"{{ {'a': [1, none, true]} }}\"}"),
        ("bad", "fail: {msg: no broker}"),
        ("mistake", "fail: {msg: \"The filter plugin 'x' failed: it is wrong. Fix: mend it.\"}"),
    ):
        (play / f"{name}.yml").write_text(text.replace("{TASK}", task))
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("all: {hosts: {localhost: {ansible_connection: local}}}")
    assert screen.screen(str(play / "good.yml"), [str(inventory)], {"words": ["a", "b"]}) == "ab"
    with pytest.raises(UnansweredError, match=r"localhost: no broker\. Fix"):
        screen.screen(str(play / "bad.yml"), [str(inventory)], {})
    with pytest.raises(MusterError, match=r"^it is wrong\. Fix: mend it\.$") as mistake:
        screen.screen(str(play / "mistake.yml"), [str(inventory)], {})
    assert (mistake.value.code, UnansweredError.code) == (2, 3)
    assert screen.screen(str(play / "facts.yml"), [str(inventory)], {}) == {"a": [1, None, True]}


@pytest.mark.parametrize("command", ["status", "nodes", "queues", "laptops", "alerts"])
def test_an_inventory_that_is_not_there_is_the_users_mistake(command: str, tmp_path: Path) -> None:
    done = muster(command, "--json", "-i", str(tmp_path / "nowhere"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"muster: {command}.yml did not run") and "nowhere" in done.stderr


def test_the_numbers_that_scripts_get_are_in_the_help() -> None:
    for words in (["--help"], ["alerts", "--help"]):
        said = " ".join(muster(*words).stdout.split())
        assert "1 when `muster alerts` shows an alert" in said and "3 when the cluster could not be asked" in said
    assert muster("plan", "--json").returncode == 2


def test_a_dead_letter_needs_a_name() -> None:
    done = muster("dead", "drop")
    assert done.returncode == 2
    assert done.stderr == "muster: dead drop needs the id of a task. Fix: look for it with: muster dead list.\n"
