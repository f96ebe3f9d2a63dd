"""For the tests of all scenarios: a failing test comes with what its host has to say; some wait until it is quiet."""

import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

EVIDENCE = {
    "units that failed": "systemctl --failed --no-legend",
    "containers": "docker ps --all --format '{{.Names}}: {{.Status}}' 2>/dev/null",
    "container logs": "for c in $(docker ps -aq 2>/dev/null); do docker logs --tail 15 $c 2>&1; done",
    "journal": "journalctl --no-pager --lines 30 --priority notice",
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "quiet: wants the machine for itself, for what it measures or breaks")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What wants to be alone comes last."""
    items.sort(key=lambda item: item.get_closest_marker("quiet") is not None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """make test says when nothing else runs; by hand nobody waits."""
    quiet = os.environ.get("MUSTER_QUIET")
    while quiet and item.get_closest_marker("quiet") and not Path(quiet).exists():
        time.sleep(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    host: Any = getattr(item, "funcargs", {}).get("host")
    if report.failed and host is not None:
        for title, command in EVIDENCE.items():
            try:
                found = host.run(command)
            except Exception as error:  # the host may be what failed
                report.sections.append((title, repr(error)))
                break
            text = (found.stdout + found.stderr).strip()
            if text:
                report.sections.append((f"{title} of {host.backend.hostname or host.backend}", text))
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What tests measured on the way (they print it) is kept with the result."""
    for report in terminalreporter.stats.get("passed", []):
        for line in report.capstdout.splitlines():
            terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: {line}")
