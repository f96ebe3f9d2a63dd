"""What scanners of security find on a lab's hosts, and what docs/security.md says of it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray_lab import ROOT, Lab

# Folders that a container must not have, as the CIS benchmark for Docker lists them.
SENSITIVE = ("/", "/boot", "/dev", "/etc", "/lib", "/proc", "/root", "/run", "/sys", "/usr", "/var", "/var/run")


def listed(title: str) -> dict[str, set[str]]:
    """The table below a heading of docs/security.md: what its first column names, and the words of its second."""
    text = (ROOT / "docs/security.md").read_text().partition(f"### {title}\n")[2].partition("\n#")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert len(rows) > 2 and all(row[-1] for row in rows), f"docs/security.md has no table below {title}"
    return {name.strip(): set(re.findall(r"[\w-]+", row[1])) for row in rows[2:] for name in row[0].split(",")}


def containers(lab: Lab, host: str) -> dict[str, set[str]]:
    """Findings at the containers that Muster runs on a host, each with the services that have it."""
    names = lab.on(host, "docker", "ps", "--quiet", "--filter", "label=com.docker.compose.project").split()
    found: dict[str, set[str]] = {}
    for one in json.loads(lab.on(host, "docker", "inspect", *names)):
        for finding in judged(one):
            found.setdefault(finding, set()).add(one["Config"]["Labels"]["com.docker.compose.project"])
    return found


def judged(one: dict[str, Any]) -> Iterator[str]:
    """What the benchmark's chapters 4 and 5 say of a container (its numbers: 1.6.0)."""
    config, host = one["Config"], one["HostConfig"]
    options = host["SecurityOpt"] or []
    binds = [mount for mount in one["Mounts"] if mount["Type"] == "bind"]
    shared = [mount for mount in binds if mount["Propagation"] in ("shared", "rshared")]
    checks = {
        "4.1 root": config["User"].split(":")[0] in ("", "0", "root"),
        "4.6 no health check": "Healthcheck" not in config,
        "5.2 no AppArmor": "apparmor=unconfined" in options,
        "5.3 no SELinux": "label=disable" in options,
        "5.4 capabilities": host["CapDrop"] != ["ALL"] or bool(host["CapAdd"]),
        "5.5 privileged": host["Privileged"],
        "5.6 folders of the system": any(mount["Source"] in SENSITIVE for mount in binds),
        "5.6 folders of the system to write": any(mount["Source"] in SENSITIVE and mount["RW"] for mount in binds),
        "5.10 network of the host": host["NetworkMode"] == "host",
        "5.11 no limit of memory": not host["Memory"],
        "5.12 no limit of CPU": not (host["NanoCpus"] or host["CpuQuota"] or host["CpuShares"]),
        "5.13 writable root": not host["ReadonlyRootfs"],
        "5.15 restarts always": host["RestartPolicy"]["Name"] == "always",
        "5.16 processes of the host": host["PidMode"] == "host",
        "5.17 IPC of the host": host["IpcMode"] == "host",
        "5.18 devices of the host": bool(host["Devices"]),
        "5.20 shared mounts": bool(shared),
        "5.21 UTS of the host": host["UTSMode"] == "host",
        "5.22 no seccomp": "seccomp=unconfined" in options,
        "5.26 new privileges": not {"no-new-privileges", "no-new-privileges:true"} & set(options),
        "5.29 no limit of processes": (host["PidsLimit"] or 0) <= 0,
        "5.31 user namespace of the host": host["UsernsMode"] == "host",
        "5.32 Docker's socket": any(mount["Source"].endswith("docker.sock") for mount in binds),
    }
    return (name for name, is_so in checks.items() if is_so)


def lynis(lab: Lab, host: str, folder: Path) -> dict[str, set[str]]:
    """What Lynis (Debian's package, fetched to this machine) says of a host; nothing of it stays there."""
    for command in (["apt-get", "-q", "download", "lynis"], ["sh", "-c", "dpkg -x lynis_*.deb there"]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    there = folder / "there"
    parts = [there / "usr/share/lynis", there / "etc/lynis", there / "usr/sbin"]
    packed = subprocess.run(
        ["tar", "-c", "--owner=0", "--group=0", *(word for part in parts for word in ("-C", part, "."))],
        check=True,
        capture_output=True,
    ).stdout
    try:
        lab.on(host, "mkdir", "-m", "0700", "/root/lynis")
        unpack = ["docker", "exec", "-i", f"{lab.name}-{host}", "tar", "-x", "-C", "/root/lynis"]
        subprocess.run(unpack, input=packed, check=True)
        lab.on(
            host,
            "sh",
            "-c",
            "cd /root/lynis && ./lynis audit system --quiet --no-colors --profile ./default.prf --logfile log"
            " --report-file report >out 2>&1; tail -n 5 out",
        )
        report = lab.on(host, "cat", "/root/lynis/report")
    finally:
        lab.on(host, "rm", "-rf", "/root/lynis")
    assert "hardening_index=" in report, report[-2000:]
    found: dict[str, set[str]] = {"warning": set(), "suggestion": set()}
    for kind, name in re.findall(r"^(warning|suggestion)\[\]=([A-Z]+(?:-\d+)?)\|", report, re.MULTILINE):
        found[kind].add(name)
    return found
