"""Small tasks: tell people, report, keep house."""

from __future__ import annotations

import json
import smtplib
import urllib.request
from email.message import EmailMessage
from typing import Any
from urllib.parse import unquote, urlsplit

from celery.app.task import Task
from pydantic import HttpUrl

from celery_app.application import app
from celery_app.config import PRIORITIES, Settings, list_key
from celery_app.lease import DEAD, LEASES, connection


@app.task(bind=True, autoretry_for=(OSError,))
def webhook(self: Task, url: HttpUrl, payload: dict[str, Any]) -> int:
    """POST as JSON. The task's id goes along, so that the receiver can tell a repetition."""
    request = urllib.request.Request(
        str(url),
        json.dumps(payload).encode(),
        {"Content-Type": "application/json", "Idempotency-Key": self.request.id},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return int(answer.status)


@app.task(bind=True, autoretry_for=(OSError,))
def mail(self: Task, to: list[str], subject: str, text: str) -> None:
    """Send by MUSTER_SMTP_URL (smtp://user:password@host:port, smtps://...); the id of the mail is the task's."""
    settings = Settings.read()
    server = urlsplit(settings.smtp_url)
    if not server.hostname:
        raise LookupError("no mail server: set MUSTER_SMTP_URL (celery_options)")
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = settings.smtp_from, ", ".join(to), subject
    message["Message-ID"] = f"<{self.request.id}@muster>"
    message.set_content(text)
    kind = smtplib.SMTP_SSL if server.scheme == "smtps" else smtplib.SMTP
    with kind(server.hostname, server.port or 0, timeout=30) as client:
        if server.username:
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
