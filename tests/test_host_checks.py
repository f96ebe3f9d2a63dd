"""Unfit hosts: what the probe saw becomes one line per flaw."""

from typing import Any

import pytest

from muster import preflight

from .conftest import Inventories, probed

GOOD: dict[str, Any] = {
    "architecture": "x86_64",
    "blocked": [],
    "clock_skew": 0.3,
    "cpus": 8,
    "disk_free_gb": 100.0,
    "disk_gb": 200.0,
    "docker": "26.1.5",
    "firewall": True,
    "folder": "",
    "gpus": [],
    "listening": [{"port": 22, "uid": 0, "process": "sshd"}],
    "memory_mb": 16000,
    "os": "Debian 13",
    "os_id": "debian",
    "os_version": "13",
    "python": "3.13.5",
    "ssh_client": "198.51.100.7",
    "ssh_port": 22,
}
NAMES = ["head", "server1", "laptop1"]


def problems(
    inventories: Inventories, probes: dict[str, Any] | None = None, asleep: tuple[str, ...] = (), **changes: Any
) -> list[str]:
    hostvars, groups = inventories.load(**changes)
    seen = {name: dict(GOOD) for name in NAMES}
    for name, values in (probes or {}).items():
        seen[name] = values if {"silent", "refused", "broken"} & set(values) else {**GOOD, **values}
    return preflight.host_problems(probed(hostvars, seen), {**groups, "asleep": list(asleep)}, NAMES)


def test_fit_hosts_have_none(inventories: Inventories) -> None:
    assert problems(inventories) == []


@pytest.mark.parametrize(
    ("seen", "line"),
    [
        (
            {"silent": "no answer within 4 s"},
            "does not answer at 192.0.2.11 (no answer within 4 s). Fix: start the machine",
        ),
        (
            {"refused": "Permission denied"},
            "192.0.2.11 refuses the login (Permission denied). Fix: correct ansible_user",
        ),
        (
            {"broken": "python3: not found"},
            "answers at 192.0.2.11, but cannot run Ansible's modules (python3: not found)",
        ),
        (
            {"os": "Fedora 42", "os_id": "fedora", "os_version": "42"},
            "runs Fedora 42, which is not supported. Fix: install",
        ),
        ({"os": "Debian 11", "os_version": "11"}, "runs Debian 11, which is not supported. Fix: install one of these"),
        ({"python": "3.8.10"}, "Python is 3.8.10. Fix: install Python 3.9 or newer"),
        (
            {"architecture": "aarch64"},
            "its architecture is aarch64, the head's is x86_64. Fix: take it out of the cluster",
        ),
        ({"disk_free_gb": 3.25}, "3.2 GB are free under /var/lib, images and data need 10 GB. Fix: make room"),
        ({"folder": "is not there"}, "storage_path  is not there. Fix: mount it there, or correct storage_path"),
        ({"clock_skew": -90.0}, "its clock is 90 s behind. Fix: run a time service on it"),
        ({"clock_skew": 7.0}, "its clock is 7 s ahead. Fix: run a time service on it"),
        (
            {"listening": [{"port": 24300, "uid": 33, "process": "nginx"}]},
            "port 24300, planned for Ray node worker-1, is taken by nginx. Fix: stop that program",
        ),
        ({"memory_mb": 3036}, "a worker would get 412M of memory, it needs 640M at least. Fix: lower ray_workers"),
        (
            {"memory_mb": 1500},
            "nothing is left for Ray workers: the host has 1.5G, and 2.6G are kept for it, for Celery",
        ),
        (
            {"blocked": [{"host": "head", "port": 6379, "why": "no answer within 1.5 s"}]},
            None,  # The head's own firewall opens the port later in the run.
        ),
    ],
)
def test_a_flaw(inventories: Inventories, seen: dict[str, Any], line: str | None) -> None:
    found = problems(inventories, {"server1": seen})
    assert len(found) == (1 if line else 0), found
    assert not line or found[0].startswith(f"server1: {line}"), found


def test_a_port_blocked_on_the_way(inventories: Inventories) -> None:
    miss = {"blocked": [{"host": "head", "port": 6379, "why": "no answer within 1.5 s"}]}
    (line,) = problems(inventories, {"server1": miss, "head": {"firewall": False}})
    assert line.startswith(
        "server1: cannot reach head on port 6379 (no answer within 1.5 s). Fix: open the cluster's ports"
    )


def test_a_dead_head_is_one_problem_and_not_one_per_host(inventories: Inventories) -> None:
    miss = {"blocked": [{"host": "head", "port": 6379, "why": "no route"}]}
    assert len(problems(inventories, {"head": {"silent": "no route"}, "server1": miss, "laptop1": miss})) == 1


def test_a_sleeping_laptop_is_no_problem(inventories: Inventories) -> None:
    assert problems(inventories, {"laptop1": {"silent": "no answer"}}, asleep=("laptop1",)) == []


def test_ports_that_our_own_services_hold_are_not_taken(inventories: Inventories) -> None:
    ours = {
        "listening": [{"port": 24300, "uid": 10077, "process": "raylet"}, {"port": 9999, "uid": 33, "process": "nginx"}]
    }
    assert problems(inventories, {"server1": ours}) == []


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        (
            {"ray_workers": 4, "ray_worker_memory": "6G", "ray_worker_cpus": 2},
            "server1: 4 workers ask for 24.0G of memory, the host has 15.6G and keeps 2.6G for itself and Celery. Fix:",
        ),
        ({"ray_workers": 4, "ray_worker_cpus": 3}, "server1: 4 workers ask for 12 CPUs, the host has 8. Fix: lower"),
        ({"ray_worker_gpus": 1}, "server1: the workers ask for 1 GPUs, the host has 0. Fix: lower ray_worker_gpus"),
        (
            {"ufw_ssh_networks": ["10.0.0.0/8"]},
            "server1: the firewall would shut out this very connection, from 198.51.100.7 to",
        ),
    ],
)
def test_what_is_asked_of_a_host(inventories: Inventories, variables: dict[str, Any], line: str) -> None:
    found = problems(inventories, server1=variables)
    assert len(found) == 1 and found[0].startswith(line), found


@pytest.mark.parametrize("client", ["198.51.100.7", "::ffff:198.51.100.7", ""])
def test_a_connection_that_stays_open(inventories: Inventories, client: str) -> None:
    assert (
        problems(inventories, {"server1": {"ssh_client": client}}, server1={"ufw_ssh_networks": ["198.51.100.0/24"]})
        == []
    )


def test_a_head_larger_than_its_host(inventories: Inventories) -> None:
    (line,) = problems(inventories, {"head": {"memory_mb": 1024}})
    assert line.startswith("head: ray_head_memory is 2.0G, the host has 1.0G. Fix: lower ray_head_memory")


def test_celery_alone_larger_than_its_host(inventories: Inventories) -> None:
    workers = [{"queues": ["default"], "concurrency": 8, "child_memory": "2G"}]
    (line,) = problems(inventories, server1={"ray_workers": 0, "celery_workers": workers})
    assert line.startswith(
        "server1: Celery and the small services ask for 16.6G of memory and 1.0G are kept for the host"
    )


def test_all_flaws_of_all_hosts_at_once(inventories: Inventories) -> None:
    bad = {"python": "3.6.8", "clock_skew": 60.0, "disk_free_gb": 0.5}
    assert len(problems(inventories, {"head": bad, "server1": {**bad, "os_version": "9", "os": "Debian 9"}})) == 4
