"""What a benchmark for containers would find fault with is in docs/security.md with its reason, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
from ray_lab import Lab
from scanners import containers, listed

LAB = Lab("cluster")


def test_what_is_not_as_the_benchmark_wants_it_is_told_with_its_reason() -> None:
    told, found = listed("Containers"), {}
    for host in ("head", "server1", "laptop1"):
        for finding, services in containers(LAB, host).items():
            found.setdefault(finding, set()).update(services)
    untold = {
        finding: services - told.get(finding, set())
        for finding, services in found.items()
        if "all" not in told.get(finding, set()) and services - told.get(finding, set())
    }
    assert not untold
    # What is no longer so is not told.
    assert set(told) == set(found)
