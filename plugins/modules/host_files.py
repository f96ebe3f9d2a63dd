#!/usr/bin/python
"""Write all files of a role in one call: most of a run with nothing to do would be calls."""

from __future__ import annotations

import grp
import os
import shlex
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: host_files
short_description: Writes files, links and directories of root in one call
description:
  - Does what file, copy and template do, for all of a role's files at once. Order is kept.
  - Nothing is written unless all files that have C(validate) are good.
options:
  files:
    description: What is there.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: Where., type: path, required: true}
      content: {description: "Text of a file. Without it, C(secret) and C(link) it is a directory.", type: str}
      secret: {description: Text of a file that is never shown., type: str}
      link: {description: What the path is a link to., type: path}
      mode: {description: As octal digits., type: str, default: "0644"}
      group: {description: Name or number; the owner is root., type: str, default: root}
      validate: {description: "A command that refuses bad content, with %s for the file.", type: str, default: ""}
"""

RETURN = r"""
paths: {description: What was changed., type: list}
"""

EXAMPLES = r"""
- name: The settings are written
  host_files:
    files:
      - {path: /etc/web, mode: "0755"}
      - {path: /etc/web/web.conf, content: "port 80", validate: "web --check %s"}
"""


class Host:
    """Compares what is wanted with what is there."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.paths: list[str] = []
        self.before: list[str] = []
        self.after: list[str] = []

    def note(self, path: Path, before: str, after: str) -> None:
        self.paths.append(str(path))
        self.before.append(before)
        self.after.append(after)

    def directory(self, path: Path, mode: int, gid: int) -> None:
        there = path.is_dir()
        if there and as_wanted(path, mode, gid):
            return
        self.note(path, f"{path}/ {'has another mode or owner' if there else 'is not there'}\n", f"{path}/ {mode:o}\n")
        if not self.module.check_mode:
            path.mkdir(parents=True, exist_ok=True)
            own(path, mode, gid)

    def link(self, path: Path, target: str) -> None:
        old = str(path.readlink()) if path.is_symlink() else ""
        if old == target:
            return
        if not path.is_symlink() and path.exists():
            self.module.fail_json(msg=f"{path} is no link; nothing was changed there. Remove it")
        self.note(path, f"{path} -> {old}\n", f"{path} -> {target}\n")
        if not self.module.check_mode:
            path.unlink(missing_ok=True)
            path.symlink_to(target)

    def file(self, path: Path, content: str, mode: int, gid: int, *, secret: bool) -> None:
        old = path.read_text() if path.is_file() else ""
        if path.is_file() and old == content and as_wanted(path, mode, gid):
            return
        if secret or old == content:
            self.note(path, f"{path}\n", f"{path} has new content or another mode, {mode:o}\n")
        else:
            self.note(path, old, content)
        if self.module.check_mode:
            return
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w") as file:
            file.write(content)
        own(Path(temporary), mode, gid)
        Path(temporary).replace(path)

    def judge(self, wanted: dict[str, Any]) -> None:
        """Let the program that reads a new file say whether it can."""
        command, path = shlex.split(wanted["validate"]), Path(wanted["path"])
        if not command or (path.is_file() and path.read_text() == wanted["content"]):
            return
        program = self.module.get_bin_path(command[0])
        # In check mode it may be still to come.
        if program is None and self.module.check_mode:
            return
        with tempfile.NamedTemporaryFile("w", prefix="host_files.") as candidate:
            candidate.write(wanted["content"])
            candidate.flush()
            words = [part.replace("%s", candidate.name) for part in command[1:]]
            code, out, error = self.module.run_command([program or command[0], *words])
        if code:
            said = (out + error).strip()[-2000:]
            self.module.fail_json(msg=f"{path} was not written: {command[0]} refuses it: {said}")


def as_wanted(path: Path, mode: int, gid: int) -> bool:
    seen = path.stat()
    return (seen.st_mode & 0o7777, seen.st_uid, seen.st_gid) == (mode, 0, gid)


def own(path: Path, mode: int, gid: int) -> None:
    os.chown(path, 0, gid)
    path.chmod(mode)


def group_id(name: str) -> int:
    return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid


def main() -> None:
    one = {
        "path": {"type": "path", "required": True},
        "content": {"type": "str"},
        "secret": {"type": "str", "no_log": True},
        "link": {"type": "path"},
        "mode": {"type": "str", "default": "0644"},
        "group": {"type": "str", "default": "root"},
        "validate": {"type": "str", "default": ""},
    }
    module = AnsibleModule(
        argument_spec={"files": {"type": "list", "elements": "dict", "options": one, "required": True}},
        supports_check_mode=True,
    )
    host = Host(module)
    for wanted in module.params["files"]:
        if wanted["content"] is not None:
            host.judge(wanted)
    for wanted in module.params["files"]:
        path, mode = Path(wanted["path"]), int(wanted["mode"], 8)
        if wanted["link"]:
            host.link(path, wanted["link"])
        elif (text := wanted["content"] if wanted["secret"] is None else wanted["secret"]) is not None:
            host.file(path, text, mode, group_id(wanted["group"]), secret=wanted["secret"] is not None)
        else:
            host.directory(path, mode, group_id(wanted["group"]))
    module.exit_json(
        changed=bool(host.paths),
        paths=host.paths,
        diff={"before": "".join(host.before), "after": "".join(host.after)},
    )


if __name__ == "__main__":
    main()
