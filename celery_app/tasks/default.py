"""Small tasks: tell people, report, keep house."""

from __future__ import annotations

import json
import smtplib
import ssl
import urllib.request
from email.message import EmailMessage
from typing import Any
from urllib.parse import unquote, urlsplit

from celery.app.task import Task
from pydantic import HttpUrl

from celery_app.application import app
from celery_app.config import PRIORITIES, Settings, list_key
from celery_app.lease import DEAD, LEASES, connection


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Following one makes a GET without the payload, and the task would count as done."""

    def redirect_request(self, *_: Any) -> None:
        return None


@app.task(bind=True, autoretry_for=(OSError,))
def webhook(self: Task, url: HttpUrl, payload: dict[str, Any]) -> int:
    """POST as JSON. The task's id goes along, so that the receiver can tell a repetition."""
    request = urllib.request.Request(
        str(url),
        json.dumps(payload).encode(),
        {"Content-Type": "application/json", "Idempotency-Key": self.request.id},
    )
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=30) as answer:
        return int(answer.status)


@app.task(bind=True, autoretry_for=(OSError,))
def mail(self: Task, to: list[str], subject: str, text: str) -> None:
    """Send by MUSTER_SMTP_URL (smtp://user:password@host:port, smtps://...); the id of the mail is the task's.

    Passwords go over TLS only: with smtp:// that is STARTTLS.
    """
    settings = Settings.read()
    server = urlsplit(settings.smtp_url)
    if not server.hostname:
        raise LookupError("no mail server: set MUSTER_SMTP_URL (celery_options)")
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = settings.smtp_from, ", ".join(to), subject
    message["Message-ID"] = f"<{self.request.id}@muster>"
    message.set_content(text)
    place, context = (server.hostname, server.port or 0), ssl.create_default_context()
    tls = server.scheme == "smtps"
    with smtplib.SMTP_SSL(*place, timeout=30, context=context) if tls else smtplib.SMTP(*place, timeout=30) as client:
        if server.username:
            if not tls:
                client.starttls(context=context)
            client.login(unquote(server.username), unquote(server.password or ""))
        client.send_message(message)


@app.task
def report() -> dict[str, Any]:
    """What waits, who works and what is dead, for a schedule to keep or to send."""
    client = connection()
    queues = {
        queue: {name: client.llen(list_key(queue, value)) for name, value in PRIORITIES.items()}
        for queue in ("default", "data", "ml")
    }
    return {"queues": queues, "workers": client.zrange(LEASES, 0, -1), "dead": client.hlen(DEAD)}


@app.task
def housekeeping() -> int:
    """Remove results from a database; Redis forgets by itself. Returns how many dead letters wait for somebody."""
    app.backend.cleanup()
    return int(connection().hlen(DEAD))
