"""What a site without internet installs from: complete for every role, and refused where it is not whole."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from muster import bundle
from muster.treehash import tree_hash

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/node.tar").write_bytes(b"layers")
    (tmp_path / "bundle.json").write_text(json.dumps({"recipes": tree_hash(str(ROOT / "images"))}))
    sums = [f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  ./{name}" for name in ("images/node.tar",)]
    (tmp_path / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    return tmp_path


def told(folder: Path) -> str:
    return "; ".join(f"{problem}. Fix: {fix}." for problem, fix in bundle.mistakes(folder, ROOT))


def test_a_whole_one_is_good(whole: Path) -> None:
    assert told(whole) == ""


def test_what_is_no_bundle_is_told(tmp_path: Path) -> None:
    assert f"offline is true and {tmp_path} is no bundle. Fix: run make bundle" in told(tmp_path)


def test_one_of_another_commit_is_told(whole: Path) -> None:
    (whole / "bundle.json").write_text(json.dumps({"recipes": "000000000000"}))
    assert "was made of another commit" in told(whole)


@pytest.mark.parametrize(
    ("content", "message"), [(b"layerz", "images/node.tar is not what"), (None, "lacks images/node.tar")]
)
def test_a_file_that_suffered_on_the_way_is_named(whole: Path, content: bytes | None, message: str) -> None:
    file = whole / "images/node.tar"
    file.write_bytes(content) if content else file.unlink()
    assert message in told(whole) and "copy it again" in told(whole)


def installed(tasks: Any) -> Iterator[dict[str, Any]]:
    """Tasks that install packages, in blocks, too."""
    for task in tasks or []:
        yield from installed(task.get("block"))
        if "ansible.builtin.apt" in task and "name" in task["ansible.builtin.apt"]:
            yield task


ROLES = [
    task for path in sorted(ROOT.glob("roles/*/tasks/*.yml")) for task in installed(yaml.safe_load(path.read_text()))
]
(PLAY,) = yaml.safe_load((ROOT / "playbooks/bundle.yml").read_text())


@pytest.mark.parametrize("task", ROLES, ids=lambda task: task["register"])
def test_what_roles_install_is_in_it_and_comes_from_it(task: dict[str, Any]) -> None:
    assert task["environment"] == "{{ muster_apt_environment | default({}) }}"
    name = task["ansible.builtin.apt"]["name"]
    if name == "{{ __docker_packages }}":
        name = str(yaml.safe_load((ROOT / "roles/docker/vars/main.yml").read_text())["__docker_packages"])
    # Docker's own repository and NVIDIA's need the internet.
    elsewhere = {"python3-debian", "nvidia-container-toolkit"}
    named = re.findall(r"'([a-z0-9.-]+)'", name) if "{{" in name else [name] if isinstance(name, str) else name
    assert named and set(named) - elsewhere <= {*PLAY["vars"]["bundle_packages"]}


def test_no_other_place_asks_apt_for_packages() -> None:
    for path in [*ROOT.glob("playbooks/**/*.yml"), *ROOT.glob("*.yml")]:
        text = path.read_text()
        assert "ansible.builtin.apt:" not in text or path.name == "debs.yml", path
