"""What certificates are for: hosts that know each other, strangers that do not, renewal before it is too late."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "molecule/shared"))
from canary import on, until  # noqa: E402

ADDRESSES = {"server1": "172.30.93.11", "server2": "172.30.93.12"}
STORE = Path(os.environ.get("MOLECULE_EPHEMERAL_DIRECTORY", ROOT / ".lab")) / "pki-secrets/pki"
PKI = "/etc/muster/pki"
VERIFY = ("openssl", "verify", "-x509_strict", "-CAfile", f"{PKI}/ca.crt")
PORT = 4433

SERVER = f"""
import socket, ssl
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile="{PKI}/ca.crt")
context.verify_mode = ssl.CERT_REQUIRED
context.load_cert_chain("{PKI}/host.crt", "{PKI}/host.key")
with socket.create_server(("0.0.0.0", {PORT})) as server:
    while True:
        connection, _ = server.accept()
        try:
            with context.wrap_socket(connection, server_side=True) as guest:
                names = [value for key, value in guest.getpeercert()["subjectAltName"] if key == "DNS"]
                guest.sendall(names[0].encode())
        except (ssl.SSLError, OSError):
            pass
"""
CLIENT = f"""
import socket, ssl, sys
address, name, shows_certificate = sys.argv[1:]
context = ssl.create_default_context(cafile="{PKI}/ca.crt")
if shows_certificate == "yes":
    context.load_cert_chain("{PKI}/host.crt", "{PKI}/host.key")
with socket.create_connection((address, {PORT}), timeout=5) as plain:
    with context.wrap_socket(plain, server_hostname=name) as secure:
        print(secure.recv(100).decode())
"""


def name(host: str) -> str:
    return f"pki-{host}"


def play(*arguments: str) -> str:
    """Run the playbook again, with other settings."""
    inventories = ["inventory/lab/groups.yml", "molecule/pki/inventory/hosts.yml"]
    done = subprocess.run(
        ["ansible-playbook", *(f"--inventory={path}" for path in inventories), "molecule/pki/converge.yml", *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_FORCE_COLOR": "0",
            "MOLECULE_SCENARIO_NAME": "pki",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


def changes(output: str) -> dict[str, int]:
    """Changes per host, from a play's recap."""
    recap = re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", output, re.M)
    assert recap, output
    return {host: int(count) for host, count in recap}


def certificate(host: str, what: str, file: str = "host.crt") -> str:
    return on(name(host), "openssl", "x509", "-noout", f"-{what}", "-in", f"{PKI}/{file}")


def connect(host: str, address: str, server_name: str, shows_certificate: str = "yes") -> str:
    return on(name(host), "python3", "-c", CLIENT, address, server_name, shows_certificate).strip()


@pytest.fixture
def tls_server() -> None:
    restart = 'kill $(cat /run/tls.pid) 2>/dev/null; python3 -c "$0" >/dev/null 2>&1 & echo $! >/run/tls.pid'
    on(name("server1"), "sh", "-c", restart, SERVER)
    until(20, "the server listens", lambda: on(name("server1"), "ss", "-Hltn", f"sport = :{PORT}"))


@pytest.mark.parametrize("host", ADDRESSES)
def test_a_certificate_is_for_both_sides_of_a_connection(host: str) -> None:
    for purpose in ("sslserver", "sslclient"):
        on(name(host), *VERIFY, "-purpose", purpose, f"{PKI}/host.crt")
    for check in (("-verify_hostname", host), ("-verify_hostname", "localhost"), ("-verify_ip", ADDRESSES[host])):
        on(name(host), *VERIFY, *check, f"{PKI}/host.crt")


@pytest.mark.usefixtures("tls_server")
def test_hosts_know_each_other_by_address_and_by_name() -> None:
    for server_name in (ADDRESSES["server1"], "server1"):
        assert connect("server2", ADDRESSES["server1"], server_name) == "server2"


@pytest.mark.usefixtures("tls_server")
def test_nobody_is_served_without_a_certificate_or_under_another_name() -> None:
    with pytest.raises(AssertionError, match=r"(?i)alert|reset|EOF"):
        connect("server2", ADDRESSES["server1"], "server1", shows_certificate="no")
    with pytest.raises(AssertionError, match=r"(?i)mismatch"):
        connect("server2", ADDRESSES["server1"], "server2")


@pytest.mark.parametrize("host", ADDRESSES)
def test_a_host_has_its_own_key_and_no_other(host: str) -> None:
    keys = on(name(host), "sh", "-c", "grep -rlsE 'PRIVATE KEY' /etc/muster /opt/muster /var/lib/muster; true").split()
    assert keys == [f"{PKI}/host.key"]
    public = on(name(host), "openssl", "pkey", "-pubout", "-in", f"{PKI}/host.key")
    assert public == certificate(host, "pubkey")
    assert public not in [certificate(other, "pubkey") for other in ADDRESSES if other != host]


@pytest.mark.parametrize("host", ADDRESSES)
def test_only_the_containers_user_reads_the_key(host: str) -> None:
    read = ("cat", f"{PKI}/host.key")
    on(name(host), "setpriv", "--reuid=10077", "--regid=10077", "--clear-groups", *read)
    with pytest.raises(AssertionError, match="Permission denied"):
        on(name(host), "setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *read)


def test_the_authority_is_closed_to_other_users_of_the_controller() -> None:
    closed = [STORE, *(path for path in STORE.rglob("*") if path.suffix != ".crt")]
    assert STORE / "ca.key" in closed
    assert [path for path in closed if path.stat().st_mode & 0o077] == []


@pytest.mark.usefixtures("tls_server")
def test_a_certificate_near_its_end_is_renewed_and_still_known() -> None:
    files = ("ca.crt", "host.crt", "host.key")
    before = {file: on(name("server1"), "cat", f"{PKI}/{file}") for file in files}
    # The hosts' certificates have 825 days left, the authority has more.
    assert all(changes(play("--extra-vars=pki_renew_before_days=826")).values())
    after = {file: on(name("server1"), "cat", f"{PKI}/{file}") for file in files}
    assert [file for file in files if before[file] != after[file]] == ["host.crt"]
    # The server still shows the certificate that it was started with: nobody has to restart in a hurry.
    assert connect("server2", ADDRESSES["server1"], "server1") == "server2"
    assert not any(changes(play()).values())


def test_a_new_name_is_in_a_new_certificate() -> None:
    play('--extra-vars={"pki_extra_names": ["DNS:cluster.example.org"]}', "--limit=server2")
    on(name("server2"), *VERIFY, "-verify_hostname", "cluster.example.org", f"{PKI}/host.crt")


@pytest.mark.usefixtures("tls_server")
def test_a_renewed_authority_and_the_one_before_trust_each_others_hosts() -> None:
    old = certificate("server1", "serial", "ca.crt")
    play("--extra-vars=pki_renew_before_days=3651", "--limit=server2")
    assert certificate("server2", "serial", "ca.crt") != old
    assert certificate("server1", "serial", "ca.crt") == old
    assert connect("server2", ADDRESSES["server1"], "server1") == "server2"
