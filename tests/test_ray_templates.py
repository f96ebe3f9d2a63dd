"""The Compose files of Ray's head and workers, rendered strictly and judged by Compose where there is one."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "roles/ray_node/templates/compose.yml.j2"

PORTS = {
    "node_manager": 24256,
    "object_manager": 24257,
    "runtime_env_agent": 24258,
    "dashboard_agent_listen": 24259,
    "dashboard_agent_grpc": 24260,
    "metrics_export": 24261,
    "worker_min": 24262,
    "worker_max": 24511,
    "gcs": 6379,
    "dashboard": 8265,
    "client": 10001,
    "autoscaler_metrics": 44217,
    "dashboard_metrics": 44227,
}


def node(name: str = "worker-1", **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "head": False,
        "cpus": 2,
        "cpu_limit": 2.0,
        "memory": 6 * 2**30,
        "object_store": 2**30,
        "shm": 2**30 + 2**24,
        "heap": 4 * 2**30,
        "gpus": 0,
        "gpu_ids": [],
        "labels": {"host": "server1", "class": "server", "node": name},
        "resources": {},
        "ports": PORTS,
        **changes,
    }


@pytest.fixture(scope="session")
def render() -> Any:
    init_plugin_loader()

    def call(nodes: list[dict[str, Any]], **changes: Any) -> str:
        variables = {
            "inventory_hostname": "server1",
            "muster_address": "10.0.0.81",
            "muster_uid": 10077,
            "muster_gid": 10077,
            "muster_dir": "/opt/muster",
            "ray_node_title": "Ray workers",
            "ray_node_project": "ray_worker",
            "ray_node_image": "registry:5000/muster/node:core-0",
            "ray_node_environment": {"RAY_AUTH_MODE": "token"},
            "ray_node_data_dir": "/var/lib/muster/ray_worker",
            "ray_node_head_address": "10.0.0.84",
            "ray_node_pids_limit": 8192,
            "ray_node_volumes": [],
            "ray_node_laptop_dir": "",
            "ray_node_drain_dir": "",
            "ray_node_list": nodes,
            **changes,
        }
        templar = Templar(loader=DataLoader(), variables=variables)
        overrides = {"trim_blocks": True, "lstrip_blocks": False}
        from ansible.template import trust_as_template

        return str(templar.copy_with_new_env(**overrides).template(trust_as_template(TEMPLATE.read_text())))

    return call


def judged(text: str, tmp_path: Path) -> dict[str, Any]:
    """What Compose makes of it; plain YAML where there is no Compose."""
    has_compose = (
        shutil.which("docker")
        and subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
    )
    if not has_compose:
        read: dict[str, Any] = yaml.safe_load(text)
        return read
    (tmp_path / "compose.yml").write_text(text)
    (tmp_path / ".env").write_text("MUSTER_REVISION=0\n")
    done = subprocess.run(
        ["docker", "compose", "-f", "compose.yml", "config", "--format", "json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_two_workers_are_two_services_that_differ_in_ports_and_data(render: Any, tmp_path: Path) -> None:
    other = {name: port + 256 if port > 20000 else port for name, port in PORTS.items()}
    project = judged(render([node(), node("worker-2", ports=other)]), tmp_path)
    one, two = project["services"]["worker-1"], project["services"]["worker-2"]
    assert "--node-manager-port=24256" in one["command"] and "--node-manager-port=24512" in two["command"]
    assert "--address=10.0.0.84:6379" in one["command"]
    assert "--labels=class=server,host=server1,node=worker-1" in one["command"]
    assert one["volumes"] != two["volumes"]


def test_every_service_is_limited_and_unprivileged(render: Any, tmp_path: Path) -> None:
    for service in judged(render([node(), node("worker-2")]), tmp_path)["services"].values():
        assert float(service["cpus"]) == 2
        assert int(service["mem_limit"]) == int(service["memswap_limit"]) == 6 * 2**30
        assert int(service["pids_limit"]) == 8192
        assert int(service["shm_size"]) > 2**30
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["restart"] == "always"
        assert service["user"] == "10077:10077"
        assert service["entrypoint"] and service["command"]
        assert service["healthcheck"]["test"][-1].endswith("/api/local_raylet_healthz")


def test_the_head_keeps_its_state_on_disk_and_its_dashboard_to_itself(render: Any, tmp_path: Path) -> None:
    head = node("head", head=True, cpus=0)
    project = judged(render([head], ray_node_data_dir="/var/lib/muster/ray_head"), tmp_path)
    service = project["services"]["head"]
    assert {"--head", "--port=6379", "--num-cpus=0", "--dashboard-host=127.0.0.1"} <= set(service["command"])
    assert not any(argument.startswith("--address") for argument in service["command"])
    assert service["environment"]["RAY_gcs_storage"] == "rocksdb"
    assert service["environment"]["RAY_gcs_storage_path"] == "/var/lib/node/gcs"
    assert "http://127.0.0.1:8265/api/gcs_healthz" in service["healthcheck"]["test"]


def test_gpus_are_reserved_by_number_so_that_two_workers_never_share_one(render: Any, tmp_path: Path) -> None:
    workers = [node(gpus=1, gpu_ids=[0]), node("worker-2", gpus=2, gpu_ids=[1, 2]), node("worker-3")]
    services = judged(render(workers), tmp_path)["services"]
    devices = services["worker-2"]["deploy"]["resources"]["reservations"]["devices"]
    assert [device["device_ids"] for device in devices] == [["1", "2"]]
    assert "--num-gpus=2" in services["worker-2"]["command"]
    assert "deploy" not in services["worker-3"]
    assert not any("gpus" in argument for argument in services["worker-3"]["command"])


def test_custom_resources_and_dollar_signs_survive(render: Any, tmp_path: Path) -> None:
    text = render([node(resources={"fast disk": 1})], ray_node_environment={"RAY_x": "a$b: 'c'"})
    service = judged(text, tmp_path)["services"]["worker-1"]
    argument = next(argument for argument in service["command"] if argument.startswith("--resources="))
    assert json.loads(argument.removeprefix("--resources=")) == {"fast disk": 1}
    assert service["environment"]["RAY_x"].replace("$$", "$") == "a$b: 'c'"


def test_a_missing_value_is_an_error_and_not_an_empty_option(render: Any) -> None:
    broken = node()
    del broken["heap"]
    with pytest.raises(Exception, match="heap"):
        render([broken])


def test_a_laptops_node_listens_to_its_agent_and_a_servers_to_who_drains_it(render: Any, tmp_path: Path) -> None:
    head = judged(render([node()]), tmp_path)["services"]["worker-1"]
    assert not {"MUSTER_LAPTOP", "MUSTER_DRAIN"} & set(head["environment"])
    server = judged(render([node()], ray_node_drain_dir="/var/lib/muster/drain"), tmp_path)["services"]["worker-1"]
    assert "MUSTER_LAPTOP" not in server["environment"] and server["environment"]["MUSTER_DRAIN"] == "/drain"
    assert server["environment"]["MUSTER_RAY_NODE"] == "worker-1"
    assert "/var/lib/muster/drain/said" in json.dumps(server["volumes"])
    laptop = judged(render([node()], ray_node_laptop_dir="/var/lib/muster/laptop"), tmp_path)["services"]["worker-1"]
    assert laptop["environment"]["MUSTER_LAPTOP"] == "/laptop"
    assert laptop["environment"]["MUSTER_RAY_NODE"] == "worker-1"
    assert "/var/lib/muster/laptop" in json.dumps(laptop["volumes"])
