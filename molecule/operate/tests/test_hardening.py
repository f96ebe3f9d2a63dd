"""Hosts are strict, nobody is locked out by that, and what a scanner still finds is told."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
from ray_lab import Lab, until
from scanners import listed, lynis

LAB = Lab(os.environ.get("MOLECULE_SCENARIO_NAME", "operate"))
HOST = "server2"
DROP_IN = "/etc/ssh/sshd_config.d/10-muster.conf"


def harden(*arguments: str, fails: bool = False) -> str:
    words = [part for one in arguments for part in ("-e", one)]
    # As a part of site.yml: what comes with it is known, and goes when Muster leaves.
    run = LAB.play("site.yml", "--tags", "hardening", "--limit", HOST, *words)
    assert (run.returncode != 0) == fails, run.stdout[-6000:] + run.stderr[-2000:]
    return " ".join(run.stdout.split())


def reached() -> bool:
    """By a login that is a new one."""
    return LAB.play("playbooks/hardening.yml", "--limit", HOST, "--check").returncode == 0


def obeys() -> str:
    return LAB.on(HOST, "sshd", "-T")


def test_the_kernel_has_what_services_ask_for() -> None:
    assert LAB.on(HOST, "cat", "/proc/sys/net/core/somaxconn").strip() == "8192"
    assert "net.core.somaxconn = 8192" in LAB.on(HOST, "cat", "/etc/sysctl.d/60-muster.conf")


def test_a_host_that_is_reached_by_a_password_is_refused() -> None:
    said = harden("hardening_ssh=true", "ansible_password=secret", fails=True)
    assert "is reached with a password, and hardening_ssh refuses passwords. Fix: ssh-copy-id" in said, said[-3000:]
    assert "10-muster" not in LAB.on(HOST, "ls", "/etc/ssh/sshd_config.d")


def test_passwords_are_refused_and_it_goes_again() -> None:
    assert "passwordauthentication yes" in obeys()
    harden("hardening_ssh=true")
    assert "passwordauthentication no" in obeys() and "maxauthtries 4" in obeys()
    assert "changed=0" in harden("hardening_ssh=true")
    assert "muster-ssh-back" not in LAB.on(HOST, "systemctl", "list-timers", "--all", "--no-legend")
    harden()
    assert "passwordauthentication yes" in obeys()
    assert "10-muster" not in LAB.on(HOST, "ls", "/etc/ssh/sshd_config.d")
    assert "changed=0" in harden()


def test_who_locks_himself_out_is_let_in_again() -> None:
    said = harden(
        '{"hardening_ssh": true, "hardening_ssh_options": {"AllowUsers": "nobody"}, "hardening_ssh_patience": 20}',
        fails=True,
    )
    assert "the SSH server's new settings do not work" in said and "within 20 s" in said, said[-3000:]
    until(60, "it is as before", lambda: "10-muster" not in LAB.on(HOST, "ls", "/etc/ssh/sshd_config.d"))
    assert reached() and "allowusers" not in obeys()


def test_settings_that_the_server_does_not_understand_change_nothing() -> None:
    harden('{"hardening_ssh": true, "hardening_ssh_options": {"NoSuchWord": "yes"}}', fails=True)
    assert "10-muster.conf\n" not in LAB.on(HOST, "ls", "/etc/ssh/sshd_config.d")
    assert reached()


def test_security_updates_come_by_themselves_and_reboot_nothing() -> None:
    harden("hardening_updates=true")
    said = LAB.on(HOST, "apt-config", "dump")
    assert 'APT::Periodic::Unattended-Upgrade "1";' in said and 'Unattended-Upgrade::Automatic-Reboot "false";' in said
    assert LAB.on(HOST, "systemctl", "is-enabled", "unattended-upgrades.service").strip() == "enabled"
    assert "changed=0" in harden("hardening_updates=true")
    harden()
    assert "60muster" not in LAB.on(HOST, "ls", "/etc/apt/apt.conf.d")


def test_what_lynis_finds_is_told_with_its_reason(tmp_path: Path) -> None:
    found = lynis(LAB, "server1", tmp_path)
    assert not found["warning"] - set(listed("Hosts"))
    assert not found["suggestion"] - set(listed("Hosts"))
