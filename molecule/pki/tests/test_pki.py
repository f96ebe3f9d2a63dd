"""Hosts know each other by certificates of one authority, and none has another's key."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
STORE = ROOT / ".secrets/lab/pki"
ADDRESSES = {"server1": "172.30.93.11", "server2": "172.30.93.12"}
PKI = "/etc/muster/pki"

SERVE = f"""
import ssl, socket
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile="{PKI}/ca.crt")
context.verify_mode = ssl.CERT_REQUIRED
context.load_cert_chain("{PKI}/host.crt", "{PKI}/host.key")
with socket.create_server(("0.0.0.0", 24999)) as server:
    print("ready", flush=True)
    while True:
        try:
            with context.wrap_socket(server.accept()[0], server_side=True) as peer:
                peer.sendall(dict(part[0] for part in peer.getpeercert()["subject"])["commonName"].encode())
        except (OSError, ssl.SSLError):
            pass
"""
GREET = """
import ssl, socket, sys
address, with_certificate = sys.argv[1], sys.argv[2] == "yes"
context = ssl.create_default_context(cafile="/etc/muster/pki/ca.crt")
if with_certificate:
    context.load_cert_chain("/etc/muster/pki/host.crt", "/etc/muster/pki/host.key")
with context.wrap_socket(socket.create_connection((address, 24999), 5), server_hostname=address) as peer:
    print(peer.recv(100).decode())
"""


def on(host: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", "exec", f"pki-{host}", *command], capture_output=True, text=True)


def play(*arguments: str) -> str:
    inventory = ["-i", "inventory/lab/groups.yml", "-i", "molecule/pki/inventory/hosts.yml"]
    environment = dict(os.environ, ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"), MOLECULE_SCENARIO_NAME="pki")
    run = subprocess.run(
        ["ansible-playbook", *inventory, "playbooks/pki.yml", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.parametrize("host", ADDRESSES)
def test_the_authority_vouches_for_the_host(host: str) -> None:
    run = on(host, "openssl", "verify", "-CAfile", f"{PKI}/ca.crt", "-verify_ip", ADDRESSES[host], f"{PKI}/host.crt")
    assert run.returncode == 0, run.stdout + run.stderr


def test_hosts_greet_each_other_and_refuse_strangers() -> None:
    server = subprocess.Popen(
        ["docker", "exec", "pki-server1", "timeout", "60", "python3", "-c", SERVE], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline().strip() == "ready"
        known = on("server2", "python3", "-c", GREET, ADDRESSES["server1"], "yes")
        assert known.stdout.strip() == "server2", known.stderr
        unknown = on("server2", "python3", "-c", GREET, ADDRESSES["server1"], "no")
        assert unknown.stdout.strip() == ""
    finally:
        server.kill()
        server.wait()


def test_a_host_has_its_own_key_and_no_other() -> None:
    keys = {}
    for host in ADDRESSES:
        assert on(host, "ls", PKI).stdout.split() == ["ca.crt", "host.crt", "host.key"]
        assert on(host, "stat", "-c", "%a %u %g", f"{PKI}/host.key").stdout.split() == ["440", "0", "10077"]
        keys[host] = on(host, "cat", f"{PKI}/host.key").stdout
        assert (STORE / f"hosts/{host}_{ADDRESSES[host]}.key").read_text() == keys[host]
    assert len(set(keys.values())) == len(ADDRESSES)


def test_the_store_is_closed_to_other_users_of_the_controller() -> None:
    for path in (STORE / "ca.key", *STORE.glob("hosts/*.key")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_certificate_near_its_end_is_renewed_and_the_key_stays() -> None:
    before = {name: on("server1", "cat", f"{PKI}/{name}").stdout for name in ("ca.crt", "host.crt", "host.key")}
    # The host's certificate has less than 1,000 days left, the authority has more.
    play("--limit", "server1", "-e", "pki_renew_before_days=1000", "-e", "pki_host_days=1200")
    after = {name: on("server1", "cat", f"{PKI}/{name}").stdout for name in before}
    assert after["host.crt"] != before["host.crt"]
    assert after["ca.crt"] == before["ca.crt"]
    assert after["host.key"] == before["host.key"]
    assert "changed=0" in play("--limit", "server1")


def test_a_new_name_means_a_new_certificate() -> None:
    play("--limit", "server2", "-e", '{"pki_extra_names": ["DNS:cluster.example.org"]}')
    text = on("server2", "openssl", "x509", "-noout", "-ext", "subjectAltName", "-in", f"{PKI}/host.crt").stdout
    assert "cluster.example.org" in text
    play("--limit", "server2")
