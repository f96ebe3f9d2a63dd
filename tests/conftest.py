"""What the tests share: inventories from a few words, templates as Ansible renders them, playbooks as subprocesses."""

import os
import subprocess
import sys
from collections import ChainMap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from hypothesis import settings

from muster.load import load_inventory

ROOT = Path(__file__).resolve().parents[1]
# A busy machine is no failure.
settings.register_profile("muster", deadline=None, max_examples=60)
settings.load_profile("muster")
Vars = Mapping[str, Mapping[str, Any]]
Groups = Mapping[str, list[str]]
HOSTS = """
all:
  children:
    server:
      hosts:
        head: {ansible_host: 192.0.2.10, ray_workers: 0}
        server1: {ansible_host: 192.0.2.11}
    laptop:
      hosts:
        laptop1: {ansible_host: 192.0.2.101}
    ray_head:
      hosts:
        head:
    builder:
      hosts:
        head:
"""


class Inventories:
    """Inventories on disk, next to the groups of the example."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "groups.yml").write_text((ROOT / "inventory/example/groups.yml").read_text())

    def write(self, hosts: str = HOSTS, **changes: Mapping[str, Any]) -> Path:
        """Hosts as YAML; `server1={...}` sets variables of a host, `all={...}` of all."""
        content = yaml.safe_load(hosts)
        for host, variables in changes.items():
            if host == "all":
                content["all"]["vars"] = dict(variables)
            for group in content["all"]["children"].values():
                if host in group["hosts"] and group["hosts"][host] is not None:
                    group["hosts"][host].update(variables)
        (self.folder / "hosts.yml").write_text(yaml.safe_dump(content, sort_keys=False))
        return self.folder

    def load(self, hosts: str = HOSTS, **changes: Mapping[str, Any]) -> tuple[Vars, Groups]:
        """The same, as Ansible reads it."""
        return load_inventory([self.write(hosts, **changes)])


def probed(hostvars: Vars, probes: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Variables of the hosts, with what preflight's probe registered; they stay lazy."""
    return {name: ChainMap({"__preflight_probe": probe}, cast(Any, hostvars[name])) for name, probe in probes.items()}


@pytest.fixture
def inventories(tmp_path: Path) -> Inventories:
    """A folder for an inventory of the test's own."""
    folder = tmp_path / "inventory"
    folder.mkdir()
    return Inventories(folder)


@pytest.fixture
def playbook() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ansible-playbook with the repository's settings and returns what it printed."""

    def run(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).parent / "ansible-playbook", name, *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_FORCE_COLOR": "0",
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    return run


def role_variables(role: str) -> dict[str, Any]:
    """Defaults and vars of a role, as they are written."""
    found: dict[str, Any] = {}
    for part in ("defaults", "vars"):
        path = ROOT / "roles" / role / part / "main.yml"
        if path.exists():
            found.update(yaml.safe_load(path.read_text()) or {})
    return found


@pytest.fixture(scope="session")
def render() -> Callable[..., str]:
    """Renders a role's template as Ansible does for a host: undefined variables are errors.

    render("ufw", "user.rules.j2", hostvars, "server1", groups=groups, extra_variable=1)
    """

    def run(role: str, template: str, hostvars: Vars, host: str, **variables: Any) -> str:
        from ansible.parsing.dataloader import DataLoader
        from ansible.plugins.loader import filter_loader, init_plugin_loader
        from ansible.template import Templar, trust_as_template

        if "ansible_collections" not in sys.modules:
            init_plugin_loader()
        filter_loader.add_directory(str(ROOT / "plugins/filter"))
        filter_loader.add_directory(str(ROOT / "roles" / role / "filter_plugins"))
        known = {
            **_trusted(role_variables(role)),
            **cast(Any, hostvars).raw_get(host),
            "hostvars": hostvars,
            **_trusted(variables),
        }
        loader = DataLoader()
        loader.set_basedir(str(ROOT / "roles" / role))
        text = (ROOT / "roles" / role / "templates" / template).read_text()
        return str(Templar(loader=loader, variables=known).template(trust_as_template(text)))

    return run


def _trusted(value: Any) -> Any:
    """YAML that we wrote ourselves may hold templates."""
    from ansible.template import trust_as_template

    if isinstance(value, str):
        return trust_as_template(value)
    if isinstance(value, dict):
        return {key: _trusted(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_trusted(inner) for inner in value]
    return value
