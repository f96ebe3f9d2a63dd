#!/usr/bin/python
"""Write one Compose project and tell whether what runs is what was written."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: service_project
short_description: Writes a Compose project and compares it with what runs
description:
  - Writes the Compose file, the files beside it and the data directories in one call.
  - A Compose file that C(docker compose config) refuses is not written.
  - Files that C(check_command) refuses are not written either. It runs in a container without a network that is thrown
    away, with the files and the host's certificates where the real one has them, below C(/etc/muster).
  - C(.env) gets C(MUSTER_REVISION), a hash of the files beside the Compose file and of the watched paths. Use it as a
    label, so that a service is made anew when a file that it mounts has changed.
options:
  path: {description: Directory of the project., type: path, required: true}
  name: {description: Name of the Compose project., type: str, required: true}
  state: {description: Whether there is a project., type: str, choices: [present, absent], default: present}
  compose: {description: Text of the Compose file., type: str}
  files: {description: Files beside it as name to content. Readable by the group alone., type: dict, default: {}}
  live:
    description:
      - Files in the directory C(live) beside the Compose file, name to content. Mount that directory; the containers
        read them again when C(reload_command) tells them to, so they are no part of the revision.
    type: dict
    default: {}
  reload_service: {description: The service that reads C(live)., type: str}
  reload_command: {description: Makes it read them., type: list, elements: str,
    default: []}
  reload_input: {description: What the command reads from its standard input., type: str, default: ""}
  directories: {description: Data directories that belong to the group., type: list, elements: path, default: []}
  data_root: {description: Holds C(directories) and nothing else; it goes with the project., type: path}
  watch:
    description:
      - Files of others that the containers read only when they start. Of a link to a directory its target counts.
    type: list
    elements: path
    default: []
  check_image: {description: Image in which C(check_command) runs. Without it nothing is checked., type: str}
  check_command: {description: A program that judges C(files) and exits with 0 when they are good., type: list,
    elements: str, default: []}
  pki: {description: Directory of the host's certificates., type: path, default: /etc/muster/pki}
  gid: {description: Group of the files and the directories., type: int, default: 0}
  uid: {description: Owner of the data directories., type: int, default: 0}
"""

RETURN = r"""
deploy: {description: Whether Compose has work to do., type: bool}
reason: {description: Why it has., type: str}
stale: {description: Data that nothing uses once Compose has done its work., type: list}
"""

EXAMPLES = r"""
- name: The project is written
  service_project:
    name: web
    path: /opt/muster/web
    compose: "{{ lookup('ansible.builtin.template', 'compose.yml.j2') }}"
"""

# What containers read again while they run, and which of it they have read.
LIVE, LOADED = "live", ".loaded"


class Project:
    """A directory with a Compose file, and the containers made from it."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.path = Path(module.params["path"])
        self.name: str = module.params["name"]
        self.docker = module.get_bin_path("docker")
        self.before: list[str] = []
        self.after: list[str] = []
        self.changed = False

    def run(self, *command: str, stdin: str = "") -> tuple[int, str, str]:
        done = subprocess.run(command, capture_output=True, text=True, check=False, input=stdin)
        return done.returncode, done.stdout, done.stderr

    def directory(self, path: Path, mode: int, uid: int, gid: int) -> None:
        if path.is_dir():
            seen = path.stat()
            if (seen.st_mode & 0o7777, seen.st_uid, seen.st_gid) == (mode, uid, gid):
                return
        self.note(f"{path}/ is there, {mode:o} {uid}:{gid}")
        if not self.module.check_mode:
            path.mkdir(parents=True, exist_ok=True)
            os.chown(path, uid, gid)
            path.chmod(mode)

    def note(self, what: str) -> None:
        self.changed = True
        self.after.append(what)

    def write(self, path: Path, content: str, mode: int, gid: int, secret: bool) -> None:
        old = path.read_text() if path.is_file() else None
        if old is not None:
            seen = path.stat()
            if old == content and (seen.st_mode & 0o7777, seen.st_uid, seen.st_gid) == (mode, 0, gid):
                return
        self.changed = True
        if secret:
            self.after.append(f"{path} has new content or another mode")
        else:
            self.before.append(old or "")
            self.after.append(content)
        if self.module.check_mode:
            return
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w") as file:
            file.write(content)
        os.chown(temporary, 0, gid)
        Path(temporary).chmod(mode)
        # A file that is mounted alone stays the old inode in the container; the revision label makes a new one.
        Path(temporary).replace(path)

    def validate(self, compose: str, files: dict[str, str]) -> None:
        """Let Compose itself judge the file before it takes the old one's place."""
        if self.docker is None:
            return
        with tempfile.TemporaryDirectory() as scratch:
            candidate = Path(scratch) / "compose.yml"
            candidate.write_text(compose)
            for name, content in files.items():
                (Path(scratch) / name).write_text(content)
            code, _, error = self.run(
                self.docker,
                "compose",
                "--project-directory",
                scratch,
                "-f",
                str(candidate),
                "config",
                "--quiet",
            )
        if code:
            self.module.fail_json(
                msg=f"{self.path}/compose.yml was not written: docker compose refuses it: {error.strip()}"
            )

    def check(self, files: dict[str, str]) -> None:
        """Let the program itself judge its files before they take the old ones' place; live ones have their folder."""
        image, command = self.module.params["check_image"], self.module.params["check_command"]
        if not command or self.docker is None or all(self.has(name, content) for name, content in files.items()):
            return
        if self.run(self.docker, "image", "inspect", "--format", "{{.Id}}", image)[0]:
            return
        pki, uid, gid = self.module.params["pki"], self.module.params["uid"], self.module.params["gid"]
        with tempfile.TemporaryDirectory() as scratch:
            for folder in ("pki", LIVE):
                (Path(scratch) / folder).mkdir()
            for name, content in files.items():
                (Path(scratch) / name).write_text(content)
            for path in (Path(scratch), *Path(scratch).rglob("*")):
                os.chown(path, 0, gid)
                path.chmod(0o750 if path.is_dir() else 0o640)
            code, out, error = self.run(
                self.docker, "run", "--rm", "--init", "--pull", "never", "--network", "none", "--memory", "512m",
                "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", f"{uid}:{gid}",
                "--volume", f"{scratch}:/etc/muster:ro", "--volume", f"{pki}:/etc/muster/pki:ro",
                "--entrypoint", command[0], image, *command[1:],
            )  # fmt: skip
        if code:
            said = " ".join((out + error).split())[-1500:]
            self.module.fail_json(msg=f"{self.path}: its files were not written: {command[0]} refuses them: {said}")

    def has(self, name: str, content: str) -> bool:
        path = self.path / name
        return path.is_file() and path.read_text() == content

    def revision(self, files: dict[str, str], watch: list[str]) -> str:
        digest = hashlib.sha256()
        for name in sorted(files):
            digest.update(f"{name}\0{files[name]}\0".encode())
        for name in watch:
            path = Path(name)
            if path.is_symlink() and path.is_dir():
                content = str(path.readlink()).encode()
            else:
                content = path.read_bytes() if path.is_file() else b""
            digest.update(name.encode() + b"\0" + content + b"\0")
        return digest.hexdigest()[:12]

    def containers(self) -> dict[str, tuple[str, str]]:
        """Configuration hash and state of every container of the project, by service."""
        if self.docker is None:
            return {}
        label = "com.docker.compose"
        form = f'{{{{.Label "{label}.service"}}}}\t{{{{.Label "{label}.config-hash"}}}}\t{{{{.Status}}}}'
        code, out, error = self.run(
            self.docker, "ps", "--all", "--no-trunc", "--filter", f"label={label}.project={self.name}", "--format", form
        )
        if code:
            if self.module.check_mode:
                return {}
            self.module.fail_json(msg=f"docker does not answer: {error.strip()}. Look at: systemctl status docker")
        rows = [line.split("\t") for line in out.splitlines()]
        return {service: (config, status) for service, config, status in rows}

    def difference(self) -> str:
        """Why Compose has to act, or nothing."""
        code, out, error = self.run(
            str(self.docker), "compose", "--project-directory", str(self.path), "-f", str(self.path / "compose.yml"),
            "config", "--hash", "*",
        )  # fmt: skip
        if code:
            self.module.fail_json(msg=f"{self.path}/compose.yml: {error.strip()}")
        wanted = dict(line.split() for line in out.splitlines())
        there = self.containers()
        for service, config in wanted.items():
            if service not in there:
                return f"{service} has no container"
            if there[service][0] != config:
                return f"{service} runs with another configuration"
            if not there[service][1].startswith("Up") or "unhealthy" in there[service][1]:
                return f"{service} is {there[service][1]}"
        surplus = sorted(set(there) - set(wanted))
        return f"{', '.join(surplus)} is not wanted any more" if surplus else ""

    def present(self) -> dict[str, Any]:
        params = self.module.params
        gid, uid = params["gid"], params["uid"]
        files = {name: str(content) for name, content in params["files"].items()}
        live = {f"{LIVE}/{name}": str(content) for name, content in params["live"].items()}
        environment = f"MUSTER_REVISION={self.revision(files, params['watch'])}\n"
        compose_file = self.path / "compose.yml"
        if not self.has("compose.yml", params["compose"]):
            self.validate(params["compose"], {".env": environment, **files})
        self.check({**files, **live})
        self.directory(self.path, 0o750, 0, gid)
        if live:
            self.directory(self.path / LIVE, 0o750, 0, gid)
        for path in params["directories"]:
            self.directory(Path(path), 0o750, uid, gid)
        if self.path.is_dir():
            wanted = {"compose.yml", ".env", *files, *([LOADED] if live else [])}
            for stale in sorted(p for p in self.path.iterdir() if p.is_file() and p.name not in wanted):
                self.note(f"{stale} is gone")
                if not self.module.check_mode:
                    stale.unlink()
        self.write(compose_file, params["compose"], 0o640, gid, secret=False)
        self.write(self.path / ".env", environment, 0o640, gid, secret=False)
        for name, content in {**files, **live}.items():
            self.write(self.path / name, content, 0o640, gid, secret=True)
        if self.docker is None or (self.module.check_mode and self.changed):
            return {"deploy": True, "reason": "the project is not written yet"}
        reason = self.difference()
        if live and not reason:
            self.reload(self.revision(live, []))
        return {"deploy": bool(reason), "reason": reason}

    def reload(self, revision: str) -> None:
        """Have the container read its live files, unless it said that it has."""
        loaded, params = self.path / LOADED, self.module.params
        if self.module.check_mode or (loaded.is_file() and loaded.read_text() == revision):
            return
        # Should it fail nobody knows what the container has read, not even when the old files come back.
        loaded.unlink(missing_ok=True)
        code, out, error = self.run(
            str(self.docker), "compose", "--project-directory", str(self.path), "exec", "-T", params["reload_service"],
            *params["reload_command"], stdin=params["reload_input"],
        )  # fmt: skip
        if code:
            said = " ".join((out + error).split())[-1500:]
            self.module.fail_json(msg=f"{params['reload_service']} did not read {self.path}/{LIVE} again: {said}")
        loaded.write_text(revision)

    def stale(self) -> list[str]:
        root = self.module.params["data_root"]
        if not root or not Path(root).is_dir():
            return []
        if self.module.params["state"] == "absent":
            return [root]
        wanted = {Path(path) for path in self.module.params["directories"]}
        return [str(path) for path in sorted(Path(root).iterdir()) if path not in wanted]

    def absent(self) -> dict[str, Any]:
        running = bool(self.containers())
        if self.path.is_dir() and not running:
            self.note(f"{self.path}/ is gone")
            if not self.module.check_mode:
                shutil.rmtree(self.path)
        return {"deploy": running, "reason": "its containers are still there" if running else ""}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "compose": {"type": "str"},
            "files": {"type": "dict", "default": {}, "no_log": True},
            "live": {"type": "dict", "default": {}, "no_log": True},
            "reload_service": {"type": "str"},
            "reload_command": {"type": "list", "elements": "str", "default": []},
            "reload_input": {"type": "str", "default": "", "no_log": True},
            "directories": {"type": "list", "elements": "path", "default": []},
            "data_root": {"type": "path"},
            "watch": {"type": "list", "elements": "path", "default": []},
            "check_image": {"type": "str"},
            "check_command": {"type": "list", "elements": "str", "default": []},
            "pki": {"type": "path", "default": "/etc/muster/pki"},
            "gid": {"type": "int", "default": 0},
            "uid": {"type": "int", "default": 0},
        },
        required_if=[("state", "present", ["compose"])],
        supports_check_mode=True,
    )
    project = Project(module)
    result = project.present() if module.params["state"] == "present" else project.absent()
    stale = project.stale()
    module.exit_json(
        changed=project.changed or result["deploy"] or bool(stale),
        stale=stale,
        diff={"before": "\n".join(project.before), "after": "\n".join(project.after)},
        **result,
    )


if __name__ == "__main__":
    main()
