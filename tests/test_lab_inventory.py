"""The lab's inventory script: sizes, addresses, and messages for people."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "inventory" / "lab" / "hosts.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lab_hosts", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lab = load_script()


def test_without_a_size_file_there_are_two_servers_and_a_laptop(tmp_path: Path) -> None:
    assert lab.read_size(tmp_path / "size.json") == {"servers": 2, "laptops": 1, "spares": 0}


def test_the_size_file_may_name_only_one(tmp_path: Path) -> None:
    (tmp_path / "size.json").write_text('{"servers": 6}')
    assert lab.read_size(tmp_path / "size.json") == {"servers": 6, "laptops": 1, "spares": 0}


@pytest.mark.parametrize("servers", ["many", -1, 91, 2.5, True])
def test_a_size_that_cannot_be_is_refused_with_the_range(tmp_path: Path, servers: object) -> None:
    (tmp_path / "size.json").write_text(json.dumps({"servers": servers}))
    with pytest.raises(ValueError, match=r"number of servers is .*; give one from 0 to 90"):
        lab.read_size(tmp_path / "size.json")


def test_a_new_size_is_kept_and_an_empty_value_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / ".lab" / "size.json"
    lab.resize(["servers=6", "laptops="], path)
    lab.resize(["servers=", "laptops=3"], path)
    assert lab.read_size(path) == {"servers": 6, "laptops": 3, "spares": 0}


@pytest.mark.parametrize("change", ["servers=many", "servers=91", "servers=-1", "printers=2"])
def test_a_bad_new_size_is_refused_and_the_old_one_stays(tmp_path: Path, change: str) -> None:
    path = tmp_path / "size.json"
    lab.resize(["servers=6"], path)
    with pytest.raises(ValueError, match=r"servers"):
        lab.resize([change], path)
    assert lab.read_size(path)["servers"] == 6


@given(servers=st.integers(0, 90), laptops=st.integers(0, 100), spares=st.integers(0, 49))
def test_every_host_has_an_address_of_its_own_in_the_lab_s_network(servers: int, laptops: int, spares: int) -> None:
    hostvars = lab.inventory({"servers": servers, "laptops": laptops, "spares": spares})["_meta"]["hostvars"]
    addresses = [host["ansible_host"] for host in hostvars.values()]
    assert len(addresses) == 1 + servers + laptops + spares
    assert len(set(addresses)) == len(addresses)
    assert all(ip_address(address) in ip_network("172.30.84.0/24") for address in addresses)


@given(small=st.integers(0, 89))
def test_a_larger_lab_moves_nobody(small: int) -> None:
    before = lab.inventory({"servers": small, "laptops": 1, "spares": 0})["_meta"]["hostvars"]
    after = lab.inventory({"servers": small + 1, "laptops": 2, "spares": 1})["_meta"]["hostvars"]
    assert before.items() <= after.items()


def test_ansible_reads_the_whole_of_it() -> None:
    listing = subprocess.run(
        [Path(sys.executable).parent / "ansible-inventory", "-i", SCRIPT.parent, "--list"],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=True,
    )
    data = json.loads(listing.stdout)
    assert data["ray_head"]["hosts"] == ["head"]
    assert data["builder"]["hosts"] == ["controller"]
    assert set(data["cluster"]["children"]) == {"server", "laptop"}
    controller = data["_meta"]["hostvars"]["controller"]
    assert controller["ansible_connection"] == "local"
    assert controller["ansible_host"] == "172.30.0.1"


def test_scenarios_that_may_run_side_by_side_share_no_address() -> None:
    owners: dict[str, list[str]] = {}
    for file in sorted(ROOT.glob("molecule/*/inventory/hosts.yml")):
        for address in set(re.findall(r"ansible_host: (172\.30\.\S+?)[,}\s]", file.read_text())):
            owners.setdefault(address, []).append(file.parts[-3])
    assert len(owners) > 30
    assert {address: names for address, names in owners.items() if len(names) > 1} == {}
