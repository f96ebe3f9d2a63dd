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
PKI = "/etc/muster/pki"
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
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "MOLECULE_SCENARIO_NAME": "pki"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


def changes(output: str) -> int:
    return sum(map(int, re.findall(r"^\S+\s+: ok=\d+\s+changed=(\d+)", output, re.M)))


def certificate(host: str, what: str, file: str = "host.crt") -> str:
    return on(name(host), "openssl", "x509", "-noout", f"-{what}", "-in", f"{PKI}/{file}")


def connect(host: str, address: str, server_name: str, shows_certificate: str = "yes") -> str:
    return on(name(host), "python3", "-c", CLIENT, address, server_name, shows_certificate).strip()


@pytest.fixture
def tls_server() -> None:
    on(name("server1"), "sh", "-c", 'kill $(cat /run/tls.pid) 2>/dev/null; python3 -c "$0" >/dev/null 2>&1 & echo $! >/run/tls.pid', SERVER)  # fmt: skip
    until(10, "the server listens", lambda: on(name("server1"), "ss", "-Hltn", f"sport = :{PORT}"))


@pytest.mark.parametrize("host", ADDRESSES)
def test_a_certificate_is_for_both_sides_of_a_connection(host: str) -> None:
    for purpose in ("sslserver", "sslclient"):
        on(name(host), "openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", f"{PKI}/ca.crt", f"{PKI}/host.crt")  # fmt: skip
    for check in (("-verify_hostname", host), ("-verify_hostname", "localhost"), ("-verify_ip", ADDRESSES[host])):
        on(name(host), "openssl", "verify", *check, "-CAfile", f"{PKI}/ca.crt", f"{PKI}/host.crt")


@pytest.mark.usefixtures("tls_server")
def test_hosts_know_each_other_by_address_and_by_name() -> None:
    for server_name in (ADDRESSES["server1"], "server1"):
        assert connect("server2", ADDRESSES["server1"], server_name) == "server2"


@pytest.mark.usefixtures("tls_server")
def test_nobody_is_served_without_a_certificate_or_under_another_name() -> None:
    with pytest.raises(AssertionError, match="(?i)certificate.required|alert|reset|EOF"):
        connect("server2", ADDRESSES["server1"], "server1", shows_certificate="no")
    with pytest.raises(AssertionError, match="(?i)mismatch"):
        connect("server2", ADDRESSES["server1"], "server2")


@pytest.mark.parametrize("host", ADDRESSES)
def test_a_host_has_its_own_key_and_no_other(host: str) -> None:
    keys = on(name(host), "sh", "-c", "grep -rlsE 'PRIVATE KEY' /etc/muster /opt/muster /var/lib/muster; true").split()
    assert keys == [f"{PKI}/host.key"]
    public = on(name(host), "openssl", "pkey", "-pubout", "-in", f"{PKI}/host.key")
    assert public == on(name(host), "openssl", "x509", "-noout", "-pubkey", "-in", f"{PKI}/host.crt")
    others = [certificate(other, "pubkey") for other in ADDRESSES if other != host]
    assert public not in others


@pytest.mark.parametrize("host", ADDRESSES)
def test_only_the_containers_user_reads_the_key(host: str) -> None:
    read = ("cat", f"{PKI}/host.key")
    on(name(host), "setpriv", "--reuid=10077", "--regid=10077", "--clear-groups", *read)
    with pytest.raises(AssertionError, match="Permission denied"):
        on(name(host), "setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *read)


def test_the_authority_is_closed_on_the_controller() -> None:
    store = Path(os.environ.get("MOLECULE_EPHEMERAL_DIRECTORY", ROOT / ".lab")) / "pki-secrets"
    open_to_others = [
        path for path in [store, *store.rglob("*")] if path.suffix != ".crt" and path.stat().st_mode & 0o077
    ]
    assert store.is_dir()
    assert not open_to_others


@pytest.mark.usefixtures("tls_server")
def test_a_certificate_near_its_end_is_renewed_and_still_known() -> None:
    authority, serial, public = certificate("server1", "serial", "ca.crt"), certificate("server1", "serial"), certificate("server1", "pubkey")  # fmt: skip
    assert changes(play("--extra-vars=pki_renew_before_days=826")) >= len(ADDRESSES)
    assert certificate("server1", "serial") != serial
    assert certificate("server1", "serial", "ca.crt") == authority
    assert certificate("server1", "pubkey") == public
    # The server still shows the certificate that it was started with: nobody has to restart in a hurry.
    assert connect("server2", ADDRESSES["server1"], "server1") == "server2"
    assert changes(play()) == 0


def test_a_new_name_is_in_the_next_certificate() -> None:
    assert changes(play('--extra-vars={"pki_extra_names": ["DNS:cluster.example.org"]}', "--limit=server2")) >= 1
    on(name("server2"), "openssl", "verify", "-verify_hostname", "cluster.example.org", "-CAfile", f"{PKI}/ca.crt", f"{PKI}/host.crt")  # fmt: skip


@pytest.mark.usefixtures("tls_server")
def test_a_new_authority_is_trusted_by_hosts_that_have_the_old_one() -> None:
    old = certificate("server1", "serial", "ca.crt")
    play("--extra-vars=pki_renew_before_days=3651", "--limit=server2")
    assert certificate("server2", "serial", "ca.crt") != old
    assert certificate("server1", "serial", "ca.crt") == old
    for client, server in (("server2", "server1"), ("server1", "server1")):
        assert connect(client, ADDRESSES[server], server) == client
