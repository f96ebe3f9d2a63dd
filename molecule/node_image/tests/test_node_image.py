"""What the images hold, and that they are only where they are used."""

from __future__ import annotations

import json
import subprocess


def images(host: str) -> list[str]:
    command = ["docker", "exec", f"node_image-{host}", "docker", "images", "--format", "{{.Repository}}:{{.Tag}}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def in_image(*command: str) -> str:
    """Run a command in the node image on the host that fetched it."""
    run = subprocess.run(
        ["docker", "exec", "node_image-server1", "docker", "run", "--rm", "--network", "none", images("server1")[0],
         *command], capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_only_a_host_that_runs_ray_fetches_the_image() -> None:
    assert len(images("server1")) == 1
    assert images("server1")[0].startswith("172.30.0.1:5000/muster/node:core-")
    assert images("server2") == []


def test_the_image_holds_the_pinned_versions() -> None:
    code = (
        "import json, celery, ray, redis, sys;"
        "print(json.dumps([sys.version_info[:2], ray.__version__, celery.__version__, redis.__version__]))"
    )
    assert json.loads(in_image("python", "-c", code).splitlines()[-1]) == [[3, 11], "2.60.0", "5.7.0", "8.1.0"]


def test_the_image_runs_as_nobody_in_particular() -> None:
    assert in_image("id", "-u").strip() == "10077"


def test_nothing_of_the_build_is_left_in_the_image() -> None:
    assert in_image("sh", "-c", "ls -d /build /usr/bin/gcc 2>/dev/null || true").strip() == ""


def test_the_infra_image_holds_what_its_services_run() -> None:
    listing = subprocess.run(
        ["docker", "images", "--format", "{{.Repository}}:{{.Tag}}"], capture_output=True, text=True, check=True
    ).stdout.split()
    infra = next(image for image in listing if "/muster/infra:" in image)
    programs = ["caddy", "docker-registry", "prometheus", "prometheus-alertmanager", "prometheus-node-exporter",
                "prometheus-redis-exporter", "redis-server", "restic"]  # fmt: skip
    command = ["docker", "run", "--rm", "--network", "none", infra, "sh", "-c", "command -v " + " ".join(programs)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert len(run.stdout.split()) == len(programs), run.stdout + run.stderr
