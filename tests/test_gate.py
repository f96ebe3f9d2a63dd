"""The gateway's door: who passes, who does not, and how slow guessing is."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from muster.logins import logins as written
from muster.logins import mistakes

FILES = Path(__file__).resolve().parents[1] / "roles/gateway/files"
spec = importlib.util.spec_from_file_location("muster_gate", FILES / "muster_gate.py")
assert spec and spec.loader
gate: Any = importlib.util.module_from_spec(spec)
sys.modules["muster_gate"] = gate
spec.loader.exec_module(gate)

HOST = "head.example"
Ask = Callable[..., tuple[int, dict[str, str], str]]


def logins(admin: str = "admin's password", key: str = "key") -> dict[str, Any]:
    return written({"admin": admin, "anna": "anna's password"}, {"ci": "token-of-ci"}, "salt", key)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "logins.json"
    path.write_text(json.dumps(logins()))
    return path


@pytest.fixture
def ask(file: Path) -> Iterator[Ask]:
    """As Caddy asks."""
    server = gate.serve(file, FILES / "login.html", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def call(
        path: str, method: str = "GET", form: dict[str, str] | None = None, address: str = "192.0.2.1", **headers: str
    ) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        given = {"X-Forwarded-Host": HOST, "X-Forwarded-For": address} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        body = urlencode(form) if form is not None else None
        connection.request(method, path, body, given)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, dict(answer.getheaders()), text

    yield call
    server.shutdown()
    server.server_close()


def log_in(
    ask: Ask, user: str = "admin", password: str = "", to: str = "/", **more: Any
) -> tuple[int, dict[str, str], str]:
    form = {"user": user, "password": password or f"{user}'s password", "next": to}
    return ask("/gate/login", "POST", form, **more)


def session(ask: Ask, user: str = "admin") -> str:
    status, headers, _ = log_in(ask, user)
    assert status == 303
    return headers["Set-Cookie"].partition(";")[0]


def test_who_is_not_logged_in_is_sent_to_the_page_or_refused(ask: Ask) -> None:
    status, headers, _ = ask("/gate/check", Accept="text/html", X_Forwarded_Uri="/ray/#/jobs?x=1")
    assert (status, headers["Location"]) == (303, "/gate/login?next=%2Fray%2F%23%2Fjobs%3Fx%3D1")
    assert ask("/gate/check")[0] == 401
    assert ask("/gate/check", Accept="text/html", X_Forwarded_Method="POST")[0] == 401
    assert ask("/gate/check", Accept="text/html", Upgrade="websocket")[0] == 401
    for cookie in (
        "",
        "__Host-muster=",
        "__Host-muster=admin.9999999999.0",
        "__Host-muster=..",
        "x=y",
        "__Host-muster=admin",
    ):
        assert ask("/gate/check", Cookie=cookie)[0] == 401


def test_a_session_passes_with_its_name(ask: Ask) -> None:
    status, headers, _ = log_in(ask, "anna", to="/flower/")
    assert (status, headers["Location"]) == (303, "/flower/")
    for word in ("Secure", "HttpOnly", "SameSite=Lax", "Path=/"):
        assert word in headers["Set-Cookie"]
    status, headers, _ = ask("/gate/check", Cookie=headers["Set-Cookie"].partition(";")[0])
    assert (status, headers["X-Muster-User"]) == (200, "anna") and "Set-Cookie" not in headers


def test_a_session_cannot_be_made_up_or_made_another_s(ask: Ask) -> None:
    name, _, value = session(ask).partition("=")
    user, until, signature = value.split(".")
    for made in (
        f"anna.{until}.{signature}",
        f"{user}.{int(until) + 1}.{signature}",
        f"{user}.{until}.{signature[:-1]}0x",
    ):
        assert ask("/gate/check", Cookie=f"{name}={made}")[0] == 401


def test_a_session_ends(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    cookie, now = session(ask), time.time()
    monkeypatch.setattr(gate.time, "time", lambda: now + gate.SESSION - 5)
    assert ask("/gate/check", Cookie=cookie)[0] == 200
    monkeypatch.setattr(gate.time, "time", lambda: now + gate.SESSION + 5)
    assert ask("/gate/check", Cookie=cookie)[0] == 401


def test_a_new_password_or_a_new_key_ends_the_session_and_no_other(ask: Ask, file: Path) -> None:
    cookie, other = session(ask), session(ask, "anna")
    write(file, logins(admin="another password"))
    assert ask("/gate/check", Cookie=cookie)[0] == 401 and ask("/gate/check", Cookie=other)[0] == 200
    write(file, logins(key="another"))
    assert ask("/gate/check", Cookie=other)[0] == 401
    gone = logins()
    del gone["users"]["anna"]
    write(file, gone)
    assert ask("/gate/check", Cookie=other)[0] == 401 and log_in(ask, "anna")[0] == 401


def write(file: Path, data: dict[str, Any]) -> None:
    before = file.stat().st_mtime
    file.write_text(json.dumps(data))
    os.utime(file, (before + 1, before + 1))


def test_personal_tokens_pass_and_others_do_not(ask: Ask) -> None:
    status, headers, _ = ask("/gate/check", Authorization="Bearer token-of-ci", X_Forwarded_Method="POST")
    assert (status, headers["X-Muster-User"]) == (200, "ci")
    # Not even beside a good session: the token is what is asked about.
    assert ask("/gate/check", Authorization="Bearer token-of-cis", Cookie=session(ask))[0] == 401
    assert ask("/gate/check", Authorization="Basic YWRtaW46eA==")[0] == 401


def test_another_site_s_page_changes_nothing(ask: Ask) -> None:
    cookie = session(ask)
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}):
        assert ask("/gate/check", Cookie=cookie, X_Forwarded_Method="POST", **headers)[0] == 403
        assert ask("/gate/check", Cookie=cookie, Upgrade="websocket", **headers)[0] == 403
        assert log_in(ask, **headers)[0] == 403
        assert ask("/gate/check", Cookie=cookie, **headers)[0] == 200
    assert ask("/gate/check", Cookie=cookie, X_Forwarded_Method="POST", Origin=f"https://{HOST}")[0] == 200


@pytest.mark.parametrize(
    "to", ["//evil.example", "https://evil.example", "/\\evil.example", "", "/gate/logout", "/a\nb"]
)
def test_the_login_leads_nowhere_else(ask: Ask, to: str) -> None:
    assert log_in(ask, to=to)[1]["Location"] == "/"


def test_the_page_shows_what_is_given_as_text(ask: Ask) -> None:
    text = ask("/gate/login?next=%2F%22%3E%3Cscript%3E")[2]
    assert "<script>" not in text and "/&quot;&gt;&lt;script&gt;" in text


def test_guessing_gets_slow_where_it_comes_from_and_less_so_for_the_name(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(gate.FREE):
        assert log_in(ask, password="wrong")[0] == 401
    status, headers, text = log_in(ask)
    assert status == 429 and int(headers["Retry-After"]) >= 1 and "Try again in" in text
    assert log_in(ask, address="192.0.2.9")[0] == 429, "the name is slowed down everywhere"
    assert log_in(ask, "anna", address="192.0.2.9")[0] == 303
    # What a client writes there itself is before what Caddy writes.
    assert log_in(ask, "anna", address="10.9.9.9, 192.0.2.1")[0] == 429
    now = time.monotonic()
    monkeypatch.setattr(gate.time, "monotonic", lambda: now + 3)
    assert log_in(ask)[0] == 303
    assert log_in(ask, password="wrong")[0] == 401, "who has passed begins anew"


def test_the_wait_doubles_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(gate.time, "monotonic", lambda: now)
    brake = gate.Brake()
    waits = []
    for _ in range(40):
        brake.failed("192.0.2.1", gate.NAME + "admin")
        waits.append((brake.wait("192.0.2.1"), brake.wait(gate.NAME + "admin")))
    assert waits[3] == (0, 0) and waits[4] == (1, 1) and waits[6] == (4, 4)
    assert waits[-1] == (gate.LONGEST, gate.LONGEST_FOR_NAME)
    for number in range(gate.REMEMBERED + 10):
        brake.failed(f"a{number}")
    assert len(brake.wrong) == gate.REMEMBERED


def test_wrong_tokens_are_slowed_down_too(ask: Ask) -> None:
    for _ in range(gate.FREE):
        assert ask("/gate/check", Authorization="Bearer guess")[0] == 401
    assert ask("/gate/check", Authorization="Bearer token-of-ci")[0] == 429
    assert ask("/gate/check", Authorization="Bearer token-of-ci", address="192.0.2.9")[0] == 200


def test_logging_out_takes_the_cookie(ask: Ask) -> None:
    status, headers, _ = ask("/gate/logout", "POST", {}, Cookie=session(ask), Origin=f"https://{HOST}")
    assert (status, headers["Location"]) == (303, "/gate/login") and "Max-Age=0" in headers["Set-Cookie"]


def test_a_huge_form_is_refused(ask: Ask) -> None:
    assert ask("/gate/login", "POST", {"user": "x" * 5000})[0] == 413


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"gateway_users": ["Anna"]}, "gateway_users has the name 'Anna'"),
        ({"gateway_users": "anna"}, "gateway_users is no list"),
        ({"gateway_tokens": ["a/b"]}, "gateway_tokens has the name 'a/b'"),
        ({"gateway_passwords": {"admin": "hunter2"}}, "gateway_passwords: that of admin has fewer than 10"),
        ({"gateway_passwords": {"bert": "hunter2hunter2"}}, "gateway_passwords has bert, who is not in gateway_users"),
    ],
)
def test_a_login_that_is_none_is_told(variables: dict[str, Any], words: str) -> None:
    assert not list(mistakes({"gateway_users": ["anna", "bert.b-2"], "gateway_tokens": ["ci"]}))
    found = [problem for problem, _ in mistakes(variables)]
    assert any(problem.startswith(words) for problem in found) and "hunter2" not in "".join(found), found
