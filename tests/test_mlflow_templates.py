"""MLflow where its group has a server: its Compose project, the way to it; and nothing where the group is empty."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from muster.inventory import firewall_rules
from muster.load import load_inventory

from .conftest import ROOT, Groups, Vars

HEAD, SERVER, LAPTOP = "server84", "server80", "laptop1"
Value = Callable[..., Any]


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> tuple[Vars, Groups]:
    """The example, with MLflow on a server that is not the head."""
    return load(tmp_path_factory.mktemp("on"), SERVER)


@pytest.fixture(scope="module")
def off(tmp_path_factory: pytest.TempPathFactory) -> tuple[Vars, Groups]:
    return load(tmp_path_factory.mktemp("off"))


def load(folder: Path, *hosts: str) -> tuple[Vars, Groups]:
    extra = folder / "extra.yml"
    extra.write_text(json.dumps({"all": {"children": {"mlflow": {"hosts": dict.fromkeys(hosts)}}}}))
    return load_inventory(
        [ROOT / "inventory/example", extra], {"muster_secrets_dir": str(folder), "storage_path": "/srv/share"}
    )


@pytest.fixture
def value(render: Callable[..., str], tmp_path: Path) -> Value:
    """What a role's variable is on a host."""

    def call(inventory: tuple[Vars, Groups], role: str, text: str, host: str, **more: Any) -> Any:
        hostvars, groups = inventory
        template = tmp_path / "value.j2"
        template.write_text(f"{{{{ ({text}) | to_json }}}}")
        return json.loads(render(role, str(template), hostvars, host, groups=groups, inventory_hostname=host, **more))

    return call


def test_it_is_limited_unprivileged_and_says_whether_it_is_well(
    render: Callable[..., str], on: tuple[Vars, Groups]
) -> None:
    hostvars, groups = on
    url = "postgresql+psycopg://a:secret$1@db/mlflow"
    text = render("mlflow", "compose.yml.j2", hostvars, SERVER, groups=groups, inventory_hostname=SERVER,
                  mlflow_database_url=url)  # fmt: skip
    (service,) = yaml.safe_load(text)["services"].values()
    assert "secret" not in text
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["user"] == "10077:10077"
    assert service["mem_limit"] == service["memswap_limit"]
    assert service["healthcheck"]["test"][-1].startswith("import urllib.request")
    assert "http://10.0.0.80:5050/mlflow/health" in service["healthcheck"]["test"][-1]
    # Compose takes two for one.
    assert service["entrypoint"][2] == 'export MLFLOW_BACKEND_STORE_URI="$$(cat /etc/muster/database_url)"; exec "$$@"'
    command = service["entrypoint"][4:]
    assert command[:2] == ["mlflow", "server"]
    assert {"--host=10.0.0.80", "--port=5050", "--static-prefix=/mlflow", "--allowed-hosts=10.0.0.80:5050",
            "--artifacts-destination=/srv/muster/mlartifacts"} <= set(command)  # fmt: skip
    assert "/srv/share:/srv/muster:rslave" in service["volumes"]


def test_jobs_on_servers_know_of_it_and_laptops_do_not(
    value: Value, on: tuple[Vars, Groups], off: tuple[Vars, Groups]
) -> None:
    wanted = {"MLFLOW_TRACKING_URI": "http://10.0.0.80:5050/mlflow"}
    assert value(on, "mlflow", "mlflow_environment", HEAD) == wanted
    assert value(on, "mlflow", "mlflow_environment", LAPTOP) == value(off, "mlflow", "mlflow_environment", HEAD) == {}
    for part in ("defaults/main.yml", "meta/argument_specs.yml"):
        assert "mlflow_environment" in (ROOT / "roles/ray_node" / part).read_text()


def test_the_gateway_leads_to_it(
    render: Callable[..., str], value: Value, on: tuple[Vars, Groups], off: tuple[Vars, Groups]
) -> None:
    assert value(on, "gateway", "__gateway_pages", HEAD)["mlflow"] == "10.0.0.80:5050"
    assert {"name": "MLflow", "path": "/mlflow/"} in value(on, "gateway", "__gateway_site", HEAD)["pages"]
    assert "mlflow" not in value(off, "gateway", "__gateway_pages", HEAD)
    hostvars, groups = on
    text = render("gateway", "Caddyfile.j2", hostvars, HEAD, groups=groups, inventory_hostname=HEAD)
    _, _, after = text.partition("handle /mlflow/* {")
    block = after.partition("\n\t\t}")[0]
    # Else it answers 403: it asks for its own name, and refuses what a page of another site sends.
    assert "header_up Host {upstream_hostport}" in block and "header_up -Origin" in block
    assert text.count("header_up -Origin") == 1


def test_only_servers_and_the_gateway_reach_its_port(on: tuple[Vars, Groups]) -> None:
    hostvars, groups = on
    table = hostvars[SERVER]["muster_ports"]
    (rule,) = (rule for rule in firewall_rules(hostvars, groups, table, SERVER) if rule["ports"] == "5050")
    others = [hostvars[host]["muster_address"] for host in groups["server"] if host != SERVER]
    assert sorted(rule["from"]) == sorted(others)
    assert hostvars[LAPTOP]["muster_address"] not in rule["from"]
    assert not [rule for rule in firewall_rules(hostvars, groups, table, HEAD) if rule["ports"] == "5050"]
