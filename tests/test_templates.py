"""Templates as Ansible renders them for the example's hosts: nothing is undefined, and they say what they should."""

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from muster import inventory, ports
from muster.load import load_inventory

from .conftest import ROOT, Groups, Vars

Render = Callable[..., str]
FACTS = {
    "distribution": "Debian",
    "distribution_major_version": "13",
    "distribution_version": "13.1",
    "default_ipv4": {"interface": "eth0", "mtu": 1400},
    "default_ipv6": {},
}
RULE = re.compile(r"^-A ufw-user-input -p (\w+) (?:-m multiport --dports|--dport) ([\d:]+)(?: -s (\S+))? -j ACCEPT$")


@pytest.fixture(scope="module")
def example() -> tuple[Vars, Groups]:
    return load_inventory([ROOT / "inventory" / "example"])


@pytest.mark.parametrize("host", ["server84", "server80", "laptop1"])
def test_ufw_is_given_exactly_the_plan(render: Render, example: tuple[Vars, Groups], host: str) -> None:
    hostvars, groups = example
    text = render(
        "ufw",
        "user.rules.j2",
        hostvars,
        host,
        groups=groups,
        ansible_facts=FACTS,
        __ufw_family=4,
        __ufw_entries="{{ ufw_rules | ufw_entries }}",
    )
    opened: Counter[tuple[int, str]] = Counter()
    for line in text.splitlines():
        if (found := RULE.match(line)) is not None:
            first, _, last = found[2].partition(":")
            opened.update((port, found[3] or ports.ANY) for port in range(int(first), int(last or first) + 1))

    table = hostvars[host]["muster_ports"]
    me, peers = inventory.read_host(host, hostvars, groups, table), inventory.read_peers(hostvars, groups)
    plan, ray = ports.plan_host(table, me), ports.read_table(table)["ray_node"]
    blocks = [(entry.first, entry.last, entry) for entry in plan.services.values()]
    blocks += [(node.first, node.last, ray) for node in plan.ray_nodes]
    expected = Counter([(22, ports.ANY)])
    for first, last, entry in blocks:
        for source in ports.sources(entry, me, peers):
            expected.update((port, source) for port in range(first, last + 1))
    assert opened == expected


@pytest.mark.parametrize("template", ["default.j2", "ufw.conf.j2"])
def test_ufw_is_on_and_closed(render: Render, example: tuple[Vars, Groups], template: str) -> None:
    text = render("ufw", template, example[0], "server80", groups=example[1], ansible_managed="Ansible")
    assert ("ENABLED=yes" in text) or ('DEFAULT_INPUT_POLICY="DROP"' in text and "IPV6=yes" in text)


@pytest.mark.parametrize("extra", [{}, {"docker_nvidia": True}, {"docker_daemon_extra": {"debug": True}}])
def test_the_engines_settings_are_json(render: Render, example: tuple[Vars, Groups], extra: dict[str, Any]) -> None:
    text = render("docker", "daemon.json.j2", example[0], "server80", groups=example[1], ansible_facts=FACTS, **extra)
    settings = json.loads(text)
    assert settings["live-restore"] is True and settings["userland-proxy"] is False
    assert settings["mtu"] == 1400 and settings["log-opts"]["max-size"]
    assert ("runtimes" in settings) == bool(extra.get("docker_nvidia"))
    assert settings.get("debug") is extra.get("docker_daemon_extra", {}).get("debug")


def test_an_undefined_variable_is_an_error(render: Render, example: tuple[Vars, Groups]) -> None:
    from ansible.errors import AnsibleUndefinedVariable

    with pytest.raises(AnsibleUndefinedVariable):
        render("ufw", "user.rules.j2", example[0], "server80", groups=example[1], __ufw_family=4)
