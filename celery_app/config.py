"""The settings, from the environment: MUSTER_X is the field x. No passwords are here."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import BaseModel, Field, PositiveFloat, PositiveInt

# In the order in which they are taken. A Celery client that says nothing sends 0.
PRIORITIES = {"critical": 3, "normal": 0, "low": 6, "batch": 9}
# How Kombu names the list of a priority; that of 0 has the queue's own name.
SEPARATOR = "\x06\x16"
# What a worker holds. Beside it lie an index and Kombu's lock, which a cut leaves there for minutes.
HELD = "muster:unacked:"


class Settings(BaseModel):
    """What the roles set and a developer may leave out, all but MUSTER_REDIS_URL."""

    redis_url: str = "redis://127.0.0.1:6379/0"
    redis_password_file: str = ""
    redis_ca: str = ""
    redis_cert: str = ""
    redis_key: str = ""
    result_backend: str = ""
    result_days: PositiveFloat = 1
    worker: str = ""
    queues: str = "default"
    concurrency: PositiveInt = 2
    prefetch: PositiveInt = 1
    child_memory_mb: int = Field(0, ge=0)
    soft_time_limit: PositiveInt = 600
    time_limit: PositiveInt = 660
    max_countdown: PositiveInt = 86400
    # The role computes it (muster/celery_times.py); this is what that says for the other defaults.
    visibility_timeout: PositiveInt = 88380
    max_deliveries: PositiveInt = 5
    lease: PositiveInt = 30
    soft_shutdown: PositiveInt = 60
    stalled: PositiveInt = 30
    # Set by the supervisor for its worker: take nothing without a lease, and where the event loop reports.
    heartbeat: str = ""
    # On a laptop: the directory in which its agent says whether to work, and in which the worker answers.
    laptop: str = ""
    # On a server: such a directory, too; there nobody writes but who drains it (playbooks/drain.yml).
    drain: str = ""
    schedule: str = ""
    # Modules with tasks of the site's own, by commas.
    include: str = ""
    timezone: str = "UTC"
    data: str = "/srv/muster"
    metrics_address: str = "127.0.0.1"
    metrics_port: int = 9808
    smtp_url: str = ""
    smtp_from: str = "muster@localhost"

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """The settings of this process; an empty variable is one that is not set."""
        names = {f"MUSTER_{name.upper()}": name for name in cls.model_fields}
        return cls.model_validate({names[key]: value for key, value in environ.items() if key in names and value})

    @property
    def url(self) -> str:
        """Where Redis is, with the password."""
        if not self.redis_password_file:
            return self.redis_url
        parts = urlsplit(self.redis_url)
        password = quote(Path(self.redis_password_file).read_text().strip(), safe="")
        place = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:{password}@{place}"))

    @property
    def tls(self) -> dict[str, Any]:
        """Options of redis-py and Kombu; empty without TLS."""
        if not self.redis_url.startswith("rediss:"):
            return {}
        files = {"ssl_ca_certs": self.redis_ca, "ssl_certfile": self.redis_cert, "ssl_keyfile": self.redis_key}
        return {"ssl_cert_reqs": ssl.CERT_REQUIRED, **{name: path for name, path in files.items() if path}}

    @property
    def served(self) -> list[str]:
        """Names of the queues."""
        return [part.strip() for part in self.queues.split(",") if part.strip()]

    @property
    def unacked(self) -> str:
        """The key of what this worker holds; each has its own, so that a dead one's can be told apart."""
        return f"{HELD}{self.worker}"


def step(priority: object) -> int:
    """The step of a priority, as Kombu rounds it down; what is no number is normal."""
    number = priority if isinstance(priority, int) else PRIORITIES["normal"]
    return max((value for value in PRIORITIES.values() if value <= number), default=0)


def list_key(queue: str, priority: int) -> str:
    """The list in Redis that holds a queue's messages of a priority step."""
    return f"{queue}{SEPARATOR}{priority}" if priority else queue
