"""A site without internet: all comes from the bundle, and not one packet of the hosts leaves the lab."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
from ray_lab import ROOT, Lab

LAB = Lab("offline")
BUNDLE = ROOT / ".lab/offline/bundle"
HOSTS = ("head", "server1")


def left() -> int:
    """Packets that the hosts sent to somebody outside."""
    done = subprocess.run([ROOT / "molecule/offline/cut", "count"], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_the_cluster_came_up_and_no_packet_left() -> None:
    """converge.yml ended with a try of the whole cluster; that the counter counts is shown last."""
    assert left() == 0
    for host in HOSTS:
        # Both belong to nobody.
        for address in ("192.0.2.1", "2001:db8::1"):
            before = left()
            LAB.on(host, "bash", "-c", f"timeout 1 bash -c '</dev/tcp/{address}/80'", check=False)
            assert left() > before, f"what {host} sends to {address} is not counted"


def test_images_and_packages_are_those_of_the_bundle() -> None:
    says = json.loads((BUNDLE / "bundle.json").read_text())
    for host in HOSTS:
        images = LAB.on(host, "docker", "images", "--format", "{{.Repository}}:{{.Tag}}").split()
        assert set(images) == {f"172.30.96.10:5000/muster/{name}:{one['tag']}" for name, one in says["images"].items()}
        came = LAB.on(host, "apt-cache", "-c", "/opt/muster/debs/apt.conf", "policy", "docker.io")
        assert "file:/opt/muster/debs" in came and "Installed: (none)" not in came
        own = LAB.on(host, "sh", "-c", "cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null; true")
        assert "muster" not in own


def test_a_second_run_changes_nothing() -> None:
    before = left()
    run = LAB.play("site.yml")
    assert run.returncode == 0, run.stdout[-4000:]
    assert not re.search(r"changed=[1-9]", run.stdout)
    assert left() == before


def test_the_controllers_tools_come_from_it(tmp_path: Path) -> None:
    """In a network of its own, which has no device but a loopback that is down."""
    subprocess.run(["tar", "-xzf", BUNDLE / "muster.tar.gz", "-C", tmp_path], check=True)
    clone = tmp_path / "muster"
    (clone / "bundle").symlink_to(BUNDLE)
    # Nor has it what uv kept from earlier.
    env = {**os.environ, "OFFLINE": "1", "HOME": str(tmp_path), "UV_CACHE_DIR": str(tmp_path / "uv")}
    env.pop("PYTHONPATH", "")
    command = ["unshare", "-rn", "scripts/bootstrap", "tools"]
    made = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    for command, said in (
        (["ansible", "--version"], str(clone)),
        (["muster", "--help"], "Looks after a Muster cluster"),
    ):
        ran = subprocess.run([clone / ".venv/bin" / command[0], *command[1:]], env=env, capture_output=True, text=True)
        assert ran.returncode == 0 and said in ran.stdout, ran.stderr


def test_one_that_suffered_on_the_way_changes_nothing(tmp_path: Path) -> None:
    # Links: it is large. The file that differs is a copy.
    subprocess.run(["cp", "-rs", f"{BUNDLE}/.", tmp_path], check=True)
    file = tmp_path / "debs/Debian-13.tar"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    file.write_bytes(content)
    run = LAB.play("site.yml", "-e", f"bundle_dir={tmp_path}")
    said = " ".join(run.stdout.split())
    assert run.returncode and f"{tmp_path}: debs/Debian-13.tar is not what was packed. Fix: copy it again" in said
    assert not re.search(r"changed=[1-9]", run.stdout)
