#!/usr/bin/python
"""What preflight wants to know of a host, in one round trip and without changing anything."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: muster_probe
short_description: What preflight wants to know of a host
description:
  - Much less than the setup module gathers, and some things that it does not.
  - The action plugin of the same name first asks for the SSH banner, and compares the clocks.
options:
  doors:
    description: Ports of other hosts that must not be blocked on the way, each with host, address and port.
    type: list
    elements: dict
    default: []
  folder:
    description: A folder that has to be there; empty asks for none.
    type: str
    default: ""
  want:
    description: The file that says that the host is drained; empty asks for none.
    type: str
    default: ""
  timeout:
    description: Seconds for all of them together.
    type: float
    default: 1.5
  knock:
    description: Seconds to wait for the SSH banner before connecting; 0 connects at once. For the action plugin.
    type: float
    default: 0
author: Muster
"""
EXAMPLES = r"""
- name: The host is looked at
  muster_probe:
    doors: [{host: server84, address: 10.0.0.84, port: 6379}]
"""
RETURN = r"""
silent:
  description: Why nobody is there; beside it there is nothing else.
  returned: when the host does not answer
  type: str
refused:
  description: Why the login failed.
  returned: when it failed
  type: str
broken:
  description: Why the module could not run.
  returned: when it could not
  type: str
clock_skew:
  description: Seconds by which the host's clock is ahead of the controller's, at least.
  returned: always
  type: float
drained:
  description: Why it is drained, in one line; empty when it is not.
  returned: always
  type: str
"""

LISTEN = "0A"
NVIDIA = "0x10de"
DISPLAY_CLASS = "0x03"
RECORD = "/etc/muster/before.json"


def read(path):
    """A file's text; empty when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def system():
    """Name and version of the operating system."""
    found = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', read("/etc/os-release"), re.M))
    return {
        "os_id": found.get("ID", ""),
        "os_version": found.get("VERSION_ID", ""),
        "os": f"{found.get('NAME', '').replace(' GNU/Linux', '')} {found.get('VERSION_ID', '')}".strip(),
    }


def memory_mb():
    """Memory as the kernel sees it."""
    return int(re.search(r"^MemTotal:\s+(\d+)", read("/proc/meminfo"), re.M).group(1)) // 1024


def disk():
    """Size and free space of where images and data will be."""
    stat = os.statvfs("/var/lib")
    return {
        "disk_gb": round(stat.f_blocks * stat.f_frsize / 1024**3, 1),
        "disk_free_gb": round(stat.f_bavail * stat.f_frsize / 1024**3, 1),
    }


def folder(path):
    """What is wrong with a folder that has to be there; a share that hangs is not waited for."""
    if not path:
        return ""
    try:
        done = subprocess.run(["test", "-d", path], timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return "does not answer"
    return "is not there" if done.returncode else ""


def drained(path):
    """Why no work is wanted here."""
    try:
        want = json.loads(read(path) or '{"work": true}') if path else {"work": True}
        return "" if want["work"] else str(want["why"])
    except (ValueError, KeyError, TypeError):
        return ""


def gpus():
    """Models of NVIDIA's cards; without their driver only that they are there."""
    cards = sorted(Path("/proc/driver/nvidia").glob("gpus/*/information"))
    models = re.findall(r"^Model:\s*(.+?)\s*$", "\n".join(map(read, cards)), re.M)
    return models or [
        "NVIDIA card without driver"
        for device in Path("/sys/bus/pci/devices").glob("*")
        if read(device / "vendor").strip() == NVIDIA and read(device / "class").startswith(DISPLAY_CLASS)
    ]


def docker(module):
    """The engine's version; empty when there is none."""
    program = shutil.which("docker")
    if not program:
        return ""
    found = re.search(r"(\d[\w.]*)", module.run_command([program, "--version"])[1])
    return found.group(1) if found else ""


def record():
    """How far playbooks/record.yml has come here: none, begun, done, or late, as Muster was here before."""
    if not Path(RECORD).parent.exists():
        return "none"
    written = read(RECORD)
    return "done" if '"installed"' in written else "begun" if written else "late"


def listening():
    """Programs of the host itself that listen; what runs in containers is not of interest."""
    sockets = {}
    for line in (read("/proc/net/tcp") + read("/proc/net/tcp6")).splitlines():
        fields = line.split()
        if len(fields) > 9 and fields[3] == LISTEN:
            sockets[fields[9]] = {"port": int(fields[1].rsplit(":", 1)[1], 16), "uid": int(fields[7])}
    found = {}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            inode = str(link.readlink())[len("socket:[") : -1]
            process = link.parents[1]
            if inode not in sockets or (process / "ns/pid").readlink() != Path("/proc/1/ns/pid").readlink():
                continue
        except OSError:  # It is gone, or it is not ours to look at.
            continue
        one = sockets[inode]
        found[one["port"], one["uid"]] = dict(one, process=read(process / "comm").strip())
    return [found[key] for key in sorted(found)]


def connection():
    """Where the SSH connection in use comes from; sudo hides it from us, but not from our ancestors."""
    pid = os.getpid()
    while pid > 1:
        found = re.search(r"(?:^|\0)SSH_CONNECTION=([^\0]+)", read(f"/proc/{pid}/environ"))
        if found:
            client, _client_port, _address, port = found.group(1).split()
            return {"ssh_client": client, "ssh_port": int(port)}
        parent = re.search(r"^PPid:\s+(\d+)", read(f"/proc/{pid}/status"), re.M)
        pid = int(parent.group(1)) if parent else 0
    return {"ssh_client": "", "ssh_port": 0}


async def knock(door, timeout):
    """Why a port cannot be reached; a refusal is an answer, too: nobody listens yet, but nothing is in the way."""
    try:
        _reader, writer = await asyncio.wait_for(asyncio.open_connection(door["address"], int(door["port"])), timeout)
        writer.close()
    except asyncio.TimeoutError:  # noqa: UP041 - not the same before Python 3.11
        return f"no answer within {timeout:g} s"
    except OSError as error:
        return "" if error.errno == errno.ECONNREFUSED else error.strerror or str(error)
    return ""


async def blocked(doors, timeout):
    """The ports that something on the way keeps shut."""
    answers = await asyncio.gather(*[knock(door, timeout) for door in doors])
    return [
        {"host": door["host"], "port": int(door["port"]), "why": why}
        for door, why in zip(doors, answers)  # noqa: B905 - hosts may run Python 3.9
        if why
    ]


def main():
    """Look, and tell."""
    module = AnsibleModule(
        argument_spec={
            "doors": {"type": "list", "elements": "dict", "default": []},
            "folder": {"type": "str", "default": ""},
            "want": {"type": "str", "default": ""},
            "timeout": {"type": "float", "default": 1.5},
            "knock": {"type": "float", "default": 0},
        },
        supports_check_mode=True,
    )
    clock = time.time()
    module.exit_json(
        changed=False,
        clock=clock,
        python=platform.python_version(),
        architecture=platform.machine(),
        cpus=os.cpu_count() or 1,
        memory_mb=memory_mb(),
        gpus=gpus(),
        docker=docker(module),
        folder=folder(module.params["folder"]),
        record=record(),
        drained=drained(module.params["want"]),
        firewall="ENABLED=yes" in read("/etc/ufw/ufw.conf"),
        listening=listening(),
        blocked=asyncio.run(blocked(module.params["doors"], module.params["timeout"])),
        **system(),
        **disk(),
        **connection(),
    )


if __name__ == "__main__":
    main()
