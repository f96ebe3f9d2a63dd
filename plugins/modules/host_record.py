#!/usr/bin/python
"""Write down what a host had before we came, so that all of it, and nothing else, is there when we have gone."""

from __future__ import annotations

import base64
import grp
import json
import os
import pwd
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: host_record
short_description: Remembers on a host what was there before it was set up
description:
  - The first call with O(state=before) writes the record; a later one leaves it alone. Where the record's folder is
    there without it, the host was set up before there were records, and gets none.
  - O(state=after) adds what has come since, packages and groups; once that is known, the packages that C(apt) names.
  - O(state=undo) removes C(paths), brings back what was recorded, removes what is new, and the record with it. On a
    host without a record only C(paths) go, and packages stay.
  - An engine that came with us and holds what is not ours is an error, before anything is changed.
options:
  path: {description: The record's file., type: path, required: true}
  state: {description: What to do., type: str, choices: [before, after, undo], required: true}
  paths:
    description: What may be written. With O(state=undo) those that nobody but us makes, as patterns.
    type: list
    elements: path
    default: []
  keep: {description: Directories that stay unless they are empty., type: list, elements: path, default: []}
  units: {description: Units that may be started., type: list, elements: str, default: []}
  sysctl: {description: Settings of the kernel that may change., type: list, elements: str, default: []}
  apt: {description: What apt has said since the record was complete., type: list, elements: str, default: []}
"""

RETURN = r"""
kept: {description: "What was not undone, for people.", type: list}
gone: {description: What was removed., type: list}
"""

EXAMPLES = r"""
- name: What is there is written down
  host_record: {path: /etc/muster/before.json, state: before, paths: [/etc/docker], units: [docker.service]}
"""

# The chain that role ufw makes: whoever has it has our rules.
MARK = "muster-published"
# The role registry's, container and volume.
REGISTRY = "muster-registry"
TABLES = [(program, table) for program in ("iptables", "ip6tables") for table in ("filter", "nat")]


def packages() -> list[str]:
    """Every package that is installed, or has left its configuration."""
    form = "${db:Status-Status} ${binary:Package}\n"
    out = subprocess.run(["dpkg-query", "--show", "--showformat", form], capture_output=True, text=True, check=True)
    return sorted(line.split()[1] for line in out.stdout.splitlines() if line.split()[0] != "not-installed")


def native() -> str:
    """The host's architecture."""
    done = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def orphans() -> set[str]:
    """Services that run although there is no unit for them any more: some packages leave theirs behind."""
    words = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "--type", "service"]
    lines = subprocess.run(words, capture_output=True, text=True, check=False).stdout.splitlines()
    return {line.split()[0] for line in lines if line.split()[1:3] == ["not-found", "active"]}


def rules(program: str, table: str) -> list[str]:
    """What the kernel's firewall has; nothing where there is no such program."""
    if not shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"):
        return []
    done = subprocess.run([program, "-t", table, "-S"], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def one(name: str) -> dict[str, Any]:
    """What is at a path: nothing, a directory, a link or a file with its content."""
    path = Path(name)
    if path.is_symlink():
        return {"path": name, "kind": "link", "target": str(path.readlink())}
    if not path.exists():
        return {"path": name, "kind": "absent"}
    seen = path.stat()
    found = {"path": name, "mode": f"{seen.st_mode & 0o7777:04o}", "owner": seen.st_uid, "group": seen.st_gid}
    if path.is_dir():
        return {**found, "kind": "directory"}
    return {**found, "kind": "file", "content": base64.b64encode(path.read_bytes()).decode()}


def settings(names: list[str]) -> dict[str, str]:
    """What the kernel is set to, in the order of the names; without those that it does not know."""
    found = {name: text(f"/proc/sys/{name.replace('.', '/')}").strip() for name in names}
    return {name: value for name, value in found.items() if value}


def new_packages(said: str) -> list[str]:
    """Those that apt says it installs."""
    found = re.search(r"^The following NEW packages will be installed:\n((?: .*\n)+)", said, re.M)
    return found.group(1).split() if found else []


def mounts() -> set[Path]:
    """Where something is mounted."""
    lines = text("/proc/self/mountinfo").splitlines()
    return {Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), line.split()[4])) for line in lines}


def unit(name: str) -> dict[str, Any]:
    """Whether it starts with the host, and whether it runs."""

    def says(verb: str) -> str:
        return subprocess.run(["systemctl", verb, name], capture_output=True, text=True, check=False).stdout.strip()

    return {"name": name, "enabled": says("is-enabled") == "enabled", "active": says("is-active") == "active"}


class Undo:
    """Everything back, one thing after another; what is as it was is left alone."""

    def __init__(self, module: AnsibleModule, record: dict[str, Any]) -> None:
        self.module, self.record = module, record
        self.gone: list[str] = []
        self.kept: list[str] = []
        self.ours: list[str] = []
        self.keep = {Path(path) for path in module.params.get("keep", [])}

    def call(self, *command: str, check: bool = False) -> str:
        if self.module.check_mode:
            return ""
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if check and done.returncode:
            said = " ".join((done.stdout + done.stderr).split())[-1500:]
            self.module.fail_json(
                msg=f"{' '.join(command[:3])}: {said}. Correct that and run this again", gone=self.gone
            )
        return done.stdout

    def was_active(self, name: str) -> bool:
        return any(was["name"] == name and was["active"] for was in self.record.get("units", []))

    def judge(self) -> None:
        """Nobody loses containers and volumes of their own with an engine that came with us."""
        if not self.record or self.was_active("docker.service") or not self.module.get_bin_path("docker"):
            return
        form = '{{.Names}}\t{{.Label "com.docker.compose.project.working_dir"}}'
        folders = tuple(f"{path}/" for path in self.module.params["paths"])
        containers = [line.split("\t") for line in self.ask("docker", "ps", "--all", "--format", form)]
        others = [f"container {name}" for name, folder in containers if not folder.startswith(folders)]
        form = '{{.Name}}\t{{.Label "com.docker.compose.project"}}'
        volumes = [line.split("\t") for line in self.ask("docker", "volume", "ls", "--format", form)]
        ours = {folder.rpartition("/")[2] for _, folder in containers if folder.startswith(folders)}
        # What has only a number belonged to a container.
        named = [name for name, project in volumes if project not in ours and not re.fullmatch("[0-9a-f]{64}", name)]
        others += [f"volume {name}" for name in named]
        others = [other for other in others if other.split()[1] != REGISTRY]
        if others:
            self.module.fail_json(
                msg=f"Docker came with Muster, would go with it, and holds what is not Muster's: {', '.join(others)}. "
                "Fix: take that elsewhere and remove it, then run this again. Nothing was changed on this host."
            )

    def ask(self, *command: str) -> list[str]:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()

    def stop(self) -> None:
        """The rules leave the kernel while there are the programs that can take them out."""
        if self.module.get_bin_path("ufw") and MARK in text("/etc/ufw/after.rules"):
            self.call("ufw", "--force", "disable", check=True)
            self.gone.append("the firewall's rules")
        ours, links = r"(ufw6?-|muster-)", ""
        if self.record and not self.was_active("docker.service"):
            self.call("systemctl", "stop", "docker.socket", "docker.service", "containerd.service")
            self.call("ip", "link", "delete", "docker0")
            ours, links = r"(ufw6?-|muster-|DOCKER)", r"|-[io] docker0\b"
        mine = re.compile(rf"-[ANj] {ours}{links}")
        for program, table, before in self.record.get("rules", []):
            now = rules(program, table)
            new = [shlex.split(line) for line in now if line not in before and mine.search(line)]
            for words in [words for words in new if words[0] == "-A"]:
                self.call(program, "-t", table, "-D", *words[1:])
            for verb in ("-F", "-X"):
                for words in [words for words in new if words[0] == "-N"]:
                    self.call(program, "-t", table, verb, words[1])
        if self.record and self.was_active("docker.service"):
            for program in ("iptables", "ip6tables"):
                self.call(program, "-F", "DOCKER-USER")
                self.call(program, "-A", "DOCKER-USER", "-j", "RETURN")

    def takes_along(self, *names: str) -> set[str]:
        """What would go, too, with these packages: what somebody has installed since, and needs them."""
        done = subprocess.run(["apt-get", "--simulate", "purge", *names], capture_output=True, text=True, check=False)
        lines = [line.split() for line in done.stdout.splitlines() if line.startswith(("Purg ", "Remv "))]
        return {words[1].partition(":")[0] for words in lines} - {name.partition(":")[0] for name in self.ours}

    def packages(self) -> None:
        # apt names libraries without the architecture, dpkg with it.
        suffix = f":{native()}"
        there = {name.removesuffix(suffix): name for name in packages()}
        recorded = {name.removesuffix(suffix) for name in self.record.get("installed", [])}
        self.ours = sorted(there[name] for name in recorded & set(there))
        needed = [name for name in self.ours if self.takes_along(name)] if self.takes_along(*self.ours) else []
        if needed:
            self.kept.append(f"packages that others need by now: {', '.join(needed)}")
        ours = [name for name in self.ours if name not in needed]
        if ours:
            before = orphans()
            self.call("apt-get", "purge", "--yes", *ours, check=True)
            for name in sorted(orphans() - before):
                self.call("systemctl", "stop", name)
            self.gone += ours

    def is_kept(self, path: str) -> bool:
        return any(Path(path).is_relative_to(keep) for keep in self.keep)

    def path(self, was: dict[str, Any]) -> None:
        now, path = one(was["path"]), Path(was["path"])
        if now == was:
            return
        if was["kind"] == "absent" and not removable(path, self.keep):
            return
        self.gone.append(was["path"])
        if self.module.check_mode:
            return
        if was["kind"] in ("absent", "link"):
            remove(path, self.keep | mounts() - {path})
            if path.is_dir() and any(path.iterdir()):
                self.kept.append(f"{path}, in which something else is mounted or kept")
        if was["kind"] == "link":
            path.symlink_to(was["target"])
        if was["kind"] == "directory":
            path.mkdir(parents=True, exist_ok=True)
        if was["kind"] == "file":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(was["content"]))
        if was["kind"] in ("directory", "file"):
            os.chown(path, was["owner"], was["group"])
            path.chmod(int(was["mode"], 8))

    def names(self) -> None:
        users = {entry.pw_name for entry in pwd.getpwall()} & set(self.record.get("new_users", []))
        for name in sorted(users):
            self.call("userdel", name, check=True)
        groups = {entry.gr_name for entry in grp.getgrall()} & set(self.record.get("new_groups", []))
        for name in sorted(groups - users):
            self.call("groupdel", name, check=True)
        self.gone += sorted(users | groups)

    def kernel(self) -> None:
        """Its settings, the wider ones first, as they set others."""
        for name, was in self.record.get("sysctl", {}).items():
            now = settings([name]).get(name, was)
            if now == was:
                continue
            self.gone.append(f"{name} = {now}")
            if not self.module.check_mode:
                Path(f"/proc/sys/{name.replace('.', '/')}").write_text(was)

    def units(self) -> None:
        """What was there already runs again as it did, with its own settings."""
        self.call("systemctl", "daemon-reload")
        for was in self.record.get("units", []):
            now = unit(was["name"])
            if not self.call("systemctl", "cat", was["name"]):
                continue
            if now["enabled"] != was["enabled"]:
                self.call("systemctl", "enable" if was["enabled"] else "disable", was["name"])
            if was["active"]:
                self.call("systemctl", "restart" if self.gone else "start", was["name"])
            elif now["active"]:
                self.call("systemctl", "stop", was["name"])
        if self.module.get_bin_path("ufw") and "ENABLED=yes" in text("/etc/ufw/ufw.conf"):
            self.call("ufw", "--force", "enable")

    def run(self) -> None:
        self.judge()
        self.stop()
        self.packages()
        if self.record and "installed" not in self.record:
            self.kept.append("packages: it was never enrolled to the end, so nobody knows which are ours")
        if not self.record and any(removable(Path(path), self.keep) for path in self.module.params["paths"]):
            self.kept.append("packages, Docker's and UFW's settings: nobody wrote down what was there before")
        # Ours were never there, whatever an older record says: it may have been written over what was kept.
        patterns = self.module.params["paths"]
        ours = sorted({str(path) for one in patterns for path in [one, *Path("/").glob(one.lstrip("/"))]})
        recorded = self.record.get("paths", [])
        was = [entry for entry in recorded if entry["path"] not in ours and not self.is_kept(entry["path"])]
        was += [{"path": path, "kind": "absent"} for path in ours]
        # Those inside others last: what is gone with its folder is gone. But what is kept is emptied first.
        record = self.module.params["path"]
        for entry in sorted(
            was, key=lambda entry: (record.startswith(entry["path"]), Path(entry["path"]) in self.keep, entry["path"])
        ):
            self.path(entry)
        self.kernel()
        self.names()
        self.units()
        if Path(record).exists() and not self.module.check_mode:
            Path(record).unlink()


def text(path: str) -> str:
    """A file's text; empty when there is none."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def removable(path: Path, keep: set[Path]) -> bool:
    """Whether there is something that may go."""
    if path in keep and path.is_dir() and any(path.iterdir()):
        return False
    return path.is_symlink() or path.exists()


def remove(path: Path, leave: set[Path]) -> None:
    """Whatever it is, but for what is to be left below it. A directory that is a mount of its own stays, empty."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir() and not any(one.is_relative_to(path) for one in leave | mounts()):
        shutil.rmtree(path)
    elif path.is_dir():
        for inner in path.iterdir():
            if inner not in leave:
                remove(inner, leave)
        if path not in mounts() and not any(path.iterdir()):
            path.rmdir()


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["before", "after", "undo"], "required": True},
            "paths": {"type": "list", "elements": "path", "default": []},
            "keep": {"type": "list", "elements": "path", "default": []},
            "units": {"type": "list", "elements": "str", "default": []},
            "sysctl": {"type": "list", "elements": "str", "default": []},
            "apt": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    params, file = module.params, Path(module.params["path"])
    record: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    old = dict(record)
    if params["state"] == "before" and not record and not file.parent.exists():
        record = {
            "packages": packages(),
            "groups": sorted(entry.gr_name for entry in grp.getgrall()),
            "users": sorted(entry.pw_name for entry in pwd.getpwall()),
            "paths": [one(path) for path in params["paths"]],
            "units": [unit(name) for name in params["units"]],
            "rules": [(*where, rules(*where)) for where in TABLES],
            "sysctl": settings(params["sysctl"]),
        }
    if params["state"] == "after" and "installed" in record:
        new = {name for said in params["apt"] for name in new_packages(said)}
        record["installed"] = sorted(new.union(record["installed"]))
    elif params["state"] == "after" and record:
        record["installed"] = sorted(set(packages()) - set(record.pop("packages")))
        record["new_groups"] = sorted({entry.gr_name for entry in grp.getgrall()} - set(record.pop("groups")))
        record["new_users"] = sorted({entry.pw_name for entry in pwd.getpwall()} - set(record.pop("users")))
    if record != old and not module.check_mode:
        file.parent.mkdir(parents=True, exist_ok=True)
        # What files held may be secret.
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        with os.fdopen(handle, "w") as out:
            json.dump(record, out)
        Path(temporary).replace(file)
    if params["state"] == "undo":
        undo = Undo(module, record)
        undo.run()
        module.exit_json(changed=bool(undo.gone), gone=undo.gone, kept=undo.kept)
    module.exit_json(changed=record != old, gone=[], kept=[])


if __name__ == "__main__":
    main()
