#!/usr/bin/env python3
"""The lab's hosts: an inventory script. `hosts.py --resize servers=6 laptops=2 spares=1` changes how many there are.

Spares run and are nobody's: for add-laptop.yml.
"""

import json
import sys
from pathlib import Path
from typing import Any

SIZE_FILE = Path(__file__).resolve().parents[2] / ".lab" / "size.json"
DEFAULT_SIZE = {"servers": 2, "laptops": 1, "spares": 0}
SUBNET = "172.30.84"
FIRST_SERVER, FIRST_LAPTOP, FIRST_SPARE = 11, 101, 201
LIMITS = {"servers": FIRST_LAPTOP - FIRST_SERVER, "laptops": FIRST_SPARE - FIRST_LAPTOP, "spares": 250 - FIRST_SPARE}

# Small on purpose: all hosts of the lab share one machine, which may have two cores.
HEAD = {"ray_workers": 0}
WORKERS = {"ray_worker_cpus": 1, "ray_worker_memory": "2G"}
# A volume that all servers have (molecule/shared/create.yml).
SHARED = {"storage_path": "/srv/share"}


def check_size(size: dict[str, Any]) -> dict[str, int]:
    """The size itself, or a ValueError with a message for people."""
    for what, value in size.items():
        if what not in LIMITS:
            raise ValueError(f"the lab has no {what!r}; it has {', '.join(LIMITS)}")
        if type(value) is not int or not 0 <= value <= LIMITS[what]:
            raise ValueError(f"the number of {what} is {value!r}; give one from 0 to {LIMITS[what]}")
    return size


def read_size(path: Path = SIZE_FILE) -> dict[str, int]:
    """How many servers, laptops and spares the lab has."""
    return check_size({**DEFAULT_SIZE, **(json.loads(path.read_text()) if path.exists() else {})})


def resize(changes: list[str], path: Path = SIZE_FILE) -> None:
    """Keep a new size for this and later runs; an empty value (`servers=`) changes nothing."""
    pairs = [change.partition("=") for change in changes]
    wanted = {what: int(value) if value.isdecimal() else value for what, _, value in pairs if value}
    size = check_size({**read_size(path), **wanted})
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(size) + "\n")


def inventory(size: dict[str, int]) -> dict[str, Any]:
    """The inventory in the form Ansible reads from scripts; groups.yml says how the groups nest."""

    def hosts(kind: str, first: int) -> dict[str, str]:
        return {f"{kind}{n}": f"{SUBNET}.{first + n - 1}" for n in range(1, size[f"{kind}s"] + 1)}

    servers, laptops = hosts("server", FIRST_SERVER), hosts("laptop", FIRST_LAPTOP)
    spares = hosts("spare", FIRST_SPARE)
    addresses = {"head": f"{SUBNET}.10", **servers, **laptops, **spares}
    return {
        "_meta": {
            "hostvars": {
                host: {"ansible_host": address, **SHARED, **(HEAD if host == "head" else WORKERS)}
                for host, address in addresses.items()
            }
        },
        "server": {"hosts": ["head", *servers]},
        "laptop": {"hosts": list(laptops)},
        "outside": {"hosts": list(spares)},
        "ray_head": {"hosts": ["head"]},
        "builder": {"hosts": ["controller"]},
        "backup": {"hosts": ["head"]},
    }


if __name__ == "__main__":
    try:
        if sys.argv[1:2] == ["--resize"]:
            resize(sys.argv[2:])
        else:
            print(json.dumps(inventory(read_size()), indent=2))
    except ValueError as error:
        sys.exit(f"inventory/lab/hosts.py: {error}")
