"""What the storage roles write: who is served, how it is mounted, and what containers see of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import HOSTS, Groups, Inventories, Vars, role_variables

Render = Callable[..., str]
SERVED = HOSTS + "    storage_server:\n      hosts:\n        head:\n"
MOUNT = "/var/lib/muster/srv/muster"


@pytest.fixture
def write(render: Render, inventories: Inventories) -> Render:
    def call(role: str, template: str, host: str, hosts: str = SERVED, **changes: Any) -> str:
        hostvars, groups = inventories.load(hosts)
        known = {
            **role_variables(role),
            "groups": groups,
            "inventory_hostname": host,
            "ansible_facts": {"processor_vcpus": 1},
            "infra_image_ref": "registry:5000/muster/infra:0",
            **changes,
        }
        return render(role, template, hostvars, host, **known)

    return call


def values(text: str) -> dict[str, str]:
    """`name=value` lines of a unit."""
    return dict(line.split("=", 1) for line in text.splitlines() if re.match(r"\w+=", line))


def test_only_the_clusters_servers_are_served_and_root_is_nobody_special(write: Render) -> None:
    text = write("storage_server", "exports.conf.j2", "head")
    assert re.findall(r"Clients = (.*);", text) == ["127.0.0.1, 192.0.2.11"]
    assert re.findall(r"Access_Type = (\w+);", text) == ["None", "RW"]
    assert "Squash = Root_Squash;" in text and "Anonymous_uid = 10077;" in text and "PrivilegedPort = true;" in text
    assert "192.0.2.101" not in text, "a laptop"


def test_one_port_and_one_version(write: Render) -> None:
    text = write("storage_server", "ganesha.conf.j2", "head")
    assert "NFS_Port = 2049;" in text and "Protocols = 4;" in text and "Enable_UDP = false;" in text
    for template in ("exports.conf.j2", "ganesha.conf.j2"):
        text = write("storage_server", template, "head")
        assert text.count("{") == text.count("}") > 0


def test_the_server_is_limited_and_says_whether_the_folder_is_served(write: Render) -> None:
    (service,) = yaml.safe_load(write("storage_server", "compose.yml.j2", "head"))["services"].values()
    assert service["mem_limit"] == service["memswap_limit"] == 512 * 2**20 and service["pids_limit"]
    assert service["cap_drop"] == ["ALL"] and "SYS_ADMIN" not in service["cap_add"] and service["read_only"]
    assert "/var/lib/muster/storage:/srv/muster" in service["volumes"]
    assert service["healthcheck"]["test"][-1] == "nfs://127.0.0.1/muster?version=4&nfsport=2049"


def test_servers_mount_what_one_of_them_has(write: Render) -> None:
    one = values(write("storage", "mount.j2", "server1"))
    assert (one["What"], one["Where"], one["Type"]) == ("192.0.2.10:/muster", MOUNT, "nfs4")
    options = one["Options"].split(",")
    assert {"hard", "proto=tcp", "port=2049", "nfsvers=4.2", "_netdev"} <= set(options) and "soft" not in options
    itself = values(write("storage", "mount.j2", "head"))
    assert (itself["What"], itself["Where"], itself["Type"]) == ("/var/lib/muster/storage", MOUNT, "none")
    for unit in (one, itself):
        assert unit["StartLimitIntervalSec"] == "0" and int(unit["TimeoutSec"]) <= 60


@pytest.mark.parametrize("host", ["head", "server1"])
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="this machine has no systemd")
def test_systemd_takes_the_units(write: Render, tmp_path: Path, host: str) -> None:
    for kind in ("mount", "automount"):
        (tmp_path / f"var-lib-muster-srv-muster.{kind}").write_text(write("storage", f"{kind}.j2", host))
    done = subprocess.run(
        ["systemd-analyze", "verify", *sorted(tmp_path.glob("*mount"))], capture_output=True, text=True
    )
    ours = [line for line in done.stderr.splitlines() if "var-lib-muster-srv-muster" in line or str(tmp_path) in line]
    assert not ours, ours


@pytest.mark.skipif(not shutil.which("systemd-escape"), reason="this machine has no systemd")
def test_a_unit_is_named_after_its_folder(write: Render) -> None:
    for folder in (MOUNT, "/var/lib/my-files/muster"):
        done = subprocess.run(["systemd-escape", "--path", folder], capture_output=True, text=True, check=True)
        # Any template will do: it is the variable that counts.
        unit = write("storage", "mount.j2", "head", storage_mount=folder, storage_server_path="{{ __storage_unit }}")
        assert values(unit)["What"] == done.stdout.strip()


def storage(inventories: Inventories, host: str, hosts: str = SERVED, **changes: Any) -> tuple[Any, Any]:
    loaded: tuple[Vars, Groups] = inventories.load(hosts, **changes)
    variables = loaded[0][host]
    return variables["storage_volumes"], variables["storage_environment"]


def test_containers_bind_the_folder_above_the_mount_and_see_what_comes_later(inventories: Inventories) -> None:
    data = {"MUSTER_DATA": "/srv/muster"}
    for host in ("head", "server1"):
        assert storage(inventories, host) == (["/var/lib/muster/srv:/srv:rslave"], data)
    path = {"storage_path": "/srv/share"}
    assert storage(inventories, "server1", HOSTS, server1=path) == (["/srv/share:/srv/muster:rslave"], data)
    assert storage(inventories, "server1", HOSTS) == ([], {})


def test_laptops_have_none(inventories: Inventories) -> None:
    assert storage(inventories, "laptop1") == ([], {})
    assert storage(inventories, "laptop1", HOSTS, laptop1={"storage_path": "/srv/share"}) == ([], {})
