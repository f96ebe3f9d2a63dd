"""Run a playbook for what it says at its end, and say only that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muster.errors import MusterError

ROOT = Path(__file__).resolve().parents[1]


def screen(playbook: str, inventory: Sequence[str], variables: Mapping[str, Any]) -> str:
    """The last message that the playbook shows; a MusterError with what went wrong."""
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
        said = "; ".join(wrong) or done.stderr.strip()[-2000:] or "it failed"
        raise MusterError(said, fix=f"see more with ansible-playbook playbooks/{playbook}")
    return _said(results[-1][1]) if results else ""


def _said(result: Mapping[str, Any]) -> str:
    return str(result.get("msg") or result.get("stdout") or result.get("stderr") or "").strip()
