"""The filters as playbooks use them: by name, with an inventory's variables, and with errors of one line."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from .conftest import ROOT, Inventories

Playbook = Callable[..., subprocess.CompletedProcess[str]]
USE = """
- hosts: server1
  gather_facts: false
  tasks:
    - ansible.builtin.debug:
        msg: >-
          nodes={{ (hostvars | muster_port_plan(groups, muster_ports, inventory_hostname))[inventory_hostname].ray_nodes
                   | map(attribute='node_manager') | join(',') }}
          rules={{ hostvars | muster_firewall_rules(groups, muster_ports, inventory_hostname)
                   | map(attribute='ports') | join(',') }}
          sizes={{ ray_workers | muster_ray_workers(host=inventory_hostname, host_cpus=8, host_memory_mb=16000)
                   | map(attribute='cpus') | join(',') }}
          memory={{ '6G' | muster_memory }}
          hash={{ [muster_root ~ '/muster/errors.py'] | muster_tree_hash('x') | length }}
"""


def test_every_filter_that_a_role_uses_exists() -> None:
    plugins = [*ROOT.glob("plugins/filter/*.py"), *ROOT.glob("roles/*/filter_plugins/*.py")]
    offered = {name for path in plugins for name in re.findall(r'"(muster_\w+)": ', path.read_text())}
    used: dict[str, Path] = {}
    for folder in ("roles", "playbooks", "group_vars"):
        for path in [*ROOT.glob(f"{folder}/**/*.yml"), *ROOT.glob(f"{folder}/**/*.j2")]:
            used.update((name, path) for name in re.findall(r"\|\s*(muster_\w+)\(", path.read_text()))
    assert used and not {name: path for name, path in used.items() if name not in offered}


def test_a_playbook_uses_them(playbook: Playbook, inventories: Inventories, tmp_path: Path) -> None:
    (tmp_path / "use.yml").write_text(USE)
    (tmp_path / "group_vars").symlink_to(ROOT / "group_vars")
    folder = inventories.write()
    done = playbook(str(tmp_path / "use.yml"), "-i", str(folder), "-e", "ray_workers=2")
    said = " ".join(done.stdout.split())
    assert "nodes=24256,24512 rules=22,9100,24256:24767 sizes=4,4 memory=6442450944 hash=12" in said, done.stdout


def test_a_mistake_is_one_line(playbook: Playbook, inventories: Inventories, tmp_path: Path) -> None:
    (tmp_path / "use.yml").write_text(USE)
    (tmp_path / "group_vars").symlink_to(ROOT / "group_vars")
    folder = inventories.write()
    done = playbook(str(tmp_path / "use.yml"), "-i", str(folder), "-e", "ray_workers=many")
    assert done.returncode != 0
    said = " ".join((done.stdout + done.stderr).split())
    assert "server1: ray_workers is 'many', which is not a whole number. Fix: write it like 4." in said
    assert "Traceback" not in said


def test_without_the_package_the_fix_is_said(playbook: Playbook, inventories: Inventories, tmp_path: Path) -> None:
    plugins = tmp_path / "clone" / "plugins" / "filter"
    plugins.mkdir(parents=True)
    shutil.copy(ROOT / "plugins/filter/muster.py", plugins)
    broken = tmp_path / "broken" / "muster"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('No module named muster')\n")
    (tmp_path / "use.yml").write_text(USE)
    done = playbook(
        str(tmp_path / "use.yml"), "-i", str(inventories.write()),
        ANSIBLE_FILTER_PLUGINS=str(plugins), PYTHONPATH=str(broken.parent),
    )  # fmt: skip
    assert "The muster package cannot be imported" in done.stdout + done.stderr
    assert "run `make venv`" in done.stdout + done.stderr
