"""Which variables exist: what the roles' argument specs and the repository's group_vars name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]

# How Ansible reaches a host, as far as an inventory of ours has a use for it; each with ansible_ in front.
_CONNECTION = """
host port user password connection timeout shell_type shell_executable python_interpreter pipelining remote_tmp
become become_method become_user become_password become_pass become_exe become_flags private_key_file control_path
ssh_pass ssh_password ssh_private_key_file ssh_private_key ssh_common_args ssh_extra_args ssh_args ssh_executable
ssh_host ssh_port ssh_user ssh_timeout ssh_retries ssh_pipelining ssh_host_key_checking host_key_checking
docker_extra_args
"""
# What Ansible itself puts beside the inventory's variables.
_MAGIC = """
group_names groups hostvars inventory_dir inventory_file inventory_hostname inventory_hostname_short playbook_dir
role_name role_names role_path role_uuid omit play_hosts vars environment environ namespace
ansible_check_mode ansible_collection_name ansible_config_file ansible_delegated_vars
ansible_dependent_role_names ansible_diff_mode ansible_discovered_interpreter_python ansible_facts ansible_forks
ansible_index_var ansible_inventory_sources ansible_limit ansible_local ansible_loop ansible_loop_var
ansible_parent_role_names ansible_parent_role_paths ansible_play_batch ansible_play_hosts ansible_play_hosts_all
ansible_play_name ansible_play_role_names ansible_playbook_python ansible_role_name ansible_role_names
ansible_run_tags ansible_search_path ansible_skip_tags ansible_verbosity ansible_version
"""
CONNECTION = frozenset(f"ansible_{name}" for name in _CONNECTION.split())
MAGIC = frozenset(_MAGIC.split())
# Roles keep these for themselves, Molecule's and the lab's inventories say how the hosts are made.
PRIVATE = re.compile(r"^(__|lab_|molecule_)")


@dataclass(frozen=True)
class Known:
    """Names and types of variables, and the values that the repository gives them."""

    options: Mapping[str, Mapping[str, Any]]
    defaults: Mapping[str, Any]

    @property
    def names(self) -> frozenset[str]:
        """What an operator may set."""
        return frozenset(self.options) | frozenset(self.defaults)

    def has(self, name: str) -> bool:
        """Whether the name is one of ours or of Ansible's."""
        return name in self.names or name in CONNECTION or name in MAGIC or PRIVATE.match(name) is not None


@cache
def known(root: Path = ROOT) -> Known:
    """Everything that this clone knows; read once per process."""
    options: dict[str, Mapping[str, Any]] = {}
    for path in sorted(root.glob("roles/*/meta/argument_specs.yml")):
        for entry_point in (read_yaml(path).get("argument_specs") or {}).values():
            for name, option in (entry_point.get("options") or {}).items():
                options.setdefault(str(name), option or {})
    defaults: dict[str, Any] = {}
    for path in [*sorted(root.glob("roles/*/defaults/main.yml")), *sorted(root.glob("group_vars/*/*.yml"))]:
        defaults.update(read_yaml(path))
    for name, default in defaults.items():
        if name not in options and (kind := _kind(default)):
            options[name] = {"type": kind}
    return Known(options, defaults)


def _kind(default: Any) -> str:
    """The type that a default shows; text says nothing, it may be a template or a size."""
    kinds = {bool: "bool", int: "int", float: "float", list: "list", dict: "dict"}
    return kinds.get(type(default), "")


def role_options(root: Path = ROOT) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Every role with its documented options (all entry points) and its defaults."""
    for role in sorted(path for path in (root / "roles").iterdir() if path.is_dir()):
        specs = read_yaml(role / "meta" / "argument_specs.yml").get("argument_specs") or {}
        options = {name: option for entry in specs.values() for name, option in (entry.get("options") or {}).items()}
        yield role.name, options, read_yaml(role / "defaults" / "main.yml")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping, empty when there is no such file; Ansible's own tags are skipped over."""
    if not path.exists():
        return {}
    loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    return loaded if isinstance(loaded, dict) else {}


class _Loader(yaml.SafeLoader):
    """Reads !vault and !unsafe as text instead of refusing the file."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: getattr(node, "value", None))
