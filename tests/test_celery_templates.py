"""What the Celery roles write, rendered strictly for a host of the example."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from muster.celery_sizing import CHILD, OVERHEAD, celery_workers
from muster.load import load_inventory

from .conftest import ROOT, Groups, Vars, role_variables

Render = Callable[..., str]
ROLES = ("celery_worker", "celery_beat", "celery_metrics", "flower")
SERVICES = {
    "celery_worker": "{{ __celery_worker_services }}",
    "celery_beat": ["{{ __celery_beat_service }}"],
    "celery_metrics": ["{{ __celery_metrics_service }}"],
    "flower": ["{{ __flower_service }}"],
}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[Vars, Groups]:
    secrets = {"muster_secrets_dir": str(tmp_path_factory.mktemp("secrets"))}
    return load_inventory([ROOT / "inventory" / "example"], secrets)


@pytest.fixture
def write(render: Render, example: tuple[Vars, Groups], tmp_path: Path) -> Render:
    def call(role: str, template: str, host: str = "server84", **changes: Any) -> str:
        roles: dict[str, Any] = {}
        for name in (*ROLES, "celery_service", "pki"):
            roles.update(role_variables(name))
        hostvars, groups = example
        values = {
            **roles,
            "groups": groups,
            "inventory_hostname": host,
            "muster_secrets_dir": str(tmp_path),
            "ansible_facts": {"processor_vcpus": 8},
            "infra_image_ref": "registry:5000/muster/infra:0",
            "node_image_ref": "registry:5000/muster/node:0",
            **changes,
        }
        return render(role, template, hostvars, host, **values)

    return call


def compose(write: Render, role: str, **changes: Any) -> dict[str, Any]:
    files = {"celery_beat": {"schedule.json": ""}, "flower": {"flowerconfig.py": ""}}.get(role, {})
    text = write(
        "celery_service", "compose.yml.j2", celery_service_list=SERVICES[role], celery_service_project=role,
        celery_service_files=files, **changes,
    )  # fmt: skip
    services: dict[str, Any] = yaml.safe_load(text)["services"]
    return services


@pytest.mark.parametrize("role", ROLES)
def test_every_service_is_limited_unprivileged_and_says_whether_it_is_well(write: Render, role: str) -> None:
    for service in compose(write, role).values():
        assert service["mem_limit"] == service["memswap_limit"] > 100 * 2**20
        assert service["cpus"] and service["pids_limit"] and service["cap_drop"] == ["ALL"] and service["read_only"]
        assert service["user"] == "10077:10077" and service["healthcheck"]["test"][0] == "CMD"
        assert service["entrypoint"] and service["command"] == []


@pytest.mark.parametrize("role", ROLES)
def test_no_secret_is_in_a_compose_file(write: Render, role: str, tmp_path: Path) -> None:
    backend = "db+postgresql+psycopg://muster:o$pen@db/results"
    text = str(compose(write, role, celery_result_backend=backend))
    assert "celery.env:/etc/muster/celery.env:ro" in text
    write("celery_redis", "users.acl.j2")  # makes the passwords
    secrets = [path.read_text().split()[0] for path in tmp_path.iterdir()]
    assert len(secrets) >= 3
    assert not any(secret in text for secret in [*secrets, "o$pen", "o$$pen"])


def test_a_worker_has_its_queues_its_limits_and_a_name_of_its_own(write: Render) -> None:
    spec = [{"queues": ["data"], "concurrency": 3, "child_memory": "512M", "prefetch": 2}, {"queues": ["ml"]}]
    sizes = celery_workers(spec, host_cpus=8, ray=True)
    services = compose(write, "celery_worker", __celery_worker_sizes=sizes)
    environment = services["data"]["environment"]
    assert environment["MUSTER_WORKER"] == "server84/data" and environment["MUSTER_QUEUES"] == "data"
    assert (environment["MUSTER_CONCURRENCY"], environment["MUSTER_PREFETCH"]) == ("3", "2")
    assert environment["MUSTER_CHILD_MEMORY_MB"] == "512" and services["data"]["mem_limit"] == (256 + 3 * 512) * 2**20
    assert environment["MUSTER_REDIS_URL"] == "rediss://app@10.0.0.84:6380/0"
    # Longer than its tasks get to end, or Docker would kill it in the middle.
    assert int(services["ml"]["stop_grace_period"].removesuffix("s")) > int(environment["MUSTER_SOFT_SHUTDOWN"])


def test_a_worker_beside_ray_is_a_driver_of_the_first_node_and_jobs_are_for_the_head_only(write: Render) -> None:
    head = compose(write, "celery_worker")["ml"]
    assert "/var/lib/muster/ray_worker/worker-1:/var/lib/node" in head["volumes"]
    environment = head["environment"]
    assert environment["MUSTER_RAY_NODE"] == "server84/worker-1" and environment["RAY_USE_TLS"] == "1"
    assert environment["MUSTER_RAY_ADDRESS"] == "10.0.0.84:6379"
    assert environment["MUSTER_RAY_JOBS_URL"] == "http://127.0.0.1:8265"
    other = compose(write, "celery_worker", host="server80", inventory_hostname="server80")
    assert set(other) == {"default-data"}
    assert "MUSTER_RAY_JOBS_URL" not in other["default-data"]["environment"]
    assert other["default-data"]["environment"]["MUSTER_RAY_NODE"] == "server80/worker-1"


def test_two_instances_of_beat_one_of_them_beside_the_broker(write: Render) -> None:
    hosts = role_variables("celery_beat")["__celery_beat_hosts"]
    assert "celery_beat_instances" in hosts
    services = compose(write, "celery_beat")
    assert "./schedule.json:/etc/muster/schedule.json:ro" in services["beat"]["volumes"]


def test_flower_is_on_loopback_with_a_login(write: Render, tmp_path: Path) -> None:
    text = write("flower", "flowerconfig.py.j2", flower_url_prefix="flower", flower_options={"auto_refresh": False})
    settings = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    password = (tmp_path / "flower_password").read_text().split()[0]
    assert settings["address"] == "127.0.0.1" and settings["basic_auth"] == [f"operator:{password}"]
    assert settings["persistent"] is True and settings["purge_offline_workers"] > 0
    assert settings["url_prefix"] == "flower" and settings["auto_refresh"] is False


def test_redis_is_closed_to_all_but_its_users_and_keeps_what_it_is_given(write: Render, tmp_path: Path) -> None:
    text = write("celery_redis", "redis.conf.j2")
    settings = dict(line.split(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    assert settings["bind"] == "10.0.0.84 127.0.0.1 -::1" and settings["port"] == "0"
    assert settings["tls-port"] == "6380" and settings["protected-mode"] == "yes"
    assert settings["maxmemory-policy"] == "noeviction" and settings["maxmemory"] == str(512 * 2**20)
    assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "everysec")

    users = dict(line.split(" ", 2)[1:] for line in write("celery_redis", "users.acl.j2").splitlines())
    laptops = {"laptop-laptop1", "laptop-laptop2"}
    assert set(users) == {"default", "app", "exporter", "operator", *laptops}
    assert users["default"].startswith("off ")
    for name in ("app", "exporter", "operator"):
        password = (tmp_path / f"celery_{name}_password").read_text().split()[0]
        assert f"#{hashlib.sha256(password.encode()).hexdigest()}" in users[name] and password not in users[name]


def test_a_laptop_has_the_rights_of_an_application_and_a_password_of_its_own(write: Render) -> None:
    users = dict(line.split(" ", 2)[1:] for line in write("celery_redis", "users.acl.j2").splitlines())
    words = {name: users[name].split() for name in ("app", "laptop-laptop1", "laptop-laptop2")}
    assert len({line[1] for line in words.values()}) == 3
    assert len({tuple(line[2:]) for line in words.values()}) == 1
    mine = {"host": "laptop1", "inventory_hostname": "laptop1"}
    (worker,) = compose(write, "celery_worker", **mine).values()
    assert worker["environment"]["MUSTER_REDIS_URL"] == "rediss://laptop-laptop1@10.0.0.84:6380/0"


def test_a_laptop_s_owner_does_not_feel_the_worker_and_can_pause_it(write: Render) -> None:
    mine = {"host": "laptop1", "inventory_hostname": "laptop1"}
    (worker,) = compose(write, "celery_worker", **mine).values()
    assert worker["entrypoint"][-10:-3] == ["sh", "nice", "-n", "19", "ionice", "-c", "3"]
    assert worker["cpu_shares"] == 64 and worker["cpus"] == 1.0 and worker["mem_limit"] == OVERHEAD + CHILD
    assert worker["environment"]["MUSTER_LAPTOP"] == "/laptop" and worker["environment"]["MUSTER_CONCURRENCY"] == "1"
    assert {"/var/lib/muster/laptop:/laptop:ro", "/var/lib/muster/laptop/said:/laptop/said"} <= set(worker["volumes"])
    server = compose(write, "celery_worker", host="server80", inventory_hostname="server80")["default-data"]
    assert "cpu_shares" not in server and "nice" not in server["entrypoint"]
    assert "MUSTER_LAPTOP" not in server["environment"] and not any("/laptop" in it for it in server["volumes"])
    assert server["environment"]["MUSTER_DRAIN"] == "/drain" and "MUSTER_DRAIN" not in worker["environment"]
    assert {"/var/lib/muster/drain:/drain:ro", "/var/lib/muster/drain/said:/drain/said"} <= set(server["volumes"])


def test_redis_has_room_to_copy_itself(write: Render) -> None:
    services = yaml.safe_load(write("celery_redis", "compose.yml.j2"))["services"]
    assert services["redis"]["mem_limit"] == (2 * 512 + 64) * 2**20
