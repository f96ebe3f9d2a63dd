"""The gateway as it is shipped: a real Caddy with the role's settings, its door, and pages that tell what came."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from muster.load import load_inventory
from muster.logins import logins
from tests.conftest import role_variables
from tests.delivery.conftest import ROOT, free_port, infra_image, until

PAGES = ("ray_dashboard", "flower", "prometheus", "alertmanager", "grafana")
# Longer than what a proxy would think too short to pack.
WORDS = (b"first " * 200 + b"\n", b"second\n")
TOKEN, PASSWORD = "token-of-the-robot", "password of anna"


class Told(BaseHTTPRequestHandler):
    """Answers with what it was asked."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.dumps({"path": self.path, "method": self.command, "headers": dict(self.headers)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_DELETE = do_PUT = answer  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


class Serve(Told):
    """As Ray Serve; a path that ends in /stream sends its first word, and its second when that has arrived."""

    arrived = threading.Event()

    def end_headers(self) -> None:
        # Else the gateway keeps a connection to what is not served any more.
        self.send_header("Connection", "close")
        super().end_headers()

    def do_GET(self) -> None:
        if self.path.endswith("/stream"):
            self.stream()
        else:
            self.answer()

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for word in WORDS:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(word), word))
            self.wfile.flush()
            self.arrived.wait(20)
        self.wfile.write(b"0\r\n\r\n")


@dataclass
class Gateway:
    """Asked as a browser or a program would."""

    port: int
    ca: Path
    serve_port: int

    def connect(self, version: ssl.TLSVersion | None = None) -> HTTPSConnection:
        context = ssl.create_default_context(cafile=str(self.ca))
        if version:
            context.maximum_version = version
        return HTTPSConnection("localhost", self.port, context=context, timeout=10)

    def ask(
        self, path: str, method: str = "GET", body: str = "", version: ssl.TLSVersion | None = None, **headers: str
    ) -> tuple[int, dict[str, str], str]:
        connection = self.connect(version)
        connection.request(method, path, body or None, {name.replace("_", "-"): text for name, text in headers.items()})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, dict(answer.getheaders()), text

    def log_in(self) -> str:
        form = "user=anna&password=password+of+anna&next=/"
        status, headers, text = self.ask("/gate/login", "POST", form)
        assert status == 303, text
        return headers["Set-Cookie"].partition(";")[0]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, render: Callable[..., str]) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    for name in ("live", "page", "pki"):
        (folder / name).mkdir()
    ports = {name: free_port() for name in (*PAGES, "ray_serve", "gateway", "gateway_door", "gateway_figures")}
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "1", "-nodes")
    files = ("-keyout", str(folder / "pki/host.key"), "-out", str(folder / "pki/host.crt"))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", *subject, *files], check=True, capture_output=True
    )
    (folder / "page/index.html").write_text("the page")
    (folder / "login.html").write_text((ROOT / "roles/gateway/files/login.html").read_text())
    (folder / "live/logins.json").write_text(json.dumps(logins({"anna": PASSWORD}, {"robot": TOKEN}, "salt", "key")))
    hostvars, groups = load_inventory([ROOT / "inventory/example"], {"muster_secrets_dir": str(folder / "secrets")})
    values = {
        **role_variables("flower"), **role_variables("gateway"),
        "groups": groups, "inventory_hostname": "server84", "muster_address": "127.0.0.1", "ray_token": "token-of-ray",
        "flower_password": "password-of-flower", "__gateway_ports": ports,
        "__gateway_pages": {name: f"127.0.0.1:{ports[name]}" for name in PAGES[1:]},
    }  # fmt: skip
    (folder / "live/Caddyfile").write_text(render("gateway", "Caddyfile.j2", hostvars, "server84", **values))
    servers = [ThreadingHTTPServer(("127.0.0.1", ports[name]), Told) for name in PAGES]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    door = subprocess.Popen(
        [sys.executable, "-S", "-I", str(ROOT / "roles/gateway/files/muster_gate.py"), str(ports["gateway_door"])],
        env={"MUSTER_GATE": str(folder)},
    )
    name = f"muster-gateway-{uuid.uuid4().hex[:8]}"
    subprocess.run(
        [
            *("docker", "run", "-d", "--name", name, "--network", "host", "--user", "0:0", "--read-only"),
            *("--cap-drop=ALL", "--tmpfs", "/run/caddy", "--tmpfs", "/tmp"),
            *("-e", "HOME=/tmp", "-e", "XDG_DATA_HOME=/tmp", "-e", "XDG_CONFIG_HOME=/tmp"),
            *("-v", f"{folder}:/etc/muster:ro", "--entrypoint", "caddy", infra_image()),
            *("run", "--config", "/etc/muster/live/Caddyfile", "--adapter", "caddyfile"),
        ],
        check=True,
        capture_output=True,
    )
    made = Gateway(ports["gateway"], folder / "pki/host.crt", ports["ray_serve"])

    def up() -> bool:
        try:
            return made.ask("/gate/login")[0] == 200
        except OSError:
            return False

    try:
        until(up, "the gateway answers")
        yield made
    finally:
        print(subprocess.run(["docker", "logs", name], capture_output=True, text=True).stderr[-4000:])
        subprocess.run(["docker", "rm", "-f", name], check=True, capture_output=True)
        door.terminate()
        for server in servers:
            server.shutdown()


CLOSED = (
    "/", "/index.html", "/ray", "/ray/", "/ray/api/jobs/", "/ray/api/version", "/api/jobs/", "/api/version", "/flower/",
    "/flower/api/workers", "/prometheus/", "/prometheus/api/v1/query?query=up", "/alertmanager/",
    "/alertmanager/api/v2/alerts", "/grafana/", "/grafana/api/dashboards/home", "/grafana/metrics",
    "/llm/v1/models", "/serve/forest/predict", "/serve/../llm/v1/models",
    "/gate/check", "/gate/login/..", "/gate/../ray/", "//ray/", "/RAY/", "/%72ay/", "/gate/login/x", "/nothing",
)  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT"])
def test_without_a_login_nothing_passes(gateway: Gateway, method: str) -> None:
    for path in CLOSED:
        status, headers, text = gateway.ask(path, method, X_Muster_User="anna", Authorization="Basic YW5uYTp4")
        assert status in (401, 404) and "headers" not in text and "the page" not in text, (method, path, status, text)
        status, headers, text = gateway.ask(path, method, Accept="text/html")
        assert status in (303, 401, 404) and "headers" not in text and "the page" not in text, (method, path, status)
        assert status != 303 or headers["Location"].startswith("/gate/login?next="), (method, path, headers)


def test_behind_the_login_each_page_gets_its_own_login_and_nobody_s_cookie(gateway: Gateway) -> None:
    cookie = gateway.log_in()
    assert gateway.ask("/", Cookie=cookie)[2] == "the page"
    for path, inner, login in (
        ("/ray/api/jobs/?x=1", "/api/jobs/?x=1", "Bearer token-of-ray"),
        ("/api/version", "/api/version", "Bearer token-of-ray"),
        ("/flower/api/workers", "/flower/api/workers", "Basic b3BlcmF0b3I6cGFzc3dvcmQtb2YtZmxvd2Vy"),
        ("/prometheus/api/v1/query?query=up", "/prometheus/api/v1/query?query=up", None),
        ("/alertmanager/", "/alertmanager/", None),
        ("/grafana/api/ds/query?x=1", "/grafana/api/ds/query?x=1", None),
    ):
        status, _, text = gateway.ask(path, Cookie=cookie, X_Muster_User="root")
        seen = json.loads(text)
        assert (status, seen["path"], seen["headers"].get("Authorization")) == (200, inner, login)
        assert "Cookie" not in seen["headers"] and seen["headers"]["X-Muster-User"] == "anna"
    assert gateway.ask("/ray", Cookie=cookie)[1]["Location"] == "/ray/"


def test_another_site_s_page_cannot_use_the_session(gateway: Gateway) -> None:
    cookie = gateway.log_in()
    for path in ("/api/jobs/", "/ray/api/jobs/x"):
        assert gateway.ask(path, "POST", "{}", Cookie=cookie, Origin="https://evil.example")[0] == 403
        assert gateway.ask(path, "DELETE", Cookie=cookie, Origin="https://evil.example")[0] == 403
        own = f"https://localhost:{gateway.port}"
        assert gateway.ask(path, "DELETE", Cookie=cookie, Origin=own)[0] == 200


def test_a_program_submits_jobs_with_its_token(gateway: Gateway) -> None:
    status, _, text = gateway.ask("/api/jobs/", "POST", "{}", Authorization=f"Bearer {TOKEN}")
    seen = json.loads(text)
    assert (status, seen["method"], seen["headers"]["Authorization"]) == (200, "POST", "Bearer token-of-ray")
    assert seen["headers"]["X-Muster-User"] == "robot"
    assert gateway.ask("/api/jobs/", "POST", "{}", Authorization="Bearer token-of-ray")[0] == 401


@pytest.fixture
def serve(gateway: Gateway) -> Iterator[None]:
    """Something is served, for as long as a test lasts."""
    Serve.arrived.clear()
    server = ThreadingHTTPServer(("127.0.0.1", gateway.serve_port), Serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield
    server.shutdown()
    server.server_close()


def test_what_is_served_is_told_who_asks_and_no_token(gateway: Gateway, serve: None) -> None:
    for path in ("/serve/forest/predict?x=1", "/llm/v1/models"):
        cookie = gateway.log_in()
        for user, (status, _, text) in (
            ("robot", gateway.ask(path, "POST", "{}", X_Muster_User="root", Authorization=f"Bearer {TOKEN}")),
            ("anna", gateway.ask(path, "POST", "{}", X_Muster_User="root", Cookie=cookie)),
        ):
            seen = json.loads(text)
            assert (status, seen["path"], seen["headers"]["X-Muster-User"]) == (200, path, user)
            assert not {"Authorization", "Cookie"} & set(seen["headers"])
        assert gateway.ask(path, "POST", "{}", Cookie=cookie, Origin="https://evil.example")[0] == 403


@pytest.mark.parametrize("packing", ["identity", "gzip"])
def test_words_come_as_they_are_said(gateway: Gateway, serve: None, packing: str) -> None:
    connection = gateway.connect()
    headers = {"Authorization": f"Bearer {TOKEN}", "Accept-Encoding": packing}
    connection.request("GET", "/llm/stream", headers=headers)
    answer = connection.getresponse()
    assert answer.readline() == WORDS[0]
    Serve.arrived.set()
    assert answer.read() == WORDS[1]
    connection.close()


def test_where_nothing_is_served_it_says_so(gateway: Gateway) -> None:
    for path in ("/serve/forest/predict", "/llm/v1/models"):
        status, headers, text = gateway.ask(path, "POST", "{}", Authorization=f"Bearer {TOKEN}")
        assert status == 503 and int(headers["Retry-After"]) > 0
        assert "no model is served" in text and len(text.splitlines()) == 1
        assert gateway.ask(path)[0] == 401, "nobody else is told"


def test_a_body_that_is_too_large_is_refused(gateway: Gateway, serve: None) -> None:
    body, login = "x" * (16 * 2**20 + 1), f"Bearer {TOKEN}"
    assert gateway.ask("/serve/forest/predict", "POST", body[:-1], Authorization=login)[0] == 200
    assert gateway.ask("/serve/forest/predict", "POST", body, Authorization=login)[0] == 413


def test_it_speaks_new_tls_only(gateway: Gateway) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        gateway.ask("/gate/login", version=ssl.TLSVersion.TLSv1_2)
    plain = HTTPConnection("localhost", gateway.port, timeout=10)
    plain.request("GET", "/gate/login")
    assert plain.getresponse().status == 400


def test_browsers_are_told_to_be_careful(gateway: Gateway) -> None:
    for path, cookie in (("/gate/login", ""), ("/", gateway.log_in()), ("/flower/", gateway.log_in())):
        headers = gateway.ask(path, Cookie=cookie)[1]
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "SAMEORIGIN"
        assert headers["Strict-Transport-Security"].startswith("max-age=") and "Server" not in headers


def test_guessing_is_slow_and_another_address_cannot_be_claimed(gateway: Gateway) -> None:
    form = "user=berta&password=wrong&next=/"
    found = [gateway.ask("/gate/login", "POST", form, X_Forwarded_For=f"192.0.2.{n}")[0] for n in range(7)]
    assert found[:5] == [401] * 5 and 429 in found[5:], found
