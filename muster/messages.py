"""Who is told when something is wrong, and by which mail server: what cannot work, before anybody relies on it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from muster.inventory import value

MAILBOX = re.compile(r"(.*<)?[^@\s<>,]+@[^@\s<>,]+>?")
WEB, MAIL = ("http", "https"), ("smtp", "smtps")
RECEIVERS = ("alertmanager_mail_to", "alertmanager_webhooks", "alertmanager_slack_webhooks")
Mistakes = Iterator[tuple[str, str]]


def receiver_mistakes(variables: Mapping[str, Any]) -> Mistakes:
    """What is wrong, and what to do. Addresses of webhooks and mail servers hold secrets, and are not repeated."""
    for name in RECEIVERS:
        entries = value(variables, name, [])
        if not isinstance(entries, list):
            yield f"{name} is no list", f"write it like {name}: [...]"
            continue
        for number, entry in enumerate(map(str, entries), 1):
            if name == "alertmanager_mail_to" and not MAILBOX.fullmatch(entry):
                yield f"{name} has {entry!r}, which is no mail address", "write it like ops@example.org"
            if name != "alertmanager_mail_to" and not is_address(entry, WEB):
                yield f"{name}: entry {number} is no web address", "write it like https://hooks.example.org/services/x"
    yield from smtp_mistakes(variables, "alertmanager_smtp_url")
    server = str(value(variables, "alertmanager_smtp_url", value(variables, "celery_smtp_url", "")))
    if not value(variables, "alertmanager_mail_to"):
        return
    if not server:
        yield "alertmanager_mail_to names somebody, and there is no mail server", "set celery_smtp_url, or leave it out"
    elif is_address(server, ("smtps",)) and urlsplit(server).port not in (None, 465):
        yield (
            "Alertmanager speaks smtps at port 465 only",
            "set alertmanager_smtp_url to that port, or to smtp:// and a port with STARTTLS",
        )


def smtp_mistakes(variables: Mapping[str, Any], name: str) -> Mistakes:
    """A mail server's address that is none."""
    given = value(variables, name)
    if given is not None and not is_address(str(given), MAIL):
        yield f"{name} is no address of a mail server", "write it like smtp://user:password@mail.example.org:587"


def is_address(text: str, schemes: tuple[str, ...]) -> bool:
    """Whether it is one that somebody could connect to."""
    try:
        parts = urlsplit(text)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
