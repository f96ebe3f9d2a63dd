"""What operators do, as the scenario `operate` timed it (make test SCENARIO=operate)."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

LOG = Path(__file__).resolve().parents[1] / ".lab/logs/scenario-operate.log"
# What its tests print, the last of each.
FIGURES = {
    "backup of an idle cluster s": r"backup of an idle cluster: (\d+) s",
    "restore on a new host s": r"restored on a new host in (\d+) s",
    "drained and back s": r"drained after (\d+) s .*back after (\d+) s",
    "three servers rebooted s": r"three servers rebooted within (\d+) s",
    "rotate all s": r"rotate what=ray_token,redis,gateway,flower,certificates[^\n]*: (\d+) s",
    "no task done while rotating s": r"no task was done for (\d+) s",
    "upgrade s": r"upgrade ray_version=\S+ within=\d+: (\d+) s",
    "no task begun on servers while upgrading s": r"Ray \S+: no task began on a server for (\d+) s",
}


def operate() -> Mapping[str, object]:
    """Backup, restore, drain, reboot, new secrets, another Ray, each under load but the first two."""
    if not LOG.exists():
        sys.exit("operate: there is no log of the scenario. Fix: make test SCENARIO=operate, then this again")
    return read(LOG.read_text())


def read(log: str) -> dict[str, object]:
    """The figures in a log; those that it lacks are left out."""
    found = {name: re.findall(pattern, log) for name, pattern in FIGURES.items()}
    return {name: seen[-1] if isinstance(seen[-1], tuple) else int(seen[-1]) for name, seen in found.items() if seen}
