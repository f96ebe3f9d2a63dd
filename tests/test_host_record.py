"""What a laptop keeps when it leaves: a package that came with us and that somebody needs by now. Only simulated."""

import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

PATH = Path(__file__).resolve().parents[1] / "plugins/modules/host_record.py"
SPEC = importlib.util.spec_from_file_location("host_record", PATH)
assert SPEC and SPEC.loader
module: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(module)


def purged(installed: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """Which packages would be purged, and what is said of those that stay."""
    undo = module.Undo(SimpleNamespace(check_mode=False), {"installed": installed})
    calls: list[tuple[str, ...]] = []

    def call(*command: str, check: bool = False) -> str:
        calls.append(command)
        return ""

    monkeypatch.setattr(undo, "call", call)
    undo.packages()
    return [name for one in calls for name in one[3:]], undo.kept


def found(kind: str, others: bool) -> str:
    """A package of this machine without which others would go, too, or not."""
    for name in subprocess.run(["apt-mark", kind], capture_output=True, text=True, check=True).stdout.split():
        done = subprocess.run(["apt-get", "--simulate", "purge", name], capture_output=True, text=True)
        gone = [line.split()[1] for line in done.stdout.splitlines() if line.startswith(("Purg", "Remv"))]
        if name in gone and (len(gone) > 1) == others:
            return name
    pytest.skip("this machine has no such package")


@pytest.mark.skipif(not shutil.which("apt-get"), reason="only where there is apt")
def test_a_package_that_others_need_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    name = found("showauto", others=True)
    kept = [f"packages that others need by now: {name}"]
    assert purged([name, "absent"], monkeypatch) == ([], kept)


@pytest.mark.skipif(not shutil.which("apt-get"), reason="only where there is apt")
def test_a_package_that_nobody_needs_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    name = found("showmanual", others=False)
    assert purged([name], monkeypatch) == ([name], [])
