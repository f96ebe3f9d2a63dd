#!/usr/bin/env python3
"""The lab's hosts: an inventory script. Sizes come from .lab/size.json, which `make up LAB_SERVERS=6` writes."""

import json
import sys
from pathlib import Path
from typing import Any

SIZE_FILE = Path(__file__).resolve().parents[2] / ".lab" / "size.json"
DEFAULT_SIZE = {"servers": 2, "laptops": 1}
SUBNET = "172.30.84"
FIRST_SERVER, FIRST_LAPTOP = 11, 101
LIMITS = {"servers": FIRST_LAPTOP - FIRST_SERVER, "laptops": 250 - FIRST_LAPTOP}
# Small on purpose: all hosts of the lab share one machine, which may have two cores.
HEAD = {"ray_workers": 0}
WORKERS = {"ray_worker_cpus": 1, "ray_worker_memory": "2G"}


def read_size(path: Path = SIZE_FILE) -> dict[str, int]:
    """How many servers and laptops the lab has; raises ValueError with a message for people."""
    size = dict(DEFAULT_SIZE)
    if path.exists():
        size.update(json.loads(path.read_text()))
    for what, limit in LIMITS.items():
        if not isinstance(size[what], int) or not 0 <= size[what] <= limit:
            raise ValueError(f"{path}: {what} is {size[what]!r}; give a number from 0 to {limit}")
    return {what: size[what] for what in LIMITS}


def inventory(size: dict[str, int]) -> dict[str, Any]:
    """The inventory in the form Ansible reads from scripts; groups.yml says how the groups nest."""
    servers = {f"server{n}": f"{SUBNET}.{FIRST_SERVER + n - 1}" for n in range(1, size["servers"] + 1)}
    laptops = {f"laptop{n}": f"{SUBNET}.{FIRST_LAPTOP + n - 1}" for n in range(1, size["laptops"] + 1)}
    addresses = {"head": f"{SUBNET}.10", **servers, **laptops}
    return {
        "_meta": {
            "hostvars": {
                host: {"ansible_host": address, **(HEAD if host == "head" else WORKERS)}
                for host, address in addresses.items()
            }
        },
        "server": {"hosts": ["head", *servers]},
        "laptop": {"hosts": list(laptops)},
        "ray_head": {"hosts": ["head"]},
        "builder": {"hosts": ["controller"]},
    }


if __name__ == "__main__":
    try:
        print(json.dumps(inventory(read_size()), indent=2))
    except (ValueError, json.JSONDecodeError) as error:
        sys.exit(f"inventory/lab/hosts.py: {error}")
