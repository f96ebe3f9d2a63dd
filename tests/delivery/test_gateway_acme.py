"""A gateway with a public name gets its certificate from an ACME authority: here a Caddy that is one."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from muster.load import load_inventory
from tests.conftest import role_variables
from tests.delivery.conftest import ROOT, infra_image, until

NAME = "cluster.example.org"
AUTHORITY = """{
	admin off
	skip_install_trust
	pki {
		ca local {
			root_cn "The world"
		}
	}
}
acme.example.org {
	tls internal
	acme_server
}
"""


@dataclass
class World:
    """A network with an authority and the gateway in it."""

    network: str

    def run(self, name: str, *arguments: str) -> None:
        subprocess.run(
            [
                *(
                    "docker",
                    "run",
                    "-d",
                    "--name",
                    f"{self.network}-{name}",
                    "--network",
                    self.network,
                    "--user",
                    "0:0",
                ),
                *("-e", "HOME=/tmp", "-e", "XDG_DATA_HOME=/var/lib/caddy", "-e", "XDG_CONFIG_HOME=/tmp"),
                *("--tmpfs", "/run/caddy", "--cap-drop=ALL", "--cap-add=NET_BIND_SERVICE", *arguments, infra_image()),
                *("caddy", "run", "--config", "/etc/muster/Caddyfile", "--adapter", "caddyfile"),
            ],
            check=True,
            capture_output=True,
        )

    def inside(self, name: str, *command: str) -> str:
        done = subprocess.run(["docker", "exec", f"{self.network}-{name}", *command], capture_output=True, text=True)
        return done.stdout + done.stderr

    def issuer(self, server: str) -> str:
        """Who signed the certificate that a browser gets which asks for this name."""
        asked = f"openssl s_client -connect 127.0.0.1:443 -servername {server} </dev/null 2>/dev/null"
        return self.inside("gateway", "sh", "-c", f"{asked} | openssl x509 -noout -issuer")


@pytest.fixture
def world(tmp_path: Path, render: Callable[..., str]) -> Iterator[World]:
    made = World(f"muster-acme-{uuid.uuid4().hex[:8]}")
    for folder in ("authority", "gateway/pki", "gateway/page"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "authority/Caddyfile").write_text(AUTHORITY)
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-subj", "/CN=our own", "-days", "1", "-nodes"),
            *("-keyout", str(tmp_path / "gateway/pki/host.key"), "-out", str(tmp_path / "gateway/pki/host.crt")),
        ],
        check=True,
        capture_output=True,
    )
    hostvars, groups = load_inventory([ROOT / "inventory/example"], {"muster_secrets_dir": str(tmp_path / "secrets")})
    ports = {
        "gateway": 443, "gateway_door": 9180, "gateway_figures": 9181, "ray_dashboard": 8265, "ray_serve": 8000,
    }  # fmt: skip
    values = {
        **role_variables("flower"), **role_variables("gateway"),
        "groups": groups, "inventory_hostname": "server84", "muster_address": "127.0.0.1", "ray_token": "token-of-ray",
        "flower_password": "password-of-flower", "__gateway_ports": ports, "__gateway_pages": {},
        "gateway_public_name": NAME, "gateway_acme_mail": "ops@example.org",
        "gateway_acme_url": "https://acme.example.org/acme/local/directory",
    }  # fmt: skip
    (tmp_path / "gateway/Caddyfile").write_text(render("gateway", "Caddyfile.j2", hostvars, "server84", **values))
    subprocess.run(["docker", "network", "create", made.network], check=True, capture_output=True)
    try:
        made.run("authority", "--network-alias", "acme.example.org", "-v", f"{tmp_path}/authority:/etc/muster:ro",
                 "--tmpfs", "/var/lib/caddy")  # fmt: skip
        root = "/var/lib/caddy/caddy/pki/authorities/local/root.crt"
        until(lambda: "BEGIN" in made.inside("authority", "cat", root), "the authority has a certificate")
        (tmp_path / "gateway/world.crt").write_text(made.inside("authority", "cat", root))
        made.run("gateway", "--network-alias", NAME, "-v", f"{tmp_path}/gateway:/etc/muster:ro",
                 "-e", "SSL_CERT_FILE=/etc/muster/world.crt", "--tmpfs", "/var/lib/caddy")  # fmt: skip
        yield made
    finally:
        for name in ("gateway", "authority"):
            container = f"{made.network}-{name}"
            print(subprocess.run(["docker", "logs", container], capture_output=True, text=True).stderr[-3000:])
            subprocess.run(["docker", "rm", "-f", container], capture_output=True)
        subprocess.run(["docker", "network", "rm", made.network], check=True, capture_output=True)


def test_a_public_name_has_a_certificate_that_the_world_knows(world: World) -> None:
    until(lambda: "CN=Caddy Local Authority" in world.issuer(NAME), "the certificate is there")
    assert "CN=our own" in world.issuer("head.lan"), "by any other name it is the cluster's"
    seen = ("curl", "-s", "--cacert", "/etc/muster/world.crt", "-o", "/dev/null", "-w", "%{http_code}")
    asked = world.inside("gateway", *seen, f"https://{NAME}/gate/login")
    assert asked == "502", "the door is not there, but Caddy is"
