"""The port plan: disjoint for any inventory, stable while it grows, and exactly what the firewall opens."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from muster import inventory, ports
from muster.errors import MusterError

ROOT = Path(__file__).resolve().parents[1]
TABLE: dict[str, Any] = yaml.safe_load((ROOT / "group_vars/all/ports.yml").read_text())["muster_ports_default"]
MOST_WORKERS = 33
CELERY = ("celery_redis", "celery_worker", "celery_beat", "celery_metrics", "flower")
WATCH = ("node_exporter", "prometheus", "alertmanager", "gateway")
NETWORKS = ("198.51.100.0/24", "2001:db8::/64", "203.0.113.7")


def address(number: int) -> str:
    return f"10.{number // 65536}.{number // 256 % 256}.{number % 256}"


@st.composite
def fleets(draw: st.DrawFn) -> list[ports.Host]:
    """Any number of hosts in any groups, each with any number of workers that fits."""
    hosts = []
    for number in range(draw(st.integers(1, 8))):
        groups = {"server" if draw(st.booleans()) else "laptop", "cluster", "ray_worker"}
        groups |= {group for group in ("ray_head", "registry", *CELERY, *WATCH) if draw(st.booleans())}
        hosts.append(
            ports.Host(
                name=f"host{number}",
                address=address(number + 1),
                groups=frozenset(groups),
                workers=draw(st.integers(0, MOST_WORKERS)),
                worker_ports=draw(st.sampled_from([None, 1, 50, 250])),
                networks={
                    name: tuple(draw(st.lists(st.sampled_from(NETWORKS), unique=True)))
                    for name in ("ray_client_networks", "celery_client_networks", "laptop_networks", "gateway_networks")
                },
            )
        )
    return hosts


def used(plan: ports.HostPlan) -> list[int]:
    """Every port of a host, as often as it is planned, from what templates get to see."""
    found = [port for entry in plan.services.values() for port in range(entry.first, entry.last + 1)]
    for node in plan.as_dict()["ray_nodes"]:
        fixed = [node[name] for name in ports.RAY_NODE_PORTS]
        found += [*fixed, *range(node["worker_min"], node["worker_max"] + 1)]
    return found


def opened(rules: list[dict[str, Any]]) -> Counter[int]:
    found: Counter[int] = Counter()
    for rule in rules:
        first, _, last = rule["ports"].partition(":")
        found.update(range(int(first), int(last or first) + 1))
    return found


@given(fleets())
def test_no_port_of_a_host_is_planned_twice(hosts: list[ports.Host]) -> None:
    for plan in ports.plan(TABLE, hosts).values():
        assert not [port for port, times in Counter(used(plan)).items() if times > 1]


@given(fleets())
def test_ray_node_ports_stay_below_those_of_the_kernel(hosts: list[ports.Host]) -> None:
    for plan in ports.plan(TABLE, hosts).values():
        assert all(0 < node.first <= node.last < 32768 for node in plan.ray_nodes)


@given(fleets())
def test_every_worker_has_a_node_and_every_process_a_port(hosts: list[ports.Host]) -> None:
    for host in hosts:
        nodes = ports.plan_host(TABLE, host).as_dict()["ray_nodes"]
        head = ["head"] if "ray_head" in host.groups else []
        assert [node["name"] for node in nodes] == head + [f"worker-{n + 1}" for n in range(host.workers)]
        for node in nodes:
            assert node["worker_max"] - node["worker_min"] + 1 == (
                host.worker_ports or TABLE["ray_node"]["worker_ports"]
            )


@given(st.integers(0, MOST_WORKERS - 1), st.booleans())
def test_another_worker_moves_nobody(workers: int, head: bool) -> None:
    groups = frozenset({"ray_worker", "ray_head"} if head else {"ray_worker"})
    before = ports.plan_host(TABLE, ports.Host("a", "10.0.0.1", groups, workers))
    after = ports.plan_host(TABLE, ports.Host("a", "10.0.0.1", groups, workers + 1))
    assert after.ray_nodes[: len(before.ray_nodes)] == before.ray_nodes
    assert after.services == before.services


@given(fleets())
def test_the_firewall_opens_the_plan_and_nothing_else(hosts: list[ports.Host]) -> None:
    table = ports.read_table(TABLE)
    for host in hosts:
        plan = ports.plan_host(TABLE, host)
        expected = {
            port
            for entry in plan.services.values()
            if ports.sources(entry, host, hosts)
            for port in range(entry.first, entry.last + 1)
        }
        if ports.sources(table["ray_node"], host, hosts):
            expected |= {port for node in plan.ray_nodes for port in range(node.first, node.last + 1)}
        found = opened(ports.firewall_rules(TABLE, host, hosts))
        assert set(found) == expected
        assert set(found.values()) <= {1}


@given(fleets())
def test_only_those_whom_the_table_names_may_connect(hosts: list[ports.Host]) -> None:
    members = {
        group: {h.address for h in hosts if group in h.groups}
        for group in ("ray_head", "ray_worker", "cluster", *CELERY, *WATCH)
    }
    for host in hosts:
        for rule in ports.firewall_rules(TABLE, host, hosts):
            assert rule["from"] and len(rule["from"]) == len(set(rule["from"]))
            assert host.address not in rule["from"]
            line = next(line for line in TABLE.values() if line["why"] == rule["why"])
            allowed = set().union(*(members[group] for group in line.get("from", [])))
            for variable in ports.as_names(line.get("from_variable")):
                allowed |= set(host.networks[variable])
            assert set(rule["from"]) <= allowed


def test_what_is_for_the_host_itself_is_never_opened() -> None:
    hosts = [
        ports.Host("head", "10.0.0.1", frozenset({"ray_head", "cluster", *CELERY})),
        ports.Host("b", "10.0.0.2", frozenset({"cluster"})),
    ]
    found = opened(ports.firewall_rules(TABLE, hosts[0], hosts))
    assert not {5555, 6380, 8265, 9540, 10001, 23000, 44217, 44227} & set(found)


def test_the_broker_is_open_to_who_runs_celery_and_to_applications_that_are_named() -> None:
    hosts = [
        ports.Host("head", "10.0.0.1", frozenset({"celery_redis"}), networks={"celery_client_networks": NETWORKS[:1]}),
        ports.Host("b", "10.0.0.2", frozenset({"celery_worker"})),
        ports.Host("c", "10.0.0.3", frozenset({"ray_worker"})),
    ]
    rules = {rule["ports"]: rule["from"] for rule in ports.firewall_rules(TABLE, hosts[0], hosts)}
    assert rules == {"6380": ["10.0.0.2", NETWORKS[0]]}


def test_ray_client_is_opened_to_the_networks_that_are_named() -> None:
    host = ports.Host("head", "10.0.0.1", frozenset({"ray_head"}), networks={"ray_client_networks": ("10.9.0.0/16",)})
    rules = {rule["ports"]: rule["from"] for rule in ports.firewall_rules(TABLE, host, [host])}
    assert rules == {"10001": ["10.9.0.0/16"]}


def test_workers_side_by_side_are_one_rule() -> None:
    a = ports.Host("a", "10.0.0.1", frozenset({"ray_worker"}), workers=4)
    b = ports.Host("b", "10.0.0.2", frozenset({"ray_worker"}), workers=1)
    assert [rule["ports"] for rule in ports.firewall_rules(TABLE, a, [a, b])] == ["24256:25279"]


def test_a_range_that_is_used_up_is_said_in_one_line() -> None:
    with pytest.raises(
        MusterError, match=r"^server80: 34 Ray workers need ports up to .* 32767 .* Fix: lower ray_workers"
    ):
        ports.plan_host(TABLE, ports.Host("server80", "10.0.0.80", frozenset({"ray_worker"}), workers=MOST_WORKERS + 1))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"registry": {**TABLE["registry"], "port": 6379, "at": ["ray_head"]}}, "port 6379 is planned for both"),
        ({"mine": {"port": 24300, "at": ["ray_worker"]}}, "port 24300 is planned for both Ray node worker-1 and mine"),
        ({"ray_gcs": {"prt": 1}}, "unknown key prt"),
        ({"ray_gcs": {"port": "many"}}, "no usable port"),
        ({"ray_gcs": {"port": 70000}}, "has the ports 70000"),
        ({"ray_gcs": {"ports": [10, 5]}}, "has the ports 10:5"),
        ({"ray_gcs": {"port": 5, "proto": "sctp"}}, "protocol sctp"),
        ({"ray_gcs": 6379}, "ray_gcs is 6379"),
    ],
)
def test_a_table_with_a_mistake_is_refused(extra: dict[str, Any], message: str) -> None:
    host = ports.Host("head", "10.0.0.1", frozenset({"ray_head", "ray_worker"}), workers=2)
    with pytest.raises(MusterError, match=message):
        ports.plan_host({**TABLE, **extra}, host)


def test_services_on_different_protocols_may_share_a_number() -> None:
    host = ports.Host("head", "10.0.0.1", frozenset({"ray_head"}))
    ports.plan_host({**TABLE, "dns": {"port": 6379, "proto": "udp", "at": ["ray_head"]}}, host)


HOSTVARS: dict[str, dict[str, Any]] = {
    "head": {"ansible_host": "10.0.0.1", "ray_workers": 0},
    "server1": {"ansible_host": "10.0.0.2", "ray_workers": "2"},
    "laptop1": {"ansible_host": "10.0.0.3"},
}
GROUPS = {
    "server": ["head", "server1"],
    "laptop": ["laptop1"],
    "cluster": ["head", "server1", "laptop1"],
    "ray_head": ["head"],
    "ray_worker": ["head", "server1", "laptop1"],
}


def test_a_number_from_the_command_line_is_a_number() -> None:
    plan = inventory.port_plan(HOSTVARS, GROUPS, TABLE)
    assert [node["name"] for node in plan["server1"]["ray_nodes"]] == ["worker-1", "worker-2"]


@pytest.mark.parametrize(("on_laptop", "nodes"), [(False, 0), ("false", 0), (True, 1), ("yes", 1)])
def test_a_laptop_runs_ray_only_when_asked(on_laptop: object, nodes: int) -> None:
    hostvars = {**HOSTVARS, "laptop1": {"ansible_host": "10.0.0.3", "ray_on_laptop": on_laptop}}
    assert len(inventory.port_plan(hostvars, GROUPS, TABLE, ["laptop1"])["laptop1"]["ray_nodes"]) == nodes


def test_the_rules_of_a_host_begin_with_ssh_and_end_with_the_operators_own() -> None:
    variables = {
        **HOSTVARS["server1"],
        "ansible_port": "2222",
        "ufw_ssh_networks": ["198.51.100.0/24"],
        "ufw_extra_rules": [{"port": "8000:8010", "from": ["ray_head", "203.0.113.9"], "why": "mine", "route": True}],
    }
    rules = inventory.firewall_rules({**HOSTVARS, "server1": variables}, GROUPS, TABLE, "server1")
    assert rules[0] == {"ports": "2222", "proto": "tcp", "from": ["198.51.100.0/24"], "why": "SSH"}
    assert rules[-1] == {
        "ports": "8000:8010", "proto": "tcp", "from": ["10.0.0.1", "203.0.113.9"], "why": "mine", "route": True,
    }  # fmt: skip
    assert len(rules) == 3


def test_an_address_that_is_a_name_is_refused() -> None:
    with pytest.raises(MusterError, match=r"^server1: muster_address is 'server1\.lan', which is not an IP address"):
        inventory.port_plan({**HOSTVARS, "server1": {"ansible_host": "server1.lan"}}, GROUPS, TABLE)


def test_networks_of_laptops_reach_the_broker_and_nothing_else() -> None:
    networks = {"laptop_networks": ("10.8.0.0/24",)}
    head = ports.Host("head", "10.0.0.1", frozenset({"ray_head", "registry", "cluster", *CELERY}), 1, networks=networks)
    other = ports.Host("other", "10.0.0.2", frozenset({"laptop", "celery_worker", "cluster"}))
    rules = ports.firewall_rules(TABLE, head, [head, other])
    assert [rule["ports"] for rule in rules if "10.8.0.0/24" in rule["from"]] == ["6380"]
    assert not ports.firewall_rules(TABLE, other, [head, other])


def test_the_order_of_groups_changes_no_rule() -> None:
    """A laptop that is found asleep is in one group more; nobody's firewall is loaded anew for that."""
    rules = []
    for first in GROUPS:
        groups = {first: GROUPS[first], **GROUPS}
        rules.append(inventory.firewall_rules(HOSTVARS, groups, TABLE, "head"))
        rules.append(inventory.firewall_rules(HOSTVARS, dict(reversed(groups.items())), TABLE, "head"))
    assert all(rule == rules[0] for rule in rules)
    assert any(len(rule["from"]) > 1 for rule in rules[0]), "one source has one order"
