"""Figures of this host that no exporter has, for node_exporter to serve: twice a minute, by a timer of systemd.

Certificates, the firewall and its guard of containers, Muster's containers, Ray's jobs (on the head), the last backup.
Docker's own figures (metrics-addr) are left alone: dockerd does not start while the address is not there, as on a
laptop without its network, and on all addresses they would be open wherever UFW is not ours. They would say how many
containers run; what is asked of Docker here says which.

Nothing but Python's standard library, 3.9 or newer.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

SETTINGS = Path("/etc/muster/figures.json")
# Seconds for one answer; what takes longer has no figures.
ANSWER = 8.0
# The most of an answer that is read. Ray's head lists all jobs it knows.
MOST = 8 * 2**20
# What Docker gives a container that asks for no other size.
SHM = 64 * 2**20
# Says in the kernel that our rules were loaded (roles/ufw).
MARK = re.compile(r'--comment "?muster [0-9a-f]+"?')
JOBS = ("PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED")
HELP = {
    "certificate_expiry_seconds": ("gauge", "When a certificate ends, as a time"),
    "firewall_closed": ("gauge", "Whether what no rule allows is dropped"),
    "docker_guard": ("gauge", "Whether ports that containers publish obey the firewall"),
    "docker_up": ("gauge", "Whether Docker answers"),
    "container_running": ("gauge", "Whether the container of a Compose service runs"),
    "container_healthy": ("gauge", "Whether its check says that it is well; none for one that only begins"),
    "container_restarts_total": ("counter", "How often Docker started it again by itself"),
    "container_oom_kills_total": ("counter", "Processes in it that the kernel killed for memory, since it started"),
    "container_shm_bytes": ("gauge", "Size of its /dev/shm, where it asked for one"),
    "container_shm_used_bytes": ("gauge", "What is used of it"),
    "ray_jobs": ("gauge", "Jobs that were submitted and that Ray still knows, by state"),
    "backup_seconds": ("gauge", "When the last good backup was made, as a time; 0: never"),
    "figures_failed": ("gauge", "Whether a part of these figures could not be had"),
    "figures_seconds": ("gauge", "When these figures were made, as a time"),
}
# A figure: its name, its labels, its value.
Figure = tuple[str, dict[str, str], float]
Run = Callable[..., str]


def run(*command: str) -> str:
    """What a program says; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def certificates(paths: dict[str, str], run: Run = run) -> list[Figure]:
    """When each ends."""
    found = []
    for name, path in paths.items():
        end = run("openssl", "x509", "-noout", "-enddate", "-in", path).strip().partition("=")[2]
        found.append(("certificate_expiry_seconds", {"file": name}, float(ssl.cert_time_to_seconds(end))))
    return found


def firewall(root: Path, run: Run = run) -> list[Figure]:
    """As the kernel has it: what files and services say may not be loaded."""
    families = {"ipv4": "iptables", "ipv6": "ip6tables"}
    if not (root / "proc/net/if_inet6").exists():
        del families["ipv6"]
    found: list[Figure] = []
    for family, program in families.items():
        rules = run(program, "--wait", "5", "-S").splitlines()
        found.append(("firewall_closed", {"family": family}, float(is_closed(rules, family))))
        found.append(("docker_guard", {"family": family}, float(is_guarded(rules))))
    return found


def is_closed(rules: list[str], family: str) -> bool:
    """What comes in is dropped, but for what UFW's chains let in."""
    ufw = "ufw6" if family == "ipv6" else "ufw"
    wanted = {"-P INPUT DROP", f"-A INPUT -j {ufw}-before-input", f"-A {ufw}-before-input -j {ufw}-user-input"}
    return wanted <= set(rules) and "-A INPUT -j ACCEPT" not in rules


def is_guarded(rules: list[str]) -> bool:
    """What Docker forwards comes through our rules first, and those drop it. Without its chain it forwards none."""
    guard = [rule for rule in rules if rule.startswith("-A DOCKER-USER ")]
    mark = next((number for number, rule in enumerate(guard) if MARK.search(rule)), None)
    if mark is None or "-A DOCKER-USER -j muster-published" not in guard[mark:]:
        return False
    # Others may have rules of their own before ours, but none that lets everything past.
    passed = {"-A DOCKER-USER -j RETURN", "-A DOCKER-USER -j ACCEPT"} & set(guard[:mark])
    drops = any(rule.startswith("-A muster-published ") and rule.endswith(" -j DROP") for rule in rules)
    forward = [rule for rule in rules if rule.startswith("-A FORWARD ") and "DOCKER" in rule]
    asked = forward[:1] == ["-A FORWARD -j DOCKER-USER"] or "-N DOCKER" not in rules
    return drops and asked and not passed


class Docker(http.client.HTTPConnection):
    """Docker's API, by its socket: two questions cost less than two calls of its program."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(ANSWER)
        self.sock.connect(self.path)

    def ask(self, path: str) -> Any:
        self.request("GET", path)
        answer = self.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"Docker answers {answer.status} to {path}")
        return json.loads(body)


def containers(ask: Callable[[str], Any], root: Path) -> list[Figure]:
    """Of the services in Muster's Compose projects, whether they run or not."""
    wanted = urllib.parse.quote(json.dumps({"label": ["com.docker.compose.project", "muster.revision"]}))
    try:
        listed = ask(f"/containers/json?all=1&filters={wanted}")
    except (OSError, http.client.HTTPException):
        return [("docker_up", {}, 0.0)]
    found: list[Figure] = [("docker_up", {}, 1.0)]
    for one in sorted(listed, key=lambda one: str(one["Names"])):
        try:
            about = ask(f"/containers/{one['Id']}/json")
        except RuntimeError:
            # It went away meanwhile.
            continue
        found += container(about, root)
    return found


def container(about: dict[str, Any], root: Path) -> list[Figure]:
    labels, state = about["Config"]["Labels"], about["State"]
    if labels.get("com.docker.compose.oneoff") == "True":
        return []
    whose = {"project": labels["com.docker.compose.project"], "service": labels["com.docker.compose.service"]}
    running = bool(state["Running"]) and not state.get("Restarting")
    found: list[Figure] = [
        ("container_running", whose, float(running)),
        ("container_restarts_total", whose, float(about["RestartCount"])),
    ]
    if not running:
        return found
    health = (state.get("Health") or {}).get("Status")
    if health in ("healthy", "unhealthy"):
        found.append(("container_healthy", whose, float(health == "healthy")))
    process = root / "proc" / str(state["Pid"])
    # It may end meanwhile.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        kills = oom_kills(root, process)
        if kills is not None:
            found.append(("container_oom_kills_total", whose, float(kills)))
        if (about["HostConfig"].get("ShmSize") or 0) > SHM:
            shm = os.statvfs(process / "root/dev/shm")
            size = shm.f_blocks * shm.f_frsize
            found.append(("container_shm_bytes", whose, float(size)))
            found.append(("container_shm_used_bytes", whose, float(size - shm.f_bfree * shm.f_frsize)))
    return found


def oom_kills(root: Path, process: Path) -> int | None:
    """Of the process' control group, of version 2 or 1. Docker's own OOMKilled is forgotten when it starts anew."""
    groups = root / "sys/fs/cgroup"
    paths = {}
    for line in (process / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path.lstrip("/")))
    file = groups / "memory" / paths["memory"] / "memory.oom_control" if "memory" in paths else None
    if file is None:
        file = groups / paths.get("", "") / "memory.events"
    for line in file.read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill":
            return int(value)
    return None


def ray_jobs(url: str, token: str) -> list[Figure]:
    """Jobs by state; those that were submitted, since Ray tells nothing of the end of others."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ANSWER)
    try:
        password = Path(token).read_text().strip()
        connection.request("GET", "/api/jobs/", headers={"Authorization": f"Bearer {password}"})
        answer = connection.getresponse()
        body = answer.read(MOST + 1)
    finally:
        connection.close()
    if answer.status != 200 or len(body) > MOST:
        raise RuntimeError(f"Ray answers {answer.status} with {len(body)} bytes")
    states = [job["status"] for job in json.loads(body) if job["type"] == "SUBMISSION"]
    return [("ray_jobs", {"status": state}, float(states.count(state))) for state in JOBS]


def backup(path: str, *, wanted: bool) -> list[Figure]:
    """The time of the file that a good backup touches. Nothing on a host that makes none."""
    try:
        return [("backup_seconds", {}, Path(path).stat().st_mtime)]
    except FileNotFoundError:
        return [("backup_seconds", {}, 0.0)] if wanted else []


def gather(settings: dict[str, Any], root: Path = Path("/")) -> list[Figure]:
    """All figures; a part that fails says so, and the others are there."""
    parts: dict[str, Callable[[], list[Figure]]] = {
        "certificates": lambda: certificates(settings["certificates"]),
        "containers": lambda: containers(Docker(settings["docker"]).ask, root),
        "backup": lambda: backup(settings["backup"], wanted=settings["backup_wanted"]),
    }
    if settings["firewall"]:
        parts["firewall"] = lambda: firewall(root)
    if settings["ray_jobs"]:
        parts["ray_jobs"] = lambda: ray_jobs(**settings["ray_jobs"])
    found: list[Figure] = []
    for name, part in parts.items():
        failed = 0.0
        try:
            found += part()
        except Exception as problem:  # whatever it is, the others are wanted
            print(f"{name}: {problem or type(problem).__name__}", file=sys.stderr, flush=True)
            failed = 1.0
        found.append(("figures_failed", {"part": name}, failed))
    found.append(("figures_seconds", {}, time.time()))
    return found


def text(figures: list[Figure]) -> str:
    """As node_exporter reads it: those of a name together."""
    lines = []
    for name, (kind, about) in HELP.items():
        mine = [figure for figure in figures if figure[0] == name]
        if mine:
            lines += [f"# HELP muster_host_{name} {about}", f"# TYPE muster_host_{name} {kind}"]
        for _, labels, value in mine:
            pairs = ",".join(f"{key}={json.dumps(label)}" for key, label in labels.items())
            lines.append(f"muster_host_{name}{{{pairs}}} {value!r}" if pairs else f"muster_host_{name} {value!r}")
    return "\n".join(lines) + "\n"


def write(path: Path, content: str) -> None:
    """In one step: nobody reads half of it."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with fresh.open("x", encoding="utf-8") as file:
        file.write(content)
    fresh.chmod(0o644)
    fresh.replace(path)


def main() -> None:
    settings = json.loads((Path(sys.argv[1]) if len(sys.argv) > 1 else SETTINGS).read_text())
    write(Path(settings["file"]), text(gather(settings)))


if __name__ == "__main__":
    main()
