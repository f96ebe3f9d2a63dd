"""What a backup takes of a service, and what it asks restic for; with restic itself: molecule/operate."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT

PATH = ROOT / "roles/backup/files/muster_backup.py"
spec = importlib.util.spec_from_file_location("muster_backup", PATH)
assert spec and spec.loader
script: Any = importlib.util.module_from_spec(spec)
sys.modules["muster_backup"] = script
spec.loader.exec_module(script)


@pytest.fixture
def backup(tmp_path: Path) -> Callable[..., Any]:
    def call(**settings: Any) -> Any:
        usual = {"host": "head", "repository": "/r", "environment": {}, "sftp": False, "services": [], "folders": []}
        return script.Backup(
            {**usual, "secrets": str(tmp_path / "backup/secrets.vault"), **settings}, tmp_path / "backup"
        )

    return call


def test_what_is_written_in_place_is_copied_and_what_grows_is_not(backup: Callable[..., Any], tmp_path: Path) -> None:
    source = tmp_path / "gcs"
    source.mkdir()
    (source / "000007.sst").write_text("never changes")
    (source / "MANIFEST-000004").write_text("of this moment")
    (source / "LOCK").write_text("")
    taken = backup()
    taken.take({"name": "ray_head", "path": str(source), "skip": ["LOCK"]})
    (source / "MANIFEST-000004").write_text("of a later one")
    (source / "000007.sst").unlink()
    found = {path.name: path.read_text() for path in (taken.staging / "ray_head").iterdir()}
    assert found == {"000007.sst": "never changes", "MANIFEST-000004": "of this moment"}


def test_a_service_that_was_never_there_is_no_mistake(backup: Callable[..., Any], tmp_path: Path) -> None:
    assert backup().take({"name": "mlflow", "path": str(tmp_path / "none")}) == 0
    assert not (tmp_path / "backup/now").exists()


@pytest.mark.parametrize(("before", "made"), [("", True), ("/elsewhere", True), ("/r", False)])
def test_a_repository_that_was_there_and_is_not_any_more_is_not_made_anew(
    backup: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, made: bool
) -> None:
    called = []

    def run(command: list[str], **_: Any) -> Any:
        word = command[4]
        called.append(word)
        return type("Done", (), {"returncode": 10 if word == "cat" else 0, "stdout": "", "stderr": ""})

    monkeypatch.setattr(script.subprocess, "run", run)
    (tmp_path / "backup").mkdir()
    if before:
        (tmp_path / "backup/last").write_text(json.dumps({"repository": before}))
    if made:
        backup().prepare()
    else:
        with pytest.raises(script.Failed, match="is its disk or share mounted"):
            backup().prepare()
    assert ("init" in called) == made


@pytest.mark.parametrize(
    "repository", ["sftp:safe@nas:muster", "sftp:safe@nas:/srv/muster", "sftp://safe@nas//srv/muster"]
)
def test_sftp_goes_to_the_known_server_with_our_key(
    backup: Callable[..., Any], repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        called.append(command)
        return type("Done", (), {"returncode": 0, "stdout": "", "stderr": ""})

    monkeypatch.setattr(script.subprocess, "run", run)
    backup(repository=repository, sftp=True).restic("snapshots")
    option = next(word for word in called[0] if word.startswith("sftp.command="))
    assert option.startswith("sftp.command=ssh -i /etc/muster/backup/ssh_key ")
    assert "UserKnownHostsFile=/etc/muster/backup/known_hosts" in option
    assert option.endswith(" safe@nas -s sftp")


@pytest.mark.parametrize(
    "text", ["2026-01-02T03:04:05.123456789Z", "2026-01-02T04:04:05.1+01:00", "2026-01-02T03:04:05Z"]
)
def test_times_of_restic_are_read_by_old_pythons_too(text: str) -> None:
    assert datetime.fromisoformat(script.stamp(text)) == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
