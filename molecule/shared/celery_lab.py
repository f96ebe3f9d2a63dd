"""Ask a lab's broker, as any of its users, with the redis-cli of its own container."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ray_lab import ROOT, Lab

SECRETS = ROOT / ".secrets/lab"
REDIS = "celery_redis-redis-1"
TLS = ("--tls", "--cacert", "/etc/muster/pki/ca.crt")


def secret(name: str, folder: Path = SECRETS) -> str:
    """A generated secret; Ansible's lookup keeps more than the password in the file."""
    return (folder / name).read_text().split()[0]


class Broker:
    """The Redis of one lab."""

    def __init__(self, lab: Lab, host: str = "head") -> None:
        self.lab, self.host = lab, host

    def ask(
        self,
        user: str,
        *command: str,
        password: str | None = None,
        stdin: str | None = None,
        options: tuple[str, ...] = TLS,
    ) -> str:
        """What Redis says to a user, mistakes included; "" asks without a login."""
        if user and password is None:
            password = secret(f"celery_{user}_password", self.lab.secrets)
        env = {"REDISCLI_AUTH": password} if user and password is not None else {}
        login = ("--user", user) if user else ()
        said = self.lab.inside(
            self.host, REDIS, "timeout", "20", "redis-cli", "-h", "127.0.0.1", "-p", "6380", *options, *login, *command,
            env=env, check=False, stdin=stdin or "",
        )  # fmt: skip
        return said.strip()

    def healthy(self) -> bool:
        """What the container's own health check says now."""
        return self.lab.inside(self.host, REDIS, "sh", "/etc/muster/healthy.sh", "6380", check=False).strip() == "PONG"

    def status(self) -> dict[str, Any]:
        """Queues and workers, as the cluster's own figures say."""
        said = self.lab.inside(self.host, "celery_metrics-metrics-1", "python3", "-m", "celery_app.status")
        found: dict[str, Any] = json.loads(said)
        return found

    def all_there(self, workers: Mapping[str, Collection[str]]) -> bool:
        """Whether the workers of these hosts hold a lease, and nobody else does."""
        alive = {name for name, worker in self.status()["workers"].items() if (worker["lease"] or 0) > 0}
        return alive == {f"{host}/{name}" for host, names in workers.items() for name in names}
