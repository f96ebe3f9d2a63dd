"""Preflight against real hosts: what is wrong with them is told, in one go, and nothing is changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
INVENTORIES = [ROOT / "inventory/lab/groups.yml", ROOT / "molecule/preflight/inventory/hosts.yml"]
REPORT = ROOT / "reports/lab/hardware.json"
SECONDS = 30  # For the whole command, on a busy machine; it takes about three.


def preflight(*arguments: str, playbook: str = "playbooks/preflight.yml") -> subprocess.CompletedProcess[str]:
    sources = [f"--inventory={path}" for path in INVENTORIES]
    return subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", *sources, playbook, *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORCE_COLOR": "0",
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def problems(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of the verdict."""
    lines = done.stdout.split("msg: |-")[-1].splitlines()
    start = next((n for n, line in enumerate(lines) if "Preflight found" in line), None)
    assert start is not None, done.stdout + done.stderr
    found = []
    for line in lines[start + 1 :]:
        if not line.strip():
            break
        found.append(line.strip())
    return found


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout


def on(host: str, command: str) -> str:
    return docker("exec", f"preflight-{host}", "sh", "-c", command)


@contextmanager
def paused(host: str) -> Iterator[None]:
    docker("pause", f"preflight-{host}")
    try:
        yield
    finally:
        docker("unpause", f"preflight-{host}")


def test_fit_hosts_pass_quickly_and_nothing_changes() -> None:
    started = time.monotonic()
    done = preflight()
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - started < SECONDS
    assert "changed=0" in done.stdout and "changed=1" not in done.stdout
    assert {row["host"] for row in json.loads(REPORT.read_text())} >= {"head", "server1", "laptop1", "controller"}


def test_check_mode_limit_and_tags_work() -> None:
    for arguments in (
        ["--check"],
        ["--limit=server1"],
        ["--tags=ufw"],
        ["--check", "--limit=laptop1", "--tags=preflight"],
    ):
        done = preflight(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"


def test_a_sleeping_laptop_is_left_in_peace() -> None:
    with paused("laptop1"):
        started = time.monotonic()
        done = preflight("-v")
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - started < SECONDS
    assert "silent: no answer within 4 s" in done.stdout


def test_a_server_that_does_not_answer_stops_the_run() -> None:
    with paused("server1"):
        done = preflight()
    assert done.returncode != 0
    assert problems(done) == [
        "server1: does not answer at 172.30.99.11 (no answer within 4 s). "
        "Fix: start the machine, or correct ansible_host; try: ssh 172.30.99.11."
    ]


def test_a_typo_on_the_command_line_stops_the_whole_of_site_yml_before_it_changes_anything() -> None:
    done = preflight("-e", "ray_wrokers=5", playbook="site.yml")
    assert done.returncode != 0
    (line,) = problems(done)
    assert line.startswith("-e: the variable ray_wrokers is unknown. Fix: write ray_workers, or name it in")
    assert "changed=0" in done.stdout and "changed=1" not in done.stdout
    assert on("server1", "ls /etc/muster /opt/muster 2>/dev/null || true") == ""


def test_workers_larger_than_the_host() -> None:
    (line,) = problems(preflight("-e", "ray_worker_memory=900G"))
    assert line.startswith("server1: 1 worker asks for 900.0G of memory, the host has ")


@contextmanager
def listener(host: str, port: int) -> Iterator[None]:
    serve = f"s = socket.create_server(('', {port})); print(os.getpid(), flush=True); time.sleep(90)"
    command = ["docker", "exec", f"preflight-{host}", "python3", "-c", f"import os, socket, time; {serve}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        try:
            yield
        finally:
            on(host, f"kill {pid}")


def test_a_port_that_somebody_else_holds() -> None:
    with listener("server1", 24300):
        found = problems(preflight())
    assert found == [
        "server1: port 24300, planned for Ray node worker-1, is taken by python3. "
        "Fix: stop that program, or give the service another port in muster_ports_extra."
    ]


def test_a_firewall_that_would_shut_us_out() -> None:
    found = problems(preflight("-e", '{"ufw_ssh_networks": ["192.0.2.0/24"]}'))
    assert len(found) == 1 and "would shut out this very connection, from 172.30.0.1 to port 22" in found[0], found


def test_all_problems_of_all_hosts_are_told_in_one_go() -> None:
    extra = ["-e", "ray_worker_memory=900G", "-e", "ray_wrokers=5", "-e", "preflight_free_disk_gb=900000"]
    with paused("head"), listener("server1", 9100), listener("laptop1", 9100):
        found = problems(preflight(*extra))
    beginnings = [
        "-e: the variable ray_wrokers is unknown.",
        "head: does not answer at 172.30.99.10 ",
        "server1: 1 worker asks for 900.0G of memory",
        "server1, laptop1: port 9100, planned for node_exporter, is taken by python3.",
    ]
    # How much is free may change while they are asked: one line or two.
    short = [line for line in found if "free under /var/lib, images and data need 900000 GB" in line]
    assert " ".join(short).count("server1") == " ".join(short).count("laptop1") == 1, found
    others = [line for line in found if line not in short]
    assert len(others) == len(beginnings), found
    assert all(line.startswith(beginning) for line, beginning in zip(others, beginnings, strict=True)), found


def test_the_clocks_of_hosts_on_one_machine_agree() -> None:
    # What the way to the host and back takes is no skew, however little of it is allowed.
    done = preflight("-e", "preflight_clock_skew=0")
    assert done.returncode == 0, done.stdout


def test_no_interpreter_no_modules() -> None:
    (line,) = problems(preflight("--limit=server1", "-e", "ansible_python_interpreter=/usr/bin/nothing"))
    assert line.startswith("server1: answers at 172.30.99.11, but cannot run Ansible's modules (")


def test_a_login_that_is_refused() -> None:
    found = problems(preflight("--limit=laptop1", "-e", "ansible_user=stranger"))
    assert len(found) == 1 and found[0].startswith("laptop1: 172.30.99.101 refuses the login ("), found
