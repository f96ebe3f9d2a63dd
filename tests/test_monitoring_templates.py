"""What Prometheus and Grafana are given, rendered strictly for the example's head."""

from __future__ import annotations

import configparser
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from muster import expressions
from muster.celery_sizing import SERVICES
from muster.load import load_inventory

from .conftest import ROOT, Groups, Vars

Render = Callable[..., str]
Value = Callable[..., Any]
HEAD, OTHER = "server84", "server80"


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("secrets")


@pytest.fixture(scope="module")
def example(secrets: Path) -> tuple[Vars, Groups]:
    return load_inventory([ROOT / "inventory" / "example"], {"muster_secrets_dir": str(secrets)})


@pytest.fixture
def write(render: Render, example: tuple[Vars, Groups], secrets: Path) -> Callable[..., str]:
    """A template of a role, for the head or another host."""

    def call(role: str, template: str, host: str = HEAD, **changes: Any) -> str:
        hostvars, groups = example
        values = {"groups": groups, "inventory_hostname": host, "muster_secrets_dir": str(secrets), **changes}
        return render(role, template, hostvars, host, **values)

    return call


@pytest.fixture
def value(write: Callable[..., str], tmp_path: Path) -> Value:
    """What a role's variable is."""

    def call(role: str, name: str, **changes: Any) -> Any:
        template = tmp_path / "value.j2"
        template.write_text(f"{{{{ {name} | to_json }}}}")
        return json.loads(write(role, str(template), **changes))

    return call


@pytest.fixture
def ini(write: Callable[..., str]) -> Callable[..., configparser.RawConfigParser]:
    """Grafana's settings, as it reads them."""

    def call(**changes: Any) -> configparser.RawConfigParser:
        found = configparser.RawConfigParser()
        found.read_string(write("grafana", "grafana.ini.j2", **changes))
        return found

    return call


def test_every_job_of_prometheus_has_its_file_of_targets(value: Value) -> None:
    settings = yaml.safe_load(value("prometheus", "__prometheus_settings")["prometheus.yml"])
    places = settings["scrape_configs"] + settings["alerting"]["alertmanagers"]
    wanted = {place["file_sd_configs"][0]["files"][0].rpartition("/")[2] for place in places}
    targets = value("prometheus", "__prometheus_targets")
    assert set(targets) == wanted and len(wanted) > 8
    assert all(json.loads(found) for found in targets.values())


def test_grafana_is_limited_unprivileged_and_says_whether_it_is_well(write: Callable[..., str]) -> None:
    (service,) = yaml.safe_load(write("grafana", "compose.yml.j2"))["services"].values()
    assert service["image"].startswith("grafana/grafana:") and service["image"][-1].isdigit()
    assert service["mem_limit"] == service["memswap_limit"] == 512 * 2**20
    assert service["cpus"] and service["pids_limit"] and service["cap_drop"] == ["ALL"] and service["read_only"]
    assert service["user"] == "10077:10077" and service["security_opt"] == ["no-new-privileges:true"]
    assert service["entrypoint"] and service["command"] == []
    assert service["healthcheck"]["test"][-1] == "http://10.0.0.84:3000/grafana/api/health"


def test_all_that_it_mounts_is_written(write: Callable[..., str], value: Value, secrets: Path) -> None:
    files = value("grafana", "__grafana_files")
    text = write("grafana", "compose.yml.j2")
    volumes = yaml.safe_load(text)["services"]["grafana"]["volumes"]
    mounted = {one.split(":")[0].removeprefix("./") for one in volumes if str(one).startswith("./")}
    assert mounted == set(files)
    dashboards = {name: json.loads(content) for name, content in files.items() if name.endswith(".json")}
    assert set(dashboards) == {path.name for path in (ROOT / expressions.DASHBOARDS).iterdir()}
    assert all(one["uid"] == f"muster-{name.removesuffix('.json')}" for name, one in dashboards.items())
    made = [path.read_text().split()[0] for path in secrets.glob("grafana_*")]
    assert sorted(made) == sorted([files["admin_password"], files["key"]])
    assert not any(secret in text + files["grafana.ini"] for secret in made)


def test_the_data_source_is_the_one_that_dashboards_name(value: Value) -> None:
    files = value("grafana", "__grafana_files")
    (source,) = yaml.safe_load(files["datasources.yml"])["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://10.0.0.84:9090/prometheus")
    named = {json.loads(files[name])["panels"][0]["datasource"]["uid"] for name in files if name.endswith(".json")}
    assert named == {source["uid"]} and source["isDefault"]


def test_ray_s_dashboards_are_shown_where_ray_s_head_is(write: Callable[..., str]) -> None:
    for host, wanted in ((HEAD, True), (OTHER, False)):
        # Another host has Grafana's port only when it is in the group.
        plan = {name: {"services": {"grafana": 3000, "prometheus": 9090, "gateway": 443}} for name in (HEAD, OTHER)}
        compose = yaml.safe_load(write("grafana", "compose.yml.j2", host, __grafana_plan=plan))
        binds = [one for one in compose["services"]["grafana"]["volumes"] if isinstance(one, dict)]
        folders = yaml.safe_load(write("grafana", "dashboards.yml.j2", host))["providers"]
        assert [one["folder"] for one in folders] == (["Muster", "Ray"] if wanted else ["Muster"])
        assert [one["target"] for one in binds] == [one["options"]["path"] for one in folders[1:]]
        assert all(one["read_only"] and one["source"] == "/var/lib/muster/ray_head/dashboards" for one in binds)
    node = (ROOT / "roles/ray_node/templates/compose.yml.j2").read_text()
    assert "RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR: /var/lib/node/dashboards\n" in node


def test_only_the_gateway_says_who_looks_and_nobody_changes_anything(ini: Any) -> None:
    settings = ini()
    assert dict(settings["auth.proxy"]) == {
        "enabled": "true",
        "header_name": "X-Muster-User",
        "header_property": "username",
        "auto_sign_up": "true",
        "whitelist": "10.0.0.84/32",
    }
    assert settings["auth.anonymous"]["enabled"] == settings["users"]["allow_sign_up"] == "false"
    assert settings["users"]["auto_assign_org_role"] == "Viewer" and settings["auth"]["disable_login_form"] == "true"
    assert settings["security"]["admin_user"] == "grafana-admin"
    assert settings["server"]["root_url"] == "https://10.0.0.84/grafana/"
    assert settings["server"]["http_addr"] == "10.0.0.84" and settings["server"]["serve_from_sub_path"] == "true"


@pytest.mark.parametrize(
    "setting",
    [
        "plugins.preinstall_disabled=true",
        "plugins.preinstall_auto_update=false",
        "plugins.plugin_admin_enabled=false",
        "analytics.reporting_enabled=false",
        "analytics.check_for_updates=false",
        "analytics.check_for_plugin_updates=false",
        "news.news_feed_enabled=false",
        "security.disable_gravatar=true",
    ],
)
def test_it_asks_nothing_of_the_internet(ini: Any, setting: str) -> None:
    name, _, wanted = setting.partition("=")
    section, _, key = name.partition(".")
    assert ini()[section][key] == wanted


def test_its_pages_are_where_the_gateway_is(ini: Any) -> None:
    assert ini(gateway_public_name="muster.example.org")["server"]["root_url"] == "https://muster.example.org/grafana/"
    assert ini(__grafana_door="2001:db8::7")["server"]["root_url"] == "https://[2001:db8::7]/grafana/"


def test_the_whitelist_is_one_address_of_ipv6_too(ini: Any) -> None:
    assert ini(__grafana_door="2001:db8::7")["auth.proxy"]["whitelist"] == "2001:db8::7/128"


def test_without_a_gateway_nobody_is_believed_to_be_anybody(ini: Any) -> None:
    settings = ini(__grafana_door="")
    assert settings["auth.proxy"]["enabled"] == "false" and settings["auth"]["disable_login_form"] == "false"
    assert settings["server"]["root_url"] == "http://10.0.0.84:3000/grafana/"


def test_the_gateway_leads_to_it(value: Value) -> None:
    assert value("gateway", "__gateway_pages")["grafana"] == "10.0.0.84:3000"
    pages = value("gateway", "__gateway_site")["pages"]
    assert {"name": "Grafana", "path": "/grafana/"} in pages and len(pages) == 4


def test_ray_s_pages_may_show_its_charts(ini: Any, value: Value) -> None:
    assert ini()["security"]["allow_embedding"] == "true"
    (source,) = yaml.safe_load(value("grafana", "__grafana_files")["datasources.yml"])["datasources"]
    assert source["name"] == "Prometheus"
    watched = value("ray_head", "__ray_head_watched")
    assert watched["RAY_GRAFANA_HOST"] == "http://10.0.0.84:3000/grafana"


def test_what_each_may_use_is_left_to_it() -> None:
    limits = yaml.safe_load((ROOT / "group_vars/all/monitoring.yml").read_text())
    assert {name.removesuffix("_memory") for name in limits if name.endswith("_memory")} <= set(SERVICES)


def test_a_lab_does_without() -> None:
    _, groups = load_inventory([ROOT / "inventory/lab"])
    assert groups["grafana"] == []
