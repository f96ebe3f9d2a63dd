"""From rules to UFW's own entries, and the question that keeps an operator from shutting the door on themselves."""

from __future__ import annotations

import importlib.util
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st

SOURCE = Path(__file__).resolve().parents[1] / "roles/ufw/filter_plugins/ufw_rules.py"
spec = importlib.util.spec_from_file_location("ufw_rules", SOURCE)
assert spec and spec.loader
ufw_rules = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ufw_rules)
entries, admits = ufw_rules.entries, ufw_rules.admits

# From 100:: on: below are IPv4 addresses in IPv6 clothes, which count as what they are.
addresses = st.one_of(
    st.integers(0, 2**32 - 1).map(lambda number: str(IPv4Address(number))),
    st.integers(2**120, 2**128 - 1).map(lambda number: str(IPv6Address(number))),
)
ports = st.integers(1, 65535)


def shape(**rule: Any) -> list[tuple[Any, ...]]:
    return [(e["family"], e["proto"], e["ports"], e["source"]) for e in entries([rule])]


def test_any_is_both_families_and_an_address_only_its_own() -> None:
    assert shape(port=22) == [(4, "tcp", "22", "any"), (6, "tcp", "22", "any")]
    assert shape(port=22, **{"from": "10.0.0.7/24"}) == [(4, "tcp", "22", "10.0.0.0/24")]
    assert shape(port=22, **{"from": ["10.0.0.7/32", "FD00:0::1"]}) == [
        (4, "tcp", "22", "10.0.0.7"),
        (6, "tcp", "22", "fd00::1"),
    ]


def test_ports_are_one_a_range_or_a_list() -> None:
    assert [e[2] for e in shape(ports=["80", "90-99", "70:70"], **{"from": "10.0.0.1"})] == ["80", "90:99", "70"]


def test_a_rule_given_twice_is_written_once_and_the_first_reason_stays() -> None:
    found = entries([{"port": 80, "from": "10.0.0.1", "why": why} for why in ("one", "two")])
    assert [bytes.fromhex(e["comment"]).decode() for e in found] == ["one"]


def test_a_comment_of_several_lines_cannot_break_the_file() -> None:
    found = entries([{"port": 80, "from": "10.0.0.1", "why": "a\nb\u00e9"}])
    assert bytes.fromhex(found[0]["comment"]).decode() == "a b\u00e9"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"port": 0}, "is no port"),
        ({"port": 70000}, "is no port"),
        ({"port": "90:80"}, "is no port"),
        ({"port": None, "why": "page"}, r"rule 1 \(page\).*is no port"),
        ({"port": 80, "from": "10.0.0.300"}, "is no source"),
        ({"port": 80, "from": "server84"}, "is no source"),
        ({"port": 80, "proto": "icmp"}, "write tcp, udp or any"),
    ],
)
def test_nonsense_is_refused_with_the_rule_named(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(AnsibleFilterError, match=message):
        entries([rule])


@given(addresses, ports)
def test_an_open_port_admits_everybody_and_a_closed_one_nobody(address: str, port: int) -> None:
    assert admits(entries([{"port": port}]), address, port)
    assert not admits(entries([{"port": port}]), address, port % 65535 + 1)
    assert not admits(entries([{"port": port, "route": True}]), address, port)
    assert not admits(entries([{"port": port, "proto": "udp"}]), address, port)


@given(addresses, addresses)
def test_an_address_is_let_in_by_its_own_rule_alone(mine: str, other: str) -> None:
    assert admits(entries([{"port": 22, "from": mine}]), mine, "22")
    assert admits(entries([{"port": 22, "from": mine}]), other, 22) == (mine == other)


def test_addresses_come_as_ssh_writes_them() -> None:
    rules = entries([{"port": 22, "from": ["10.0.0.0/24", "fe80::/10"]}])
    assert admits(rules, "::ffff:10.0.0.9", 22)
    assert admits(rules, "fe80::1%eth0", 22)
    assert not admits(rules, "10.0.1.9", 22)
