"""The registry serves hosts of the cluster and does not even talk to others."""

from __future__ import annotations

import subprocess

PKI = "/etc/muster/pki"
CATALOG = "https://172.30.0.1:5000/v2/_catalog"


def curl(host: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["docker", "exec", f"registry-{host}", "curl", "-sS", "--max-time", "10", *options, CATALOG]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_host_with_a_certificate_is_served() -> None:
    answer = curl("server1", "--cacert", f"{PKI}/ca.crt", "--cert", f"{PKI}/host.crt", "--key", f"{PKI}/host.key")
    assert answer.returncode == 0, answer.stderr
    assert "repositories" in answer.stdout


def test_a_host_without_a_certificate_is_refused() -> None:
    for host, trust in (("server1", ["--cacert", f"{PKI}/ca.crt"]), ("server2", ["--insecure"])):
        answer = curl(host, *trust)
        assert answer.returncode != 0
        assert "repositories" not in answer.stdout
        assert "certificate" in answer.stderr, answer.stderr


def test_the_registry_is_not_root_and_cannot_write_outside_its_volume() -> None:
    form = "{{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}}"
    run = subprocess.run(["docker", "inspect", "-f", form, "muster-registry"], capture_output=True, text=True)
    assert run.stdout.split() == ["10077:10077", "true", "[ALL]"]
