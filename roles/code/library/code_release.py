#!/usr/bin/python
"""Unpack a release of the job code, make it the current one and forget old ones, in one call."""

from __future__ import annotations

import base64
import io
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: code_release
short_description: Keeps releases of the job code below one directory, and a link to the current one
description:
  - A release appears whole or not at all, and so does the link, whoever reads meanwhile.
options:
  path: {description: Directory of the releases., type: path, required: true}
  release: {description: Name of the release., type: str, required: true}
  archive: {description: The release as a tar archive in base64., type: str, required: true}
  keep: {description: Releases that stay, the current one included., type: int, default: 3}
"""

RETURN = r"""
gone: {description: Releases that were removed., type: list}
"""

EXAMPLES = r"""
- name: The release is the current one
  code_release:
    path: /opt/muster/code
    release: 0123456789ab
    archive: "{{ ['/src/ray_jobs'] | muster_tree_archive }}"
"""


def unpack(archive: str, target: Path) -> None:
    """Make the directory in one step, readable for all."""
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".new-"))
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(archive))) as tar:
        # It is the controller's own; Debian 12's Python has no filters to say so.
        tar.extractall(scratch, **({"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}))
    for folder in (scratch, *(path for path in scratch.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    scratch.rename(target)


def switch(link: Path, name: str) -> None:
    """Let the link point to another release in one step."""
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(name)
    new.replace(link)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "release": {"type": "str", "required": True},
            "archive": {"type": "str", "required": True},
            "keep": {"type": "int", "default": 3},
        },
        supports_check_mode=True,
    )
    root, name = Path(module.params["path"]), module.params["release"]
    link, target = root / "current", root / name
    old = str(link.readlink()) if link.is_symlink() else ""
    others = [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()] if root.is_dir() else []
    # What a run that was cut short has left is not a release.
    litter = [path for path in others if path.name.startswith(".")]
    others = sorted((path for path in others if path not in (target, *litter)), key=lambda path: -path.stat().st_mtime)
    gone = litter + others[module.params["keep"] - 1 :]
    changed = old != name or not target.is_dir() or bool(gone)
    if changed and not module.check_mode:
        os.umask(0o022)
        root.mkdir(parents=True, exist_ok=True)
        if not target.is_dir():
            unpack(module.params["archive"], target)
        switch(link, name)
        for path in gone:
            shutil.rmtree(path)
    module.exit_json(
        changed=changed,
        gone=[str(path) for path in gone],
        diff={"before": f"{link} -> {old}\n", "after": f"{link} -> {name}\n"},
    )


if __name__ == "__main__":
    main()
