"""Loads an inventory the way Ansible does, for the command line and the tests; contacts nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muster.errors import MusterError
from muster.known import ROOT


def load_inventory(
    sources: Sequence[str | Path], extra: Mapping[str, Any] | None = None
) -> tuple[Mapping[str, Mapping[str, Any]], dict[str, list[str]]]:
    """Variables of every host, templated when they are read, and the members of every group."""
    # Ansible is slow to import, and the rest of the command line does without.
    from ansible.errors import AnsibleError
    from ansible.inventory.manager import InventoryManager
    from ansible.parsing.dataloader import DataLoader
    from ansible.vars.hostvars import HostVars
    from ansible.vars.manager import VariableManager

    for source in sources:
        if not Path(source).exists():
            raise MusterError(f"{source} does not exist", fix="name an inventory with -i, as in -i inventory/example")
    loader = DataLoader()
    loader.set_basedir(str(ROOT))
    try:
        inventory = InventoryManager(loader=loader, sources=[str(source) for source in sources])
    except AnsibleError as error:
        reason = " ".join(str(error).split())
        raise MusterError(f"the inventory cannot be read: {reason}", fix="correct the file that it names") from None
    manager = VariableManager(loader=loader, inventory=inventory)
    manager._extra_vars = dict(extra or {})
    hostvars: Mapping[str, Mapping[str, Any]] = HostVars(inventory, manager, loader)
    return hostvars, {name: list(members) for name, members in inventory.get_groups_dict().items()}
