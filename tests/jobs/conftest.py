"""Jobs with a real Ray on this machine, in .venv-jobs: the libraries of the `ml` image (scripts/bootstrap jobs)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ..conftest import ROOT

os.environ |= {
    # Without it Ray's processes would not find the jobs.
    "PYTHONPATH": os.fspath(ROOT),
    # A busy machine takes longer than Ray expects to start.
    "RAY_raylet_start_wait_time_s": "180",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
}


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """Two CPUs, as the lab's workers have; jobs find it as they find a cluster."""
    import ray

    # One of its own, whatever else runs on this machine.
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=500 * 2**20,
        # Figures come and go faster than in 10 s.
        _system_config={"metrics_report_interval_ms": 1000},
    )  # fmt: skip
    yield
    ray.shutdown()
