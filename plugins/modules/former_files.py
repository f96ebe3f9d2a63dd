#!/usr/bin/python
"""Puts files aside whose makers make new ones when they find none, and remembers how far a change has gone."""

from __future__ import annotations

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: former_files
short_description: Keeps the former files until what replaces them is everywhere
description:
  - The names that lie in the folder are the state, so that a run that was cut can be run again.
options:
  folder: {description: Where the files are., type: path, required: true}
  names: {description: "Files, below the folder.", type: list, elements: str, required: true}
  state:
    description:
      - C(former) puts them aside as NAME.old, unless there is a former one already. They are good beside the new ones.
      - C(withdrawn) makes NAME.out of it. It is good no more, and there are places that do not know that yet.
      - C(forgotten) removes both.
    type: str
    choices: [former, withdrawn, forgotten]
    required: true
"""

RETURN = r"""
names: {description: Those that were changed., type: list}
"""

EXAMPLES = r"""
- name: A new token is made
  former_files: {folder: .secrets/mine, names: [ray_token], state: former}
"""


def move(path: Path, state: str, *, pretend: bool) -> bool:
    """One file to its next state; whether there was anything to do."""
    old, out = path.with_name(f"{path.name}.old"), path.with_name(f"{path.name}.out")
    if state == "former":
        there = path.exists() and not old.exists() and not out.exists()
        steps = [(path, old)]
    elif state == "withdrawn":
        there = old.exists()
        steps = [(old, out)]
    else:
        there = old.exists() or out.exists()
        steps = []
    if there and not pretend:
        for source, target in steps:
            source.rename(target)
        if state == "forgotten":
            old.unlink(missing_ok=True)
            out.unlink(missing_ok=True)
    return there


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "folder": {"type": "path", "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": ["former", "withdrawn", "forgotten"], "required": True},
        },
        supports_check_mode=True,
    )
    folder, state = Path(module.params["folder"]), module.params["state"]
    names = [name for name in module.params["names"] if move(folder / name, state, pretend=module.check_mode)]
    module.exit_json(changed=bool(names), names=names)


if __name__ == "__main__":
    main()
