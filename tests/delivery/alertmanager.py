"""A real Alertmanager from the infra image, with the role's settings."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from muster.load import load_inventory
from tests.delivery.conftest import ROOT, free_port, infra_image, until

# What gathers for seconds on a cluster gathers for a moment here.
QUICK = {"__alertmanager_wait": "1s", "__alertmanager_interval": "1s"}
HOST = "server84"


class Alertmanager:
    """Told of alerts as Prometheus does it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}/alertmanager"
        self.began: dict[str, datetime] = {}

    def call(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text.startswith((b"[", b"{")) else text

    def ready(self) -> bool:
        try:
            return bool(self.call("/-/ready"))
        except OSError:
            return False

    def tell(self, *alerts: dict[str, str], over: bool = False, fix: str = "mend it") -> None:
        """Alerts by their labels; what they say is made from these."""
        now = datetime.now(UTC)
        body = []
        for labels in alerts:
            began = self.began.setdefault(json.dumps(labels), now)
            body.append(
                {
                    "labels": {"cluster": "mine", "severity": "critical", **labels},
                    "annotations": {"summary": f"{labels['alertname']} it is", "fix": fix},
                    "startsAt": began.isoformat(),
                    "endsAt": (now if over else now + timedelta(minutes=4)).isoformat(),
                    "generatorURL": "/prometheus/graph?g0.expr=up",
                }
            )
        self.call("/api/v2/alerts", body)

    def since(self, **labels: str) -> str:
        return self.began[json.dumps(labels)].strftime("%Y-%m-%d %H:%M:%S UTC")

    def failed(self, way: str) -> bool:
        """Whether a message by that way could not be sent."""
        figures = self.call("/metrics").decode()
        found = re.findall(
            rf'alertmanager_notification_requests_failed_total{{.*integration="{way}".*}} (\d+)', figures
        )
        return any(map(int, found))

    def muted(self) -> dict[str, bool]:
        """Every alert there is, and whether another one or a silence mutes it."""
        return {
            one["labels"]["alertname"]: bool(one["status"]["state"] == "suppressed")
            for one in self.call("/api/v2/alerts")
        }


def settings_of(folder: Path, render: Callable[..., str], **settings: Any) -> dict[str, Any]:
    """Its files as the role writes them; returns the settings."""
    hostvars, groups = load_inventory([ROOT / "inventory/example"], settings)
    values = {"groups": groups, "inventory_hostname": HOST, **settings}
    text = render("alertmanager", "alertmanager.yml.j2", hostvars, HOST, **values)
    (folder / "alertmanager.yml").write_text(text)
    (folder / "messages.tmpl").write_text((ROOT / "roles/alertmanager/files/messages.tmpl").read_text())
    return dict(yaml.safe_load(text))


def command_of(render: Callable[..., str], port: int) -> list[str]:
    """What its Compose file starts, at a port of our own."""
    hostvars, groups = load_inventory([ROOT / "inventory/example"])
    values = {"groups": groups, "inventory_hostname": HOST, "__alertmanager_address": f"127.0.0.1:{port}"}
    text = render("alertmanager", "compose.yml.j2", hostvars, HOST, alertmanager_image="any", **values)
    return list(yaml.safe_load(text)["services"]["alertmanager"]["entrypoint"])


@contextmanager
def alertmanager(
    folder: Path, render: Callable[..., str], ca: Path | None = None, **settings: Any
) -> Iterator[Alertmanager]:
    """One that runs; `settings` are variables of the inventory."""
    made = Alertmanager(free_port())
    settings_of(folder, render, **QUICK, **settings)
    program, *words = command_of(render, made.port)
    name = f"muster-alertmanager-{uuid.uuid4().hex[:8]}"
    subprocess.run(
        [
            *("docker", "run", "-d", "--name", name, "--network", "host", "--user", "0:0", "--read-only"),
            *("--cap-drop=ALL", "--tmpfs", "/var/lib/alertmanager", "-v", f"{folder}:/etc/muster/live:ro"),
            *(("-v", f"{ca}:/ca.crt:ro", "-e", "SSL_CERT_FILE=/ca.crt") if ca else ()),
            *("--entrypoint", program, infra_image(), *words),
        ],
        check=True,
        capture_output=True,
    )
    try:
        until(made.ready, "Alertmanager answers")
        yield made
    finally:
        print(subprocess.run(["docker", "logs", name], capture_output=True, text=True).stderr[-4000:])
        subprocess.run(["docker", "rm", "-f", name], check=True, capture_output=True)
