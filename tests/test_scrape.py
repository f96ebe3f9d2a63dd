"""Whom Prometheus asks: everybody who has figures, where the port plan has them, in an order that stays."""

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from muster import inventory, ports, scrape
from muster.errors import MusterError

ROOT = Path(__file__).resolve().parents[1]
TABLE: dict[str, Any] = yaml.safe_load((ROOT / "group_vars/all/ports.yml").read_text())["muster_ports_default"]
ALL = ("cluster", "node_exporter", "ray_worker")
HOSTS: dict[str, dict[str, Any]] = {
    "head": {"ansible_host": "10.0.0.1", "ray_workers": 0},
    "server1": {"ansible_host": "10.0.0.2", "ray_workers": 2},
    "anna": {"ansible_host": "2001:db8::3"},
}
HEAD = ("ray_head", "celery_redis", "celery_metrics", "prometheus", "alertmanager", "server")


def groups(hosts: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    found = {name: list(hosts) for name in ALL} | {name: ["head"] for name in HEAD}
    return found | {"laptop": [name for name in hosts if name not in ("head", "server1")]}


def targets(hosts: dict[str, dict[str, Any]], **more: list[str]) -> dict[str, list[dict[str, Any]]]:
    return {job["name"]: job["targets"] for job in scrape.jobs(hosts, groups(hosts) | more, TABLE)}


def test_everybody_with_figures_is_asked_where_the_plan_has_them() -> None:
    found = targets(HOSTS)
    assert [one["targets"] for one in found["node_exporter"]] == [
        ["[2001:db8::3]:9100"],
        ["10.0.0.1:9100"],
        ["10.0.0.2:9100"],
    ]
    assert [one["labels"]["kind"] for one in found["node_exporter"]] == ["laptop", "server", "server"]
    plan = inventory.port_plan(HOSTS, groups(HOSTS), TABLE)
    wanted = {
        (f"{HOSTS[host]['ansible_host']}:{node['metrics_export']}", host, node["name"])
        for host in ("head", "server1")
        for node in plan[host]["ray_nodes"]
    }
    seen = {(one["targets"][0], one["labels"]["host"], one["labels"]["node"]) for one in found["ray_node"]}
    assert seen == wanted and len(wanted) == 3
    assert set(found) == {name for name, line in TABLE.items() if line.get("metrics")}


def test_the_order_of_hosts_and_groups_changes_nothing() -> None:
    mixed = dict(random.Random(1).sample(list(HOSTS.items()), len(HOSTS)))
    assert targets(mixed) == targets(HOSTS)


def test_a_laptop_that_joins_or_sleeps_changes_nothing_for_others() -> None:
    before, after = targets(HOSTS), targets(HOSTS | {"bert": {"ansible_host": "10.0.0.9"}})
    assert after.pop("node_exporter") == sorted(
        [*before.pop("node_exporter"), {"targets": ["10.0.0.9:9100"], "labels": {"host": "bert", "kind": "laptop"}}],
        key=lambda one: str(one["labels"]["host"]),
    )
    assert after == before
    assert targets(HOSTS, asleep=["anna"]) == targets(HOSTS)


def test_who_is_outside_the_cluster_is_not_asked() -> None:
    more = HOSTS | {"stranger": {"ansible_host": "10.0.0.66"}}
    found = scrape.jobs(more, groups(HOSTS) | {"outside": ["stranger"]}, TABLE)
    assert "10.0.0.66" not in str(found)


def test_a_path_that_is_none_is_told() -> None:
    with pytest.raises(MusterError, match="x has metrics figures"):
        ports.read_table({"x": {"port": 1, "at": ["cluster"], "metrics": "figures"}})
