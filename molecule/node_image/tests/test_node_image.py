"""What the images hold, and that they are only where they are used."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "molecule/shared"))
from canary import on  # noqa: E402

EMPTY_TAR = bytes(10240)

# A task asks for a wheel of this folder; it says what it found, and where the image's libraries came from.
ASKS_FOR_A_WHEEL = """
import ray, zipfile

with zipfile.ZipFile("/tmp/vat-1.0-py3-none-any.whl", "w") as wheel:
    wheel.writestr("vat.py", "RATE = 19")
    wheel.writestr("vat-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: vat\\nVersion: 1.0\\n")
    wheel.writestr("vat-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    wheel.writestr("vat-1.0.dist-info/RECORD", "")

def look():
    import numpy, vat
    return vat.RATE, numpy.__file__

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
offline = {"packages": ["vat"], "pip_install_options": ["--no-index", "--find-links=/tmp"]}
print(*ray.get(ray.remote(look).options(runtime_env={"pip": offline}).remote()))
"""


def images(host: str) -> list[str]:
    command = ["docker", "exec", f"node_image-{host}", "docker", "images", "--format", "{{.Repository}}:{{.Tag}}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def node_image() -> str:
    return next(image for image in images("server1") if "/node:" in image)


def in_image(*command: str) -> str:
    """Run a command in the node image on the host that fetched it."""
    run = subprocess.run(
        ["docker", "exec", "node_image-server1", "docker", "run", "--rm", "--network", "none", node_image(),
         *command], capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_a_host_fetches_the_images_it_runs_and_no_others() -> None:
    # server1 runs Ray, Celery and the broker; the laptop Celery, and the exporter of its figures as every host.
    infra, node = sorted(images("server1"))
    assert node.startswith("172.30.0.1:5000/muster/node:core-") and "/muster/infra:" in infra
    assert sorted(images("laptop1")) == [infra, node]


def test_the_image_holds_the_pinned_versions() -> None:
    code = (
        "import json, celery, ray, redis, sys;"
        "print(json.dumps([sys.version_info[:2], ray.__version__, celery.__version__, redis.__version__]))"
    )
    assert json.loads(in_image("python", "-c", code).splitlines()[-1]) == [[3, 11], "2.60.0", "5.7.0", "8.1.0"]


def test_the_image_runs_as_nobody_in_particular() -> None:
    assert in_image("id", "-u").strip() == "10077"


def test_nothing_of_the_build_is_left_in_the_image() -> None:
    left = "ls -d /build /tmp/apt.list /usr/bin/gcc /usr/bin/pip /usr/local/bin/pip /usr/local/bin/uv"
    assert in_image("sh", "-c", f"{left} 2>/dev/null || true").strip() == ""


def test_python_is_compiled_for_a_user_who_cannot_write_it() -> None:
    code = "import ray, os, glob; print(len(glob.glob(os.path.dirname(ray.__file__) + '/__pycache__/*.pyc')))"
    assert int(in_image("python", "-c", code)) > 10
    assert "denied" in in_image("sh", "-c", "touch $(python -c 'import ray; print(ray.__file__)') 2>&1 || true")


def test_a_task_brings_a_library_of_its_own_and_none_of_the_image_is_copied_for_it() -> None:
    rate, numpy = in_image("python", "-c", ASKS_FOR_A_WHEEL).split()[-2:]
    assert rate == "19"
    assert numpy == in_image("python", "-c", "import numpy; print(numpy.__file__)").strip()


def test_jobs_trust_the_authorities_that_the_build_trusts() -> None:
    machine = subprocess.run([sys.executable, ROOT / "inventory/lab/machine.py"], capture_output=True, check=True)
    bundle = json.loads(machine.stdout)["all"]["vars"]["muster_extra_ca"]
    if not bundle:
        pytest.skip("this machine has no authorities of its own: MUSTER_EXTRA_CA")
    certificates = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
    wanted = set(certificates.findall(Path(bundle).expanduser().read_text()))
    assert wanted
    for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        assert wanted <= set(certificates.findall(in_image("sh", "-c", f'cat "${variable}"')))


def test_old_images_leave_a_host_when_a_new_one_comes() -> None:
    host, current = "node_image-server1", node_image()
    repository = current.rpartition(":")[0]
    for number in range(3):
        on(host, "docker", "import", "--change", "LABEL muster.image=node", f"--message=release {number}", "-",
           f"{repository}:core-old{number}", stdin=EMPTY_TAR)  # fmt: skip
    on(host, "docker", "import", "-", "somebody/elses:1", stdin=EMPTY_TAR)
    on(host, "docker", "rmi", current)
    try:
        subprocess.run(
            ["ansible-playbook", "--inventory=inventory/lab/groups.yml", "--inventory=inventory/lab/machine.py",
             "--inventory=molecule/node_image/inventory/hosts.yml", "--limit=server1", "playbooks/images.yml"],
            cwd=ROOT, check=True, capture_output=True,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "MOLECULE_SCENARIO_NAME": "node_image"},
        )  # fmt: skip
        ours = [image for image in images("server1") if image.startswith(repository)]
        assert current in ours
        assert len(ours) == 2
        assert "somebody/elses:1" in images("server1")
    finally:
        for image in images("server1"):
            if image != current:
                on(host, "docker", "rmi", image)


def test_the_infra_image_holds_what_its_services_run() -> None:
    listing = subprocess.run(
        ["docker", "images", "--format", "{{.Repository}}:{{.Tag}}"], capture_output=True, text=True, check=True
    ).stdout.split()
    infra = next(image for image in listing if "/muster/infra:" in image)
    programs = ["caddy", "docker-registry", "prometheus", "prometheus-alertmanager", "prometheus-node-exporter",
                "prometheus-redis-exporter", "redis-server", "restic"]  # fmt: skip
    which = ["sh", "-c", 'for program; do command -v "$program"; done', "sh", *programs]
    command = ["docker", "run", "--rm", "--network", "none", infra, *which]
    run = subprocess.run(command, capture_output=True, text=True)
    assert len(run.stdout.split()) == len(programs), run.stdout + run.stderr
