"""Webhooks and mail, to servers that are really asked, and really away."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from contextlib import contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.delivery.conftest import RedisServer, Worker, free_port, until

Start = Callable[..., Worker]
WEBHOOK, MAIL = "celery_app.tasks.default.webhook", "celery_app.tasks.default.mail"


@contextmanager
def receiver(port: int, *statuses: int, said: bytes = b"") -> Any:
    """A web server: what it was asked, each answered by the next status and then by 200, and by what is said."""
    asked: list[tuple[str, str, str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            key, kind = self.headers.get("Idempotency-Key", ""), self.headers.get("Content-Type", "")
            asked.append((self.command, key, kind, body))
            self.send_response(statuses[len(asked) - 1] if len(asked) <= len(statuses) else 200)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(said)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield asked
        server.shutdown()


class Mailbox:
    """What a mail server got, and the passwords it was told."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.logins: list[LoginPassword] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        assert isinstance(envelope.content, bytes)
        self.mails.append(message_from_bytes(envelope.content, policy=policy.default))
        return "250 OK"

    def __call__(self, server: Any, session: Any, envelope: Any, mechanism: str, login: Any) -> AuthResult:
        self.logins.append(login)
        return AuthResult(success=True)


@contextmanager
def mail_server(port: int, **options: Any) -> Any:
    box = Mailbox()
    controller = Controller(box, hostname="127.0.0.1", port=port, authenticator=box, **options)
    controller.start()
    yield box
    controller.stop()


def counts_are(server: RedisServer, expected: dict[str, str]) -> None:
    """Failures are counted after the result is there; a retry was counted before."""
    until(lambda: server.client.hgetall("muster:counts") == expected, f"counted: {expected}", 10)


def test_webhook_is_sent_until_it_is_taken(app: Any, worker: Start) -> None:
    port, payload = free_port(), {"text": "done: \u00e4\u20ac", "n": [1, None]}
    worker()
    task = app.send_task(WEBHOOK, [f"http://127.0.0.1:{port}/hook", payload])
    until(lambda: task.state == "RETRY", "the server is away")
    with receiver(port, 503) as asked:
        assert task.get(timeout=60) == 200
    body = b'{"text": "done: \\u00e4\\u20ac", "n": [1, null]}'
    assert asked == [("POST", task.id, "application/json", body)] * 2


def test_webhook_that_is_sent_elsewhere_is_not_done(app: Any, worker: Start) -> None:
    port = free_port()
    worker()
    with receiver(port, *[302] * 9) as asked:
        task = app.send_task(WEBHOOK, [f"http://127.0.0.1:{port}/hook", {}])
        until(lambda: task.state == "RETRY", "it is tried again")
        assert {method for method, *_ in asked} == {"POST"}


def test_webhook_to_no_url_fails_at_once(app: Any, worker: Start, redis_server: RedisServer) -> None:
    worker()
    with pytest.raises(Exception, match="url: URL scheme should be 'http' or 'https'"):
        app.send_task(WEBHOOK, ["file:///etc/passwd", {}]).get(timeout=60)
    counts_are(redis_server, {f"failed|{WEBHOOK}": "1"})


def test_mail_is_sent_once_when_the_server_is_back(app: Any, worker: Start) -> None:
    port = free_port()
    worker(smtp_url=f"smtp://127.0.0.1:{port}", smtp_from="muster@example.org")
    task = app.send_task(MAIL, [["a@example.org", "b@example.org"], "Gr\u00fc\u00dfe", "Zeile \u20ac\n.\nend\n"])
    until(lambda: task.state == "RETRY", "the server is away")
    with mail_server(port) as box:
        assert task.get(timeout=60) is None
    (mail,) = box.mails
    assert (mail["From"], mail["To"]) == ("muster@example.org", "a@example.org, b@example.org")
    assert (mail["Subject"], mail["Message-ID"]) == ("Gr\u00fc\u00dfe", f"<{task.id}@muster>")
    assert mail.get_content().splitlines() == ["Zeile \u20ac", ".", "end"]


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_password_goes_to_a_server_that_is_known(
    app: Any, worker: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    port, authority = free_port(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    (authority if known else trustme.CA()).cert_pem.write_to_path(tmp_path / "ca.crt")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.crt"))
    worker(smtp_url=f"smtp://me:p%40ss@127.0.0.1:{port}")
    with mail_server(port, tls_context=context, auth_required=True) as box:
        task = app.send_task(MAIL, [["a@example.org"], "s", "t"])
        # It may be at it again before anybody looks twice.
        until(lambda: task.state == ("SUCCESS" if known else "RETRY"), "it was tried")
    assert box.logins == ([LoginPassword(b"me", b"p@ss")] if known else [])
    assert len(box.mails) == int(known)


def test_no_mail_server_is_a_clear_error_at_once(app: Any, worker: Start, redis_server: RedisServer) -> None:
    worker()
    with pytest.raises(LookupError, match="no mail server: set MUSTER_SMTP_URL"):
        app.send_task(MAIL, [["a@example.org"], "s", "t"]).get(timeout=60)
    counts_are(redis_server, {f"failed|{MAIL}": "1"})
