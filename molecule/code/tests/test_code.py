"""Releases of the job code: readable, switched at once, the last three kept, nothing done when nothing changed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
from ray_lab import ROOT, Lab

LAB = Lab("code")
CODE = "/opt/muster/code"


def current() -> str:
    return LAB.on("server1", "readlink", f"{CODE}/current").strip()


def releases() -> set[str]:
    return set(LAB.on("server1", "ls", CODE).split()) - {"current"}


def deploy(source: Path) -> str:
    run = LAB.play("molecule/code/converge.yml", "-e", f"code_source={source}")
    assert run.returncode == 0, run.stdout[-4000:]
    return run.stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the code that a test may change."""
    for package in ("ray_jobs", "celery_app"):
        (tmp_path / package).mkdir()
        for file in (ROOT / package).glob("*.py"):
            (tmp_path / package / file.name).write_text(file.read_text())
    return tmp_path


def test_anyone_can_import_the_current_release() -> None:
    said = LAB.on(
        "server1", "runuser", "-u", "nobody", "--", "env", f"PYTHONPATH={CODE}/current", "PYTHONDONTWRITEBYTECODE=1",
        "python3", "-c", "import ray_jobs.nodes, celery_app; print(ray_jobs.__file__)",
    )  # fmt: skip
    assert said.strip() == f"{CODE}/current/ray_jobs/__init__.py"


def test_a_change_becomes_a_release_and_three_stay(source: Path) -> None:
    first = current()
    seen = [first]
    for number in range(1, 5):
        (source / "ray_jobs" / "change.py").write_text(f"NUMBER = {number}\n")
        start = time.monotonic()
        deploy(source)
        print(f"a code change took {time.monotonic() - start:.1f} s")
        seen.append(current())
        text = LAB.on("server1", "cat", f"{CODE}/current/ray_jobs/change.py")
        assert text == f"NUMBER = {number}\n"
    assert len(set(seen)) == 5
    assert releases() == set(seen[-3:])

    again = deploy(source)
    assert "changed=0" in again

    deploy(ROOT)
    assert current() == first, "the hash is of the content: going back gives the same release"


def test_a_file_that_was_removed_is_not_in_the_release(source: Path) -> None:
    (source / "ray_jobs" / "gone.py").write_text("")
    deploy(source)
    (source / "ray_jobs" / "gone.py").unlink()
    deploy(source)
    assert "gone.py" not in LAB.on("server1", "ls", f"{CODE}/current/ray_jobs").split()
    deploy(ROOT)


def test_what_an_interrupted_run_left_is_cleared_away() -> None:
    LAB.on("server1", "mkdir", f"{CODE}/.new-half")
    deploy(ROOT)
    assert LAB.on("server1", "ls", "-A", CODE).split().count(".new-half") == 0
    assert "changed=0" in deploy(ROOT)
