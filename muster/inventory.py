"""From Ansible's variables to what the port plan needs: inventory variables, never another host's facts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from muster import ports, sizing
from muster.errors import MusterError

Variables = Mapping[str, Any]


def value(variables: Variables, name: str, default: Any = None) -> Any:
    """A variable's value, or the default when it is absent or empty."""
    found = variables.get(name)
    return default if found is None or found == "" else found


def address(name: str, variables: Variables) -> str:
    """How the other hosts reach this one; an IP address, since firewall rules are made of it."""
    found = str(value(variables, "muster_address", value(variables, "ansible_host", "")))
    if not ports.is_network(found) or "/" in found:
        raise MusterError(
            f"muster_address is {found!r}, which is not an IP address" if found else "has no address",
            fix="set ansible_host (or muster_address) to the host's IP address",
            host=name,
        )
    return found


def groups_of(groups: Mapping[str, Sequence[str]]) -> dict[str, frozenset[str]]:
    """The groups of every host."""
    found: dict[str, set[str]] = {}
    for group, members in groups.items():
        for member in members:
            found.setdefault(str(member), set()).add(str(group))
    return {name: frozenset(names) for name, names in found.items()}


def is_true(given: Any) -> bool:
    """Ansible's idea of true, also for text from the command line."""
    return str(given).strip().lower() in ("true", "yes", "on", "1", "y", "t")


def worker_spec(variables: Variables, groups: Collection[str]) -> Any:
    """`ray_workers` of a host; where it is absent a laptop runs none, unless ray_on_laptop says so."""
    spec = value(variables, "ray_workers")
    if spec is None and "laptop" in groups and not is_true(value(variables, "ray_on_laptop", False)):
        return 0
    return spec


def read_host(
    name: str,
    hostvars: Mapping[str, Variables],
    groups: Mapping[str, Sequence[str]],
    table: Mapping[str, Any],
) -> ports.Host:
    """All that the plan needs of a host whose own ports are planned."""
    variables = hostvars[name]
    worker_ports = value(variables, "ray_worker_ports")
    member = groups_of(groups).get(name, frozenset())
    wanted = {variable for entry in ports.read_table(table).values() for variable in entry.sources_variables}
    return ports.Host(
        name=name,
        address=address(name, variables),
        groups=member,
        workers=sizing.count(worker_spec(variables, member), host=name),
        worker_ports=None
        if worker_ports is None
        else sizing.parse_count(worker_ports, what="ray_worker_ports", host=name),
        networks={variable: ports.as_names(value(variables, variable)) for variable in wanted},
    )


def read_peers(hostvars: Mapping[str, Variables], groups: Mapping[str, Sequence[str]]) -> list[ports.Host]:
    """Every host as the others see it: an address and its groups."""
    return [ports.Host(name, address(name, hostvars[name]), member) for name, member in groups_of(groups).items()]


def port_plan(
    hostvars: Mapping[str, Variables],
    groups: Mapping[str, Sequence[str]],
    table: Mapping[str, Any],
    hosts: Sequence[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """The ports of all hosts, or of those named, as plain values."""
    names = groups_of(groups) if hosts is None else [hosts] if isinstance(hosts, str) else hosts
    return {name: ports.plan_host(table, read_host(name, hostvars, groups, table)).as_dict() for name in names}


def firewall_rules(
    hostvars: Mapping[str, Variables],
    groups: Mapping[str, Sequence[str]],
    table: Mapping[str, Any],
    host: str,
) -> list[dict[str, Any]]:
    """Everything that must be open on a host: SSH, the port plan, and ufw_extra_rules."""
    me = read_host(host, hostvars, groups, table)
    peers = read_peers(hostvars, groups)
    variables = hostvars[host]
    rules = [ssh_rule(me, peers, variables), *ports.firewall_rules(table, me, peers)]
    for rule in value(variables, "ufw_extra_rules", []):
        rules.append(_extra_rule(rule, me, peers))
    return [rule for rule in rules if rule["from"]]


def ssh_rule(host: ports.Host, peers: Sequence[ports.Host], variables: Variables) -> dict[str, Any]:
    """The door that Ansible itself uses."""
    port = sizing.parse_count(value(variables, "ansible_port", 22), what="ansible_port", host=host.name)
    networks = ports.as_names(value(variables, "ufw_ssh_networks", ports.ANY))
    return {"ports": str(port), "proto": "tcp", "from": ports.resolve(networks, host, peers), "why": "SSH"}


def _extra_rule(rule: Any, host: ports.Host, peers: Sequence[ports.Host]) -> dict[str, Any]:
    """Group names become addresses; the ufw role judges ports and addresses."""
    given = rule.get("ports", rule.get("port")) if isinstance(rule, Mapping) else None
    if not isinstance(rule, Mapping) or given in (None, "", []):
        raise MusterError(
            f"ufw_extra_rules has the entry {rule!r}",
            fix="write it like {port: 8080, from: [cluster], why: text}",
            host=host.name,
        )
    result = {
        "ports": given if isinstance(given, list) else str(given),
        "proto": str(rule.get("proto", "tcp")),
        "from": ports.resolve(ports.as_names(rule.get("from", ports.ANY)), host, peers),
        "why": str(rule.get("why") or "from ufw_extra_rules"),
    }
    return result | ({"route": rule["route"]} if "route" in rule else {})
