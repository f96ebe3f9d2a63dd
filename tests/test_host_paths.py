"""What roles write on a host is what playbooks/vars/host_paths.yml has, so that uninstall.yml takes all of it away."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from muster.known import known

from .conftest import ROOT, role_variables

PATHS = yaml.safe_load((ROOT / "playbooks/vars/host_paths.yml").read_text())
WRITERS = {"file": "path", "copy": "dest", "template": "dest", "lineinfile": "path", "blockinfile": "path"}
# Not the host's, or taken away by what is named.
ELSEWHERE = {
    "{{ __pki_store }}/hosts": "on the controller",
    "{{ __node_image_context.path }}/extra/wheels": "a temporary folder",
    "{{ __node_image_context.path }}/{{ item.dest }}": "a temporary folder",
    "{{ __node_image_context.path }}": "a temporary folder",
    "{{ __node_image_place.path }}/image.tar": "a temporary folder",
    "{{ __node_image_place.path }}": "a temporary folder",
    "/srv/muster": "roles/storage/tasks/absent.yml, if it is our link",
    "{{ __storage_units }}/{{ __storage_unit }}.mount": "roles/storage/tasks/absent.yml",
    "{{ __storage_units }}/{{ __storage_unit }}.automount": "roles/storage/tasks/absent.yml",
    "{{ storage_mount | dirname }}": "of muster_data_dir, or the operator's",
    "{{ item.path }}": "its items have the paths",
    "{{ item }}": "takes away",
}


def plain(text: str, variables: dict[str, Any]) -> str:
    """The text with variables of the role and the repository in it, as far as they are words."""
    for _ in range(5):
        text = re.sub(r"{{ (\w+) }}", lambda found: str(variables.get(found[1], found[0])).strip(), text)
    return text


def tasks(document: Any) -> Iterator[dict[str, Any]]:
    for task in document or []:
        yield task
        for part in ("block", "rescue", "always"):
            yield from tasks(task.get(part))


def written(role: Path) -> Iterator[str]:
    """Paths as the tasks of a role have them."""
    for file in [*role.glob("tasks/*.yml"), *role.glob("handlers/*.yml")]:
        for task in tasks(yaml.safe_load(file.read_text())):
            if task.get("delegate_to") == "localhost":
                continue
            for name, key in WRITERS.items():
                if arguments := task.get(f"ansible.builtin.{name}"):
                    yield arguments[key]
            yield from (one["path"] for one in task.get("host_files", {}).get("files", []))
            loop = task.get("loop")
            yield from (one["path"] for one in loop or [] if isinstance(one, dict) and "path" in one)
            if "ansible.builtin.deb822_repository" in task:
                for one in task["vars"]["__docker_sources"]:
                    yield f"/etc/apt/sources.list.d/{one['name']}.sources"
                    yield f"/etc/apt/keyrings/{one['name']}.asc"
            for name in ("service_directories", "celery_service_directories"):
                found = task.get("vars", {}).get(name, [])
                yield from found if isinstance(found, list) else []


@pytest.mark.parametrize("role", sorted((ROOT / "roles").iterdir()), ids=lambda role: role.name)
def test_every_path_is_known(role: Path) -> None:
    variables = {**known().defaults, **role_variables(role.name)}
    listed = [plain(path, variables) for name in PATHS for path in PATHS[name] if isinstance(PATHS[name], list)]
    found = [path for path in written(role) if path not in ELSEWHERE]
    for path in (plain(path, variables) for path in found):
        assert any(path.startswith(f"{one}/") or fnmatch(path, one) for one in listed), (
            f"{path} is nowhere in host_paths"
        )


def test_every_package_that_comes_is_known() -> None:
    names = set()
    for file in (ROOT / "roles").glob("*/tasks/*.yml"):
        names |= {task["register"] for task in tasks(yaml.safe_load(file.read_text())) if "ansible.builtin.apt" in task}
    (play,) = yaml.safe_load((ROOT / "playbooks/recorded.yml").read_text())
    assert set(re.findall(r"__\w+", play["vars"]["recorded_apt"])) == names
