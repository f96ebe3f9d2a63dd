"""Who reaches what, tried by connecting: from the cluster and from outside, over IPv4 and IPv6."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "molecule/shared"))
from canary import canary, canary_image, on, until  # noqa: E402

ADDRESSES = {"server1": "172.30.92.11", "server2": "172.30.92.12", "stranger": "172.30.92.250"}
ADDRESSES6 = {host: f"fd84:30::92:{address.rsplit('.', 1)[1]}" for host, address in ADDRESSES.items()}
SERVERS = ("server1", "server2")
# Something answers on each of these on both servers, as if every service ran. 9998 and 9999 belong to the canary.
LISTEN = [80, 443, 5000, 6379, 8265, 8888, 10001, 12345, 24000, 24001, 24300, 32767, 40000, 44217, 44227]
PUBLISHED, ROUTED = 9999, 9998

LISTENER = f"""
import socket, threading
def serve(port):
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        while True:
            server.accept()[0].close()
for port in {LISTEN}:
    threading.Thread(target=serve, args=(port,)).start()
"""
SCAN = """
import asyncio, json, sys
address, ports, wait = json.loads(sys.stdin.read())
async def answers(port):
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(address, port), wait)
        writer.close()
        return port
    except (OSError, asyncio.TimeoutError):
        return None
async def main():
    found = await asyncio.gather(*map(answers, ports))
    print(json.dumps([port for port in found if port]))
asyncio.run(main())
"""


def name(host: str) -> str:
    return f"ufw-{host}"


def scan(source: str, address: str, ports: list[int], wait: float = 2.0) -> list[int]:
    """The TCP ports that answer a host."""
    request = json.dumps([address, sorted(set(ports)), wait]).encode()
    found: list[int] = json.loads(on(name(source), "python3", "-c", SCAN, stdin=request))
    return found


def reaches(source: str, address: str, port: int) -> bool:
    return scan(source, address, [port]) == [port]


def play(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the scenario's playbook with other values."""
    inventories = ("inventory/lab/groups.yml", "molecule/ufw/inventory/hosts.yml")
    return subprocess.run(
        ["ansible-playbook", *(f"--inventory={ROOT / path}" for path in inventories),
         str(ROOT / "molecule/ufw/converge.yml"), *arguments],
        cwd=ROOT, env=dict(os.environ, ANSIBLE_CONFIG=str(ROOT / "ansible.cfg")), capture_output=True, text=True,
    )  # fmt: skip


def rules(host: str) -> str:
    """Everything about the firewall: what the kernel holds, and the files."""
    parts = [on(name(host), program, "-S") for program in ("iptables", "ip6tables")]
    parts.append(on(name(host), "sh", "-c", "sha256sum /etc/ufw/*.rules /etc/ufw/ufw.conf /etc/default/ufw"))
    return "\n".join(parts)


def listen(host: str) -> None:
    on(name(host), "systemd-run", "--unit=listeners", "--collect", "python3", "-c", LISTENER, check=False)
    until(10, f"{host} listens", lambda: set(LISTEN) <= set(scan(host, "127.0.0.1", LISTEN)))


def canary_answers(host: str) -> bool:
    return scan(host, ADDRESSES[host], [PUBLISHED]) == [PUBLISHED]


@pytest.fixture(scope="module", autouse=True)
def services() -> Iterator[None]:
    """Listeners on both servers, and containers that publish ports the careless way, over IPv6 too on server2."""
    for host in SERVERS:
        listen(host)
        canary_image(name(host))
    ports = ("--restart", "unless-stopped", "-p", f"{PUBLISHED}:8000", "-p", f"{ROUTED}:8000")
    on(name("server2"), "docker", "network", "create", "--ipv6", "--subnet", "fd84:92::/64", "six", check=False)
    canary(name("server1"), *ports)
    canary(name("server2"), "--network", "six", *ports)
    for host in SERVERS:
        until(15, f"{host}'s canary answers the host itself", partial(canary_answers, host))
    yield
    for host in SERVERS:
        on(name(host), "docker", "rm", "-f", "canary", check=False)
        on(name(host), "systemctl", "stop", "listeners", check=False)
    on(name("server2"), "docker", "network", "rm", "six", check=False)


def seen_from_outside(host: str) -> dict[str, list[int]]:
    """What answers the stranger, of all well-known ports and of those where something listens."""
    ports = [*range(1, 1025), *LISTEN, PUBLISHED, ROUTED]
    return {address: scan("stranger", address, ports, wait=4.0) for address in (ADDRESSES[host], ADDRESSES6[host])}


@pytest.mark.parametrize("server", SERVERS)
def test_a_stranger_sees_only_ssh_and_what_was_opened_to_it(server: str) -> None:
    assert seen_from_outside(server) == {ADDRESSES[server]: [22, 8888], ADDRESSES6[server]: [22, 443, 8888]}


def test_a_member_reaches_what_the_port_table_says() -> None:
    assert scan("server2", ADDRESSES["server1"], LISTEN) == [6379, 8888, 24000, 24001, 24300]
    # server1 is the head and server2 is not: no Ray control service to reach there.
    assert scan("server1", ADDRESSES["server2"], LISTEN) == [8888, 24300]


def test_a_published_port_is_open_to_whom_a_rule_names_and_to_nobody_else() -> None:
    assert scan("server2", ADDRESSES["server1"], [PUBLISHED, ROUTED]) == [ROUTED]
    assert scan("stranger", ADDRESSES["server1"], [PUBLISHED, ROUTED]) == []


def test_a_container_cannot_be_reached_around_its_published_port() -> None:
    address = on(
        name("server1"), "docker", "inspect", "-f", "{{.NetworkSettings.Networks.bridge.IPAddress}}", "canary"
    ).strip()
    assert reaches("server1", address, 8000)
    on(name("stranger"), "ip", "route", "replace", address, "via", ADDRESSES["server1"])
    try:
        assert not reaches("stranger", address, 8000)
    finally:
        on(name("stranger"), "ip", "route", "del", address)


def connects(host: str, container: str, address: str, port: int) -> bool:
    code = f"import socket; socket.create_connection(({address!r}, {port}), 3)"
    done = on(name(host), "docker", "exec", container, "sh", "-c", f'python3 -c "{code}" && echo yes', check=False)
    return done.strip() == "yes"


def test_containers_reach_the_outside_and_each_other() -> None:
    gate = on(
        name("server2"), "docker", "inspect", "-f", "{{.NetworkSettings.Networks.six.IPAddress}}", "canary"
    ).strip()
    canary(name("server2"), "--network", "six", command=("sleep", "infinity"), name="visitor")
    try:
        assert connects("server2", "visitor", gate, 8000)
        assert connects("server2", "visitor", ADDRESSES["server2"], PUBLISHED)
        assert connects("server2", "visitor", ADDRESSES["server1"], 6379)
        assert connects("server2", "visitor", ADDRESSES["stranger"], 22)
    finally:
        on(name("server2"), "docker", "rm", "-f", "visitor")


def guarded(host: str) -> list[int]:
    """The published ports that answer the stranger; there should be none."""
    return [
        port
        for address in (ADDRESSES[host], ADDRESSES6[host])
        for port in scan("stranger", address, [PUBLISHED, ROUTED], wait=1.0)
    ]


@pytest.mark.parametrize("server", SERVERS)
def test_the_guard_outlives_a_restart_of_docker_and_a_reload(server: str) -> None:
    for command in (("systemctl", "restart", "docker"), ("ufw", "reload"), ("systemctl", "restart", "ufw")):
        on(name(server), *command)
        until(20, "the canary answers the host itself", lambda: canary_answers(server))
        assert guarded(server) == [], command
    assert reaches("server2", ADDRESSES["server1"], ROUTED)


@pytest.mark.parametrize("server", SERVERS)
def test_the_guard_stands_all_through_a_reboot(server: str) -> None:
    on(name(server), "systemctl", "stop", "listeners", check=False)
    reboot = subprocess.Popen(["docker", "restart", name(server)], stdout=subprocess.DEVNULL)
    leaks: list[int] = []

    def back() -> bool:
        leaks.extend(guarded(server))
        assert reboot.poll() == 0, "still going down"
        return canary_answers(server)

    until(90, "the host and its canary are back", back)
    listen(server)
    assert leaks == [] and guarded(server) == []
    assert seen_from_outside(server) == {ADDRESSES[server]: [22, 8888], ADDRESSES6[server]: [22, 443, 8888]}


def test_the_status_says_who_may_reach_what_and_why() -> None:
    status = on(name("server1"), "ufw", "status")
    line = next(line for line in status.splitlines() if line.startswith("6379/tcp"))
    assert ADDRESSES["server2"] in line and "# Ray's control service" in line, status
    assert any("ALLOW FWD" in line and "# server2 may reach a container" in line for line in status.splitlines())


def test_a_rule_taken_out_of_the_inventory_is_gone_and_no_connection_is_cut() -> None:
    on(name("server1"), "ufw", "allow", "12345/tcp")
    assert reaches("stranger", ADDRESSES["server1"], 12345)
    key = ROOT / ".lab/id_ed25519"
    session = subprocess.Popen(
        ["ssh", "-i", str(key), "-S", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
         "-o", "LogLevel=ERROR", f"root@{ADDRESSES['server1']}", "cat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert session.stdin and session.stdout
    print("before", file=session.stdin, flush=True)
    assert session.stdout.readline() == "before\n"

    done = play("-e", json.dumps({"ufw_extra_rules": []}))
    assert done.returncode == 0, done.stdout[-3000:]
    for source in ("server2", "stranger"):
        assert scan(source, ADDRESSES["server1"], [8888, 12345, ROUTED]) == []
    assert scan("stranger", ADDRESSES6["server1"], [443, 8888, 12345]) == []

    output, _ = session.communicate("after\n", timeout=15)
    assert output == "after\n" and session.returncode == 0

    done = play()
    assert done.returncode == 0, done.stdout[-3000:]
    assert reaches("stranger", ADDRESSES["server1"], 8888)
    assert reaches("server2", ADDRESSES["server1"], ROUTED)


def test_an_inventory_that_would_lock_us_out_is_refused_before_anything_changes() -> None:
    before = {host: rules(host) for host in SERVERS}
    done = play("-e", json.dumps({"ufw_ssh_networks": ["10.9.9.0/24"]}))
    assert done.returncode != 0
    assert "would shut out the SSH connection in use, from 172.30.0.1 to port 22" in done.stdout.replace("\n", " ")
    assert {host: rules(host) for host in SERVERS} == before


def test_rules_flushed_by_hand_come_back_with_the_next_run() -> None:
    on(name("server1"), "iptables", "-F", "DOCKER-USER")
    assert reaches("stranger", ADDRESSES["server1"], PUBLISHED)
    done = play("--limit", "server1")
    assert done.returncode == 0, done.stdout[-3000:]
    assert guarded("server1") == []
