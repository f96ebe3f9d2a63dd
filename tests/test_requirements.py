"""A fresh clone needs no Galaxy: the pinned ansible package brings every collection that requirements.yml asks for."""

import json
import re
from importlib.metadata import distribution
from pathlib import Path
from typing import cast

import pytest
import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
WANTED = {
    entry["name"]: SpecifierSet(entry["version"])
    for entry in yaml.safe_load((ROOT / "requirements.yml").read_text())["collections"]
}


def brought_by_ansible(name: str) -> str:
    manifest = Path("ansible_collections", *name.split("."), "MANIFEST.json")
    text = Path(str(distribution("ansible").locate_file(manifest))).read_text()
    return cast(str, json.loads(text)["collection_info"]["version"])


@pytest.mark.parametrize("name", sorted(WANTED))
def test_the_pinned_ansible_package_brings_the_collection(name: str) -> None:
    assert brought_by_ansible(name) in WANTED[name]


def test_no_collection_is_used_that_is_not_listed() -> None:
    used: dict[str, str] = {}
    for folder in ("roles", "playbooks", "molecule"):
        for path in [*ROOT.glob(f"{folder}/**/*.yml"), *ROOT.glob("*.yml")]:
            for name in re.findall(r"^\s*(?:- )?([a-z]+\.[a-z]+)\.[a-z_0-9]+:", path.read_text(), re.MULTILINE):
                used.setdefault(name, str(path.relative_to(ROOT)))
    used.pop("ansible.builtin", None)
    unlisted = {name: path for name, path in used.items() if name not in WANTED}
    assert not unlisted, f"add to requirements.yml: {unlisted}"


@pytest.mark.parametrize("path", sorted(ROOT.glob("requirements/*.txt")) + sorted(ROOT.glob("images/*/*.txt")), ids=str)
def test_pinned_files_name_no_index_and_no_folder(path: Path) -> None:
    for line in path.read_text().splitlines():
        assert not re.search(r"://|^\s*-|^[^#]*\s@\s", line), f"{path.name}: {line}"
