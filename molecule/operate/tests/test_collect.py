"""A support bundle has what helps, of every host that answers, and no secret."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
from ray_lab import ROOT, Lab

LAB = Lab(os.environ.get("MOLECULE_SCENARIO_NAME", "operate"))
SECRETS = ROOT / ".secrets" / LAB.name
REPORTS = ROOT / "reports" / LAB.name
HOSTS = {"head", "server1"} | ({"server2"} if LAB.name == "operate" else set())
TEXTS = [
    *("code", "disk", "docker", "firewall", "journal", "kernel", "load", "network", "packages", "sysctl", "system"),
    *("units", "versions"),
]


def secrets() -> Iterator[str]:
    """Every password, and every line of every key."""
    for file in SECRETS.rglob("*"):
        if file.is_file() and file.suffix not in (".crt", ".csr", ".pub"):
            lines = file.read_text().splitlines()
            yield from [line for line in lines if "---" not in line] if "-----" in lines[0] else [lines[0].split()[0]]


def encoded(secret: str) -> Iterator[bytes]:
    """As base64 has it, wherever it begins in what is encoded."""
    for before in range(3):
        whole = base64.b64encode(b"-" * before + secret.encode() + b"-" * 3)
        yield whole[4:-8]


@pytest.fixture(scope="module")
def members() -> Iterator[dict[str, bytes]]:
    """A bundle from a time when a laptop is away, and a service has said what it should not."""
    token = (SECRETS / "ray_token").read_text().split()[0]
    wrapped = base64.b64encode(f"me:{token}".encode()).decode()
    script = f"echo 'planted {token} {wrapped}' >/proc/1/fd/1"
    LAB.inside("head", "prometheus-prometheus-1", "sh", "-c", script)
    before = set(REPORTS.glob("support-*"))
    LAB.freeze("laptop1")
    try:
        run = LAB.play("playbooks/collect.yml", "-e", "collect_lines=300")
    finally:
        LAB.thaw("laptop1")
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    (file,) = set(REPORTS.glob("support-*")) - before
    assert str(file) in run.stdout and "laptop1: no answer" in run.stdout
    assert file.stat().st_mode & 0o777 == 0o600
    with tarfile.open(file) as tar:
        yield {one.name.removeprefix("support/"): tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]
    file.unlink()


def test_it_has_every_host_that_answers(members: dict[str, bytes]) -> None:
    for host in HOSTS:
        assert {f"{host}/{name}.txt" for name in TEXTS} <= set(members)
        for name in LAB.on(host, "docker", "ps", "--format", "{{.Names}}").split():
            assert f"{host}/logs/{name}.txt" in members
        for project in LAB.on(host, "ls", "/opt/muster").split():
            assert project == "code" or f"{host}/settings/{project}/compose.yml" in members
        assert b"Status: active" in members[f"{host}/firewall.txt"]
        assert re.search(rb"^ray \d+\..*\ncelery \d+\.", members[f"{host}/versions.txt"], re.M)
        assert LAB.on(host, "readlink", "/opt/muster/code/current").strip().encode() in members[f"{host}/code.txt"]
        assert b"net.ipv4.ip_forward = 1" in members[f"{host}/sysctl.txt"]
        assert b"muster-host-figures" in members[f"{host}/journal.txt"]
    assert b'"server1/worker-1"' in members["status.json"]


def test_who_is_away_is_named(members: dict[str, bytes]) -> None:
    lines = members["hosts.txt"].decode().splitlines()
    assert [line.partition(":")[0] for line in lines] == sorted({*HOSTS, "laptop1"})
    assert [line for line in lines if "no answer" in line] == [lines[sorted({*HOSTS, "laptop1"}).index("laptop1")]]
    assert not [name for name in members if name.startswith("laptop1/")]


def test_no_secret_is_in_it(members: dict[str, bytes]) -> None:
    said = members["head/logs/prometheus-prometheus-1.txt"].decode()
    assert re.search(r"planted \*\*\* \S{2,8}\*\*\*", said), "what was planted is not there: this shows nothing"
    found = list(secrets())
    assert len(found) > 8
    for secret in found:
        for form in (secret.encode(), *encoded(secret)):
            assert len(form) > 8
            assert not [name for name, text in members.items() if form in text], secret[:4]
    assert not [
        name for name in members if "password" in name or "token" in name or name.endswith(("Caddyfile", ".acl"))
    ]


def test_a_check_writes_no_file() -> None:
    before = set(REPORTS.glob("*"))
    run = LAB.play("playbooks/collect.yml", "--check")
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert set(REPORTS.glob("*")) == before


def test_no_file_of_it_stays_where_git_finds_it() -> None:
    done = subprocess.run(["git", "check-ignore", "reports/x"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0
