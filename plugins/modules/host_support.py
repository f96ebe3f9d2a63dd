#!/usr/bin/python
"""What somebody who helps wants to know of a host, in one round trip and without changing anything."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: host_support
short_description: Tells how a host is, for a support bundle
description:
  - Versions, load, disks, units, firewall, containers, their logs and the settings of services.
  - Of what services read only files that never hold a secret are taken. Logs may hold anything; whoever calls this
    looks for secrets in what comes back.
options:
  path: {description: Where the Compose projects are., type: path, required: true}
  lines: {description: How many lines of each log., type: int, default: 500}
  sysctl: {description: Settings of the kernel., type: list, elements: str, default: []}
  timeout: {description: Seconds for each question., type: float, default: 20}
"""

RETURN = r"""
files: {description: Text by the name of a file., type: dict}
"""

EXAMPLES = r"""
- name: The host tells how it is
  host_support: {path: /opt/muster, lines: 200}
"""

COMMANDS = {
    "system.txt": "cat /etc/os-release; uname -a; uptime; timedatectl",
    "load.txt": "cat /proc/loadavg; free -m; ps -eo pid,user,stat,etime,pcpu,rss,comm --sort=-rss | head -n 40",
    "disk.txt": "df -hT; df -hi",
    "network.txt": "ip address; ip route; ss -tuln",
    "units.txt": "systemctl --failed --no-pager; systemctl list-timers --all --no-pager 'muster-*'",
    "firewall.txt": "ufw status verbose",
    "docker.txt": "docker version; docker ps --all --no-trunc; docker images --digests; docker system df",
    "packages.txt": "dpkg-query --show 'docker*' containerd* runc ufw iptables restic nfs-common python3 systemd",
    "journal.txt": "journalctl --no-pager --lines {lines} --unit 'muster-*' --unit docker --unit ufw --unit containerd",
    "kernel.txt": "journalctl --no-pager --lines {lines} --dmesg --priority warning",
    "code.txt": "readlink {path}/code/current; ls -l --time-style=long-iso {path}/code",
}
# Others beside them hold secrets, or may.
SETTINGS = ("compose.yml", ".env", "redis.conf", "prometheus.yml", "targets_*.json", "ganesha.conf", "exports.conf")
VERSIONS = """
import importlib.metadata as m, platform
print("python", platform.python_version())
for name in ("ray", "celery", "redis", "torch"):
    try: print(name, m.version(name))
    except m.PackageNotFoundError: pass
"""


class Host:
    """Asks, and never fails: what cannot be answered is an answer, too."""

    def __init__(self, path: Path, lines: int, timeout: float) -> None:
        self.path, self.lines, self.timeout = path, lines, timeout

    def ask(self, *command: str) -> str:
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                check=False, timeout=self.timeout,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{error}\n"
        return done.stdout.decode(errors="replace")

    def shell(self, script: str) -> str:
        filled = script.replace("{lines}", str(self.lines)).replace("{path}", str(self.path))
        return "".join(f"$ {part}\n{self.ask('sh', '-c', part)}\n" for part in filled.split("; "))

    def containers(self) -> dict[str, str]:
        """The image of each container that runs or has run, by name."""
        said = self.ask("docker", "ps", "--all", "--format", "{{.Names}} {{.Image}} {{.State}}")
        return {words[0]: " ".join(words[1:]) for line in said.splitlines() if len(words := line.split()) == 3}

    def log(self, name: str) -> str:
        return self.ask("docker", "logs", "--timestamps", "--tail", str(self.lines), name)

    def settings(self) -> dict[str, str]:
        found = [file for name in SETTINGS for file in sorted(self.path.glob(f"*/**/{name}"))]
        return {
            str(file.relative_to(self.path)): file.read_text(errors="replace")
            for file in found
            if file.is_file() and not file.is_relative_to(self.path / "code")
        }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "lines": {"type": "int", "default": 500},
            "sysctl": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "float", "default": 20},
        },
        supports_check_mode=True,
    )
    params = module.params
    host = Host(Path(params["path"]), params["lines"], params["timeout"])
    containers = host.containers()
    # Whoever has Ray and Celery in it; all of them are from the same image.
    nodes = [name for name, image in containers.items() if "/muster/node:" in image and image.endswith(" running")]
    with ThreadPoolExecutor(4) as pool:
        logs = pool.map(host.log, containers)
        files = dict(zip(COMMANDS, pool.map(host.shell, COMMANDS.values())))  # noqa: B905 - hosts may run Python 3.9
        files.update({f"logs/{name}.txt": text for name, text in zip(containers, logs)})  # noqa: B905
    files["sysctl.txt"] = host.ask("sysctl", *params["sysctl"])
    files["versions.txt"] = host.ask("docker", "exec", nodes[0], "python3", "-c", VERSIONS) if nodes else "none\n"
    files.update({f"settings/{name}": text for name, text in host.settings().items()})
    daemon = Path("/etc/docker/daemon.json")
    if daemon.is_file():
        files["settings/daemon.json"] = daemon.read_text(errors="replace")
    module.exit_json(changed=False, files=files)


if __name__ == "__main__":
    main()
