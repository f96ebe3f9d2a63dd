"""What a host keeps when it leaves: what somebody needs by now, what is mounted, and what is not ours."""

import importlib.util
import json
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
    undo = module.Undo(SimpleNamespace(check_mode=False, params={}), {"installed": installed})
    calls: list[tuple[str, ...]] = []

    def call(*command: str, check: bool = False) -> str:
        calls.append(command)
        return ""

    monkeypatch.setattr(undo, "call", call)
    runs = iter([{"left.service"}, {"left.service", "ours.service"}])
    monkeypatch.setattr(module, "orphans", lambda: next(runs))
    undo.packages()
    assert calls[1:] == [("systemctl", "stop", "ours.service")] * bool(calls)
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


@pytest.mark.skipif(not shutil.which("apt-get"), reason="only where there is apt")
def test_a_library_that_apt_named_without_its_architecture_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    native = module.native()
    monkeypatch.setattr(module, "packages", lambda: [f"libours:{native}", "libours:other", "all"])
    monkeypatch.setattr(module.Undo, "takes_along", lambda *_: set())
    assert purged(["libours", "all"], monkeypatch) == (["all", f"libours:{native}"], [])
    assert purged([f"libours:{native}"], monkeypatch) == ([f"libours:{native}"], [])


def undo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: dict[str, Any], **params: Any) -> Any:
    """Everything back, with a host of which only the files are there."""
    found = SimpleNamespace(
        check_mode=False,
        params={"path": str(tmp_path / "etc/before.json"), "paths": [], "keep": [], **params},
        get_bin_path=lambda name: None,
    )
    monkeypatch.setattr(module, "rules", lambda *_: [])
    monkeypatch.setattr(module, "packages", list)
    monkeypatch.setattr(module.Undo, "call", lambda *_, **__: "")
    made = module.Undo(found, record)
    made.run()
    return made


def tree(folder: Path, *files: str) -> None:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def left(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_data_stays_and_what_is_passing_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(
        tmp_path,
        "opt/x",
        "data/redis/aof",
        "data/laptop/want",
        "units/muster-a.timer",
        "units/others.timer",
        "empty/in/x",
    )
    before = [
        {"path": str(tmp_path / "data/redis"), "kind": "absent"},
        {"path": str(tmp_path / "new"), "kind": "absent"},
    ]
    tree(tmp_path, "new/y")
    ours = [str(tmp_path / name) for name in ("opt", "data", "data/laptop", "units/muster-*", "empty", "empty/in")]
    keep = [str(tmp_path / "data"), str(tmp_path / "empty")]
    done = undo(tmp_path, monkeypatch, {"paths": before}, paths=ours, keep=keep)
    assert left(tmp_path) == {"data/redis/aof", "units/others.timer"}
    assert not (tmp_path / "empty").exists(), "nothing was left in it"
    assert str(tmp_path / "data") not in done.gone


def test_what_is_ours_goes_although_a_record_has_seen_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "data/redis/aof")
    was = module.one(str(tmp_path / "data"))
    undo(tmp_path, monkeypatch, {"paths": [was]}, paths=[str(tmp_path / "data")])
    assert not (tmp_path / "data").exists()


def test_what_is_mounted_below_is_never_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "data/redis/aof", "data/srv/share/model", "disk/file")
    mounted = {tmp_path / "data/srv/share", tmp_path / "disk"}
    monkeypatch.setattr(module, "mounts", lambda: mounted)
    done = undo(tmp_path, monkeypatch, {}, paths=[str(tmp_path / name) for name in ("data", "disk")])
    assert left(tmp_path) == {"data/srv/share/model"}
    assert (tmp_path / "disk").is_dir(), "a mount of its own is emptied and stays"
    assert f"{tmp_path}/data, in which something else is mounted or kept" in done.kept


def test_mounts_are_those_of_the_kernel() -> None:
    assert {Path("/"), Path("/proc")} <= module.mounts()


def test_what_apt_says_that_it_installs() -> None:
    said = (
        "Reading...\nThe following NEW packages will be installed:\n  fuse3 libfuse3-4\n  restic\n0 upgraded, 3 newly\n"
    )
    assert module.new_packages(said) == ["fuse3", "libfuse3-4", "restic"]
    assert module.new_packages("restic is already the newest version.\n") == []


@pytest.mark.parametrize(
    ("containers", "volumes", "active", "others"),
    [
        (["web\t/home/anna/web"], [], False, "container web"),
        (["lonely\t"], ["db\tweb", "a" * 64 + "\t"], False, "container lonely, volume db"),
        (["gateway-caddy-1\t/opt/muster/gateway"], ["gateway_certificates\tgateway"], False, ""),
        (["muster-registry\t"], ["muster-registry\t"], False, ""),
        (["web\t/home/anna/web"], [], True, ""),
    ],
)
def test_nobody_elses_containers_go_with_an_engine_that_came_with_us(
    containers: list[str], volumes: list[str], active: bool, others: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def fail(msg: str) -> None:
        said.append(msg)

    host = SimpleNamespace(params={"paths": ["/opt/muster"]}, get_bin_path=str, fail_json=fail)
    record = {"units": [{"name": "docker.service", "active": active, "enabled": active}]}
    made = module.Undo(host, record)
    monkeypatch.setattr(made, "ask", lambda *command: containers if command[1] == "ps" else volumes)
    made.judge()
    assert bool(said) == bool(others) and (not others or f"not Muster's: {others}. Fix" in said[0])


def run(monkeypatch: pytest.MonkeyPatch, **params: Any) -> None:
    """The module itself."""
    given = {"paths": [], "units": [], "sysctl": [], "apt": [], "keep": [], **params}
    fake = SimpleNamespace(params=given, check_mode=False, exit_json=lambda **_: None)
    monkeypatch.setattr(module, "AnsibleModule", lambda **_: fake)
    monkeypatch.setattr(module, "packages", lambda: ["base"])
    monkeypatch.setattr(module, "rules", lambda *_: [])
    module.main()


def test_a_host_that_was_set_up_before_there_were_records_gets_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "muster/before.json"
    file.parent.mkdir()
    run(monkeypatch, path=str(file), state="before")
    assert not file.exists()
    file.parent.rmdir()
    run(monkeypatch, path=str(file), state="before", sysctl=["net.ipv4.ip_forward", "no.such"])
    assert set(json.loads(file.read_text())["sysctl"]) == {"net.ipv4.ip_forward"}
    run(monkeypatch, path=str(file), state="after")
    run(monkeypatch, path=str(file), state="after", apt=["The following NEW packages will be installed:\n  restic\n"])
    assert json.loads(file.read_text())["installed"] == ["restic"]
