"""The head: it lets in who has the token and a certificate, and survives its own death."""

from __future__ import annotations

import json
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
from ray_lab import Lab, until

ADDRESS, GCS, HEAD = "172.30.104.10", 6379, "ray_head-head-1"
LAB = Lab("ray_head")
COUNTER = """
@ray.remote(num_cpus=0.1)
class Counter:
    def __init__(self): self.count = 0
    def add(self):
        self.count += 1
        return self.count
    def read(self): return self.count
"""


@pytest.mark.parametrize(("token", "status"), [("", 401), ("wrong" * 10, 403)])
def test_a_job_without_the_token_is_refused(token: str, status: int) -> None:
    code = (
        "from ray_jobs import nodes\n"
        f"print(nodes.call('/api/jobs/', {token!r}, {{'entrypoint': 'touch /tmp/intruder'}})[0])"
    )
    assert int(LAB.inside("head", HEAD, "python3", "-S", "-c", code)) == status


def test_ray_s_own_dashboards_are_where_grafana_looks_for_them() -> None:
    assert "default_grafana_dashboard.json" in LAB.inside("head", HEAD, "ls", "/var/lib/node/dashboards")


def test_a_job_with_the_token_runs() -> None:
    said = LAB.inside(
        "head",
        HEAD,
        "ray",
        "job",
        "submit",
        "--",
        "python3",
        "-m",
        "ray_jobs.hello",
        "-p",
        "tasks=4",
        "-p",
        "iterations=1000",
    )
    assert "head/worker-1" in said
    assert "4 tasks of 1000 iterations" in said


@pytest.mark.parametrize(
    "env",
    [
        {"RAY_AUTH_TOKEN": "wrong" * 10, "RAY_AUTH_TOKEN_PATH": ""},
        {"RAY_AUTH_MODE": "disabled"},
    ],
    ids=["wrong token", "no token"],
)
def test_a_driver_without_the_token_is_refused(env: dict[str, str]) -> None:
    said = LAB.driver("print('got', 'in')", {**env, "RAY_gcs_server_request_timeout_seconds": "3"}, check=False)
    assert "got in" not in said
    assert "InvalidAuthToken" in said


def test_a_driver_with_the_token_gets_in() -> None:
    assert "got in" in LAB.driver("print('got', 'in')")


# How a client begins to speak HTTP/2; a server that talks to it answers with a frame of type 4 as well.
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"


def handshake(context: ssl.SSLContext) -> bytes:
    """Greet the control service as gRPC does: whoever has no certificate gets nothing, not even a reason."""
    with socket.create_connection((ADDRESS, GCS), timeout=5) as plain, context.wrap_socket(plain) as wrapped:
        wrapped.sendall(GREETING)
        try:
            return wrapped.recv(64)
        except (ssl.SSLError, ConnectionError):
            return b""


def test_the_control_service_wants_a_certificate_of_the_cluster(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    assert handshake(context) == b""

    for name in ("host.crt", "host.key"):
        (tmp_path / name).write_text(LAB.on("head", "cat", f"/etc/muster/pki/{name}"))
    context.load_cert_chain(tmp_path / "host.crt", tmp_path / "host.key")
    assert handshake(context)[3:4] == b"\x04", "with the host's own certificate the service must answer"


def test_the_control_service_does_not_speak_without_tls() -> None:
    with socket.create_connection((ADDRESS, GCS), timeout=5) as plain:
        plain.sendall(GREETING)
        try:
            answer = plain.recv(64)
        except ConnectionError:
            answer = b""
    assert answer[3:4] != b"\x04"


def test_the_dashboard_is_on_loopback_only() -> None:
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://{ADDRESS}:8265/", timeout=3)
    assert LAB.on("head", "curl", "-sf", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:8265/") == "200"


def test_the_token_is_not_for_everyone_on_the_host() -> None:
    refused = LAB.on("head", "runuser", "-u", "nobody", "--", "cat", "/opt/muster/ray_head/ray_token", check=False)
    assert "Permission denied" in refused
    compose = LAB.on("head", "cat", "/opt/muster/ray_head/compose.yml")
    assert LAB.on("head", "cat", "/opt/muster/ray_head/ray_token").strip() not in compose


def test_containers_have_limits_and_no_privileges() -> None:
    form = "{{json .HostConfig}}"
    for container in (HEAD, "ray_worker-worker-1-1"):
        config = json.loads(LAB.on("head", "docker", "inspect", "-f", form, container))
        assert config["Memory"] and config["NanoCpus"] and config["PidsLimit"] and config["ShmSize"] > 2**26
        assert config["CapDrop"] == ["ALL"]
    assert LAB.inside("head", HEAD, "id", "-u").strip() == "10077"


def test_idle_memory_is_within_the_promise() -> None:
    listing = LAB.on("head", "docker", "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}")
    used = {name: amount for name, amount, *_ in map(str.split, listing.splitlines())}
    print(used)
    assert all("MiB" in amount for amount in used.values()), used
    assert float(used["ray_worker-worker-1-1"].removesuffix("MiB")) < 500


@pytest.mark.parametrize("victim", ["container", "gcs_server"])
def test_the_head_killed_is_back_with_what_it_knew(victim: str) -> None:
    LAB.driver(
        COUNTER + "counter = Counter.options(name='counter', lifetime='detached', get_if_exists=True).remote()\n"
        "print(ray.get([counter.add.remote() for _ in range(3)]))"
    )
    before = LAB.nodes()
    started = LAB.on("head", "docker", "inspect", "-f", "{{.State.StartedAt}}", HEAD)
    if victim == "container":
        LAB.kill_hard("head", HEAD)
    else:
        LAB.on("head", "sh", "-c", "kill -9 $(pgrep -x gcs_server)")
    start = time.monotonic()
    try:
        until(
            60,
            "a new container",
            lambda: LAB.on("head", "docker", "inspect", "-f", "{{.State.StartedAt}}", HEAD) != started,
        )
        until(
            60,
            "the worker is known again",
            lambda: LAB.nodes()["head/worker-1"]["id"] == before["head/worker-1"]["id"],
        )
        count = LAB.driver("print(ray.get(ray.get_actor('counter').read.remote(), timeout=30))")
        print(f"{victim} killed: nodes and actor are back after {time.monotonic() - start:.1f} s")
        assert count.split()[-1] == "3"
    finally:
        LAB.driver("ray.kill(ray.get_actor('counter'))", check=False)


def test_a_restart_cleans_up_what_the_last_life_left() -> None:
    ray, spill = "/var/lib/node/ray", "/var/lib/node/spill"
    old = [f"{ray}/session_2020-01-0{day}_00-00-00_000000_1" for day in (1, 2, 3)]
    log = f"{ray}/session_latest/logs/worker-old-01000000-99999.out"
    LAB.inside("head", HEAD, "mkdir", "-p", *(f"{path}/logs" for path in old))
    LAB.inside("head", HEAD, "touch", "-d", "2020-01-01", *old, log, f"{spill}/leftover")
    LAB.on("head", "docker", "restart", HEAD)
    until(180, "the head is well", lambda: LAB.nodes())
    left = LAB.inside("head", HEAD, "sh", "-c", f"ls -d {ray}/session_20* {ray}/session_latest/logs/* {spill}/* ; true")
    assert not any(path in left for path in old[:2]), left
    assert "worker-old" not in left and "leftover" not in left
    assert len([line for line in left.splitlines() if line.startswith(f"{ray}/session_20")]) == 2


def test_ray_client_works_with_the_token_and_not_without() -> None:
    code = "import ray; ray.init('ray://127.0.0.1:10001'); print('sum', ray.get(ray.remote(lambda: 1 + 2).remote()))"
    assert "sum 3" in until(180, "Ray Client answers", lambda: LAB.inside("head", HEAD, "python3", "-c", code))
    env = {"RAY_AUTH_TOKEN": "wrong" * 10, "RAY_AUTH_TOKEN_PATH": ""}
    refused = LAB.inside("head", HEAD, "timeout", "20", "python3", "-c", code, env=env, check=False)
    assert "sum 3" not in refused
