"""What only a whole cluster can promise: closed from outside, repeatable, and alive after its parts are killed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
from ray_lab import ROOT, Lab, until

LAB = Lab("cluster")
HOSTS = {
    "head": "172.30.90.10",
    "server1": "172.30.90.11",
    "server2": "172.30.90.12",
    "laptop1": "172.30.90.101",
}
HEAD = "ray_head-head-1"


def python_on_head(code: str, check: bool = True) -> str:
    """Run Python as a driver inside the head's container."""
    return LAB.on("head", "docker", "exec", "-i", HEAD, "python", "-", stdin=code, check=check)


def changed(output: str) -> dict[str, int]:
    """Count of changes per host from a play recap."""
    return {host: int(count) for host, count in re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", output, re.M)}


def alive_workers() -> dict[str, float]:
    """The CPUs of every Ray node that is alive, by its host label and node id; the head is left out."""
    listing = python_on_head(
        "import json, ray\n"
        "ray.init(address='auto', log_to_driver=False, logging_level='ERROR')\n"
        "print(json.dumps([n for n in ray.nodes() if n['Alive'] and n['Resources'].get('CPU')]))"
    )
    nodes = json.loads(listing.splitlines()[-1])
    return {f"{node['Labels']['host']}/{node['NodeID'][:8]}": node["Resources"]["CPU"] for node in nodes}


SCAN = """
import asyncio, json, sys
targets = json.loads(sys.stdin.read())
async def answers(address, port, gate):
    async with gate:
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(address, port), 1.5)
            writer.close()
            return port
        except (OSError, asyncio.TimeoutError):
            return None
async def main():
    gate = asyncio.Semaphore(400)
    seen = {}
    for address, ports in targets.items():
        found = await asyncio.gather(*(answers(address, port, gate) for port in ports))
        seen[address] = sorted(port for port in found if port)
    print(json.dumps(seen))
asyncio.run(main())
"""


def scan(source: str, targets: dict[str, list[int]]) -> dict[str, list[int]]:
    """The TCP ports that answer a host on the wire."""
    result: dict[str, list[int]] = json.loads(LAB.on(source, "python3", "-c", SCAN, stdin=json.dumps(targets)))
    return result


def listening(host: str) -> list[int]:
    """Every TCP port that something on the host listens on, wherever it is bound."""
    sockets = LAB.on(host, "ss", "-Hltn").splitlines()
    return sorted({int(line.split()[3].rsplit(":", 1)[1]) for line in sockets})


def address6(host: str) -> str:
    listing = json.loads(LAB.on(host, "ip", "-j", "-6", "addr", "show", "dev", "eth0", "scope", "global"))
    address: str = listing[0]["addr_info"][0]["local"]
    return address


@pytest.fixture
def canary() -> Iterator[int]:
    """A container on server1 that publishes a port the careless way."""
    image = LAB.on(
        "server1",
        "docker",
        "inspect",
        "-f",
        "{{.Image}}",
        next(iter(LAB.containers("server1", "ray_worker").values())),
    )
    LAB.on("server1", "docker", "run", "-d", "--rm", "--name", "canary", "-p", "9999:9999", "--entrypoint", "python",
       image.strip(), "-m", "http.server", "9999")  # fmt: skip
    until(30, "the canary answers on its own host", lambda: scan("server1", {"127.0.0.1": [9999]})["127.0.0.1"])
    yield 9999
    LAB.on("server1", "docker", "rm", "-f", "canary", check=False)


def test_check_mode_on_the_running_cluster_finds_nothing_to_change() -> None:
    run = LAB.play("site.yml", "--check")
    assert run.returncode == 0, run.stdout[-4000:]
    counts = changed(run.stdout)
    assert {host for host, count in counts.items() if count} == set(), run.stdout[-6000:]
    assert set(HOSTS) <= set(counts)


def test_every_planned_worker_is_alive_with_its_cpus() -> None:
    workers = alive_workers()
    assert sorted(name.split("/")[0] for name in workers) == ["server1", "server1", "server2"]
    assert set(workers.values()) == {1.0}


def test_outside_sees_only_ssh_and_the_gateway(canary: int) -> None:
    targets = {address: sorted({*listening(host), canary}) for host, address in HOSTS.items()}
    targets |= {address6(host): sorted({*listening(host), canary}) for host in HOSTS}
    listens = {
        6379: "Ray",
        6380: "the broker",
        5555: "Flower",
        9090: "Prometheus",
        9093: "Alertmanager",
        9540: "figures",
    }
    assert set(listens) <= set(targets[HOSTS["head"]]), "they do not even listen: the scan would prove nothing"
    seen = scan("stranger", targets)
    heads = {HOSTS["head"], address6("head")}
    # The gateway is there for all; everything behind it asks for a login (test_monitoring.py).
    assert seen == {address: [22, 443] if address in heads else [22] for address in targets}
    inside = scan("server2", {HOSTS["head"]: targets[HOSTS["head"]]})
    assert set(listens).intersection(inside[HOSTS["head"]]) == {6379, 6380}, "members reach Ray and the broker only"


def test_a_notebook_uses_ray_client_and_nothing_else() -> None:
    """As docs/connect.md says: a certificate of ours, the token, and a network in ray_client_networks."""
    seen = scan("notebook", {HOSTS["head"]: listening("head"), HOSTS["server1"]: listening("server1")})
    assert seen == {HOSTS["head"]: [22, 443, 10001], HOSTS["server1"]: [22]}
    code = (
        f"import ray; ray.init('ray://{HOSTS['head']}:10001'); "
        "print('sum', ray.get(ray.remote(num_cpus=0.1)(lambda: 1 + 2).remote()))"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in ("ca.crt", "host.crt", "host.key"):
            Path(folder, name).write_text(LAB.on("notebook", "cat", f"/etc/muster/pki/{name}"))
            Path(folder, name).chmod(0o644)
        Path(folder).chmod(0o755)
        image = LAB.on("head", "docker", "inspect", "-f", "{{.Config.Image}}", HEAD).strip()
        tls = {"RAY_USE_TLS": "1", "RAY_TLS_CA_CERT": "/pki/ca.crt", "RAY_TLS_SERVER_CERT": "/pki/host.crt",
               "RAY_TLS_SERVER_KEY": "/pki/host.key", "RAY_AUTH_MODE": "token"}  # fmt: skip
        token = (ROOT / ".secrets/lab/ray_token").read_text().strip()
        for secret, works in ((token, True), ("wrong" * 10, False)):
            environment = [f"-e{name}={value}" for name, value in (tls | {"RAY_AUTH_TOKEN": secret}).items()]
            # The notebook's own network, with the Python that its owner has installed.
            done = subprocess.run(
                ["docker", "run", "--rm", "--network", "container:cluster-notebook", "-v", f"{folder}:/pki:ro",
                 *environment, "--entrypoint", "timeout", image, "180", "python", "-c", code],
                capture_output=True, text=True,
            )  # fmt: skip
            # Why it did not is known to the head's process for notebooks.
            look = "tail -n 20 /var/lib/node/ray/session_latest/logs/ray_client_server*.err"
            why = LAB.inside("head", HEAD, "sh", "-c", look, check=False)
            assert ("sum 3" in done.stdout) == works, done.stdout[-2000:] + done.stderr[-3000:] + why[-6000:]


def preflight_seconds() -> float:
    """How long a run takes to find out who is there."""
    start = time.monotonic()
    run = LAB.play("playbooks/preflight.yml")
    assert run.returncode == 0, run.stdout[-4000:]
    return time.monotonic() - start


@pytest.mark.quiet
def test_a_sleeping_laptop_stops_nothing_and_is_brought_up_to_date_when_it_is_back() -> None:
    release = ("readlink", "/opt/muster/code/current")
    old, awake = LAB.on("laptop1", *release), preflight_seconds()
    (ROOT / ".lab/cluster_code/drill/while_it_slept.py").write_text(f"# {time.time()}\n")
    LAB.freeze("laptop1")
    try:
        asleep = preflight_seconds()
        print(f"a laptop that sleeps costs a run {asleep - awake:.1f} s")
        assert asleep < awake + 5
        run = LAB.play("site.yml", "--skip-tags", "smoke")
        assert run.returncode == 0, run.stdout[-4000:]
        assert "laptop1: away" in run.stdout
        new = LAB.on("server1", *release)
        assert new != old
    finally:
        LAB.thaw("laptop1")
    assert LAB.on("laptop1", *release) == old
    run = LAB.play("site.yml", "--skip-tags", "smoke")
    assert run.returncode == 0, run.stdout[-4000:]
    assert LAB.on("laptop1", *release) == new
    assert [host for host, count in changed(run.stdout).items() if count] == ["laptop1"], run.stdout[-4000:]


@pytest.mark.quiet
def test_a_power_cut_of_the_head_host_heals_by_itself() -> None:
    before = alive_workers()
    subprocess.run(["docker", "kill", "cluster-head"], check=True, capture_output=True)
    subprocess.run(["docker", "start", "cluster-head"], check=True, capture_output=True)
    start = time.monotonic()
    until(240, "the head and its nodes", lambda: len(alive_workers()) == len(before))
    print(f"head host cut: cluster whole after {time.monotonic() - start:.0f} s")
    seen = scan("stranger", {HOSTS["head"]: listening("head")})
    assert set(seen[HOSTS["head"]]) <= {22, 443}, "the firewall must be up again before the services"


WHERE = """
import json, time
from ray_jobs import guests
def where(number):
    import ray
    time.sleep(1)
    return ray.get_runtime_context().get_node_labels()["host"]
plain = ray.get([ray.remote(where).options(scheduling_strategy="SPREAD").remote(n) for n in range(12)])
bears = guests.each(where, [(n,) for n in range(12)])
print(json.dumps([sorted(set(plain)), sorted(set(bears))]))
"""


@pytest.mark.skipif("SOAK" not in os.environ, reason="takes minutes; joining and being lost without Ray: add_laptop")
def test_a_laptop_that_joins_with_ray_gets_what_bears_repetition_and_nothing_else() -> None:
    file = ROOT / "molecule/cluster/inventory/laptops.yml"
    file.unlink(missing_ok=True)
    run = LAB.play("add-laptop.yml", "-e", "host=guest", "-e", "ray=true", "-e", "cpus=1", "-e", "memory=1G")
    assert run.returncode == 0, run.stdout[-4000:]
    assert "guest: {ansible_host: 172.30.90.102, ray_on_laptop: true, ray_worker_cpus: 1," in file.read_text()
    until(120, "its Ray is there", lambda: "guest/worker-1" in LAB.nodes())
    plain, bears = json.loads(LAB.driver(WHERE).splitlines()[-1])
    assert "guest" not in plain and "guest" in bears, (plain, bears)
    LAB.freeze("guest")
    try:
        run = LAB.play("remove-laptop.yml", "-e", "host=guest", "-e", "lost=true")
        assert run.returncode == 0, run.stdout[-4000:]
        assert "It knew the token of Ray" in run.stdout and "guest" not in file.read_text()
        until(120, "Ray has given it up", lambda: "guest/worker-1" not in LAB.nodes())
    finally:
        LAB.thaw("guest")
