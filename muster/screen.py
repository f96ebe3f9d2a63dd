"""Run a playbook for what it says at its end, and take only that."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muster.errors import MusterError, UnansweredError

ROOT = Path(__file__).resolve().parents[1]
DEBUG = ("debug", "ansible.builtin.debug")


def screen(playbook: str, inventory: Sequence[str], variables: Mapping[str, Any]) -> Any:
    """What the last debug task of the playbook shows, text or facts; None without one. Else a MusterError."""
    # Beside this Python, whether or not its environment is active.
    beside = Path(sys.executable).with_name("ansible-playbook")
    command = [
        str(beside) if beside.exists() else "ansible-playbook",
        *(part for path in inventory for part in ("-i", path)),
    ]
    command += ["-e", json.dumps(dict(variables)), str(ROOT / "playbooks" / playbook)]
    environment = {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), **os.environ,
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
    }  # fmt: skip
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    except FileNotFoundError:
        raise MusterError("ansible-playbook is not there", fix="run `make venv` and .venv/bin/muster") from None
    try:
        plays = json.JSONDecoder().raw_decode(done.stdout, done.stdout.index("{"))[0]["plays"]
    except ValueError:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise MusterError(f"{playbook} did not run: {said}", fix="look at the inventory that -i names") from None
    results = [(host, result) for play in plays for task in play["tasks"] for host, result in task["hosts"].items()]
    if done.returncode:
        wrong = [
            f"{host}: {_said(result)}" for host, result in results if result.get("failed") or result.get("unreachable")
        ]
        for text in wrong:
            # A mistake that a filter found, which says itself what to do; Ansible tells where it was found before it.
            if found := re.fullmatch(r"(?:.*' failed: )?(.*)\. Fix: (.*?)\.?", text):
                raise MusterError(found[1], fix=found[2])
        said = "; ".join(dict.fromkeys(wrong)) or done.stderr.strip()[-2000:] or "it failed"
        raise UnansweredError(said.rstrip("."), fix=f"see more with ansible-playbook playbooks/{playbook}")
    # Other modules have messages too.
    messages = [result.get("msg") for _, result in results if result.get("action") in DEBUG]
    return messages[-1] if messages else None


def _said(result: Mapping[str, Any]) -> str:
    # Of a loop, what its items say.
    for item in result.get("results", []):
        if item.get("failed") or item.get("unreachable"):
            return _said(item)
    return " ".join(str(result.get("msg") or result.get("stdout") or result.get("stderr") or "").split())
