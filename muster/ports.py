"""The port plan: which port every service and every Ray node of every host has, and who may connect to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from itertools import pairwise
from typing import Any

from muster.errors import MusterError

ANY = "any"
RAY_NODE = "ray_node"
# In the order of their ports inside a Ray node's block.
RAY_NODE_PORTS = (
    "node_manager",
    "object_manager",
    "runtime_env_agent",
    "dashboard_agent_listen",
    "dashboard_agent_grpc",
    "metrics_export",
)
KEYS = {"port", "ports", "proto", "at", "from", "from_variable", "why", "worker_ports", "metrics"}


@dataclass(frozen=True)
class Host:
    """What the plan has to know of a host; all of it stands in the inventory."""

    name: str
    address: str
    groups: frozenset[str] = frozenset()
    workers: int = 0
    worker_ports: int | None = None
    networks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One line of the table of ports."""

    name: str
    first: int
    last: int
    proto: str
    at: tuple[str, ...]
    sources: tuple[str, ...]
    sources_variables: tuple[str, ...]
    why: str
    worker_ports: int
    # Where Prometheus finds figures there; nothing: there are none.
    metrics: str = ""


@dataclass(frozen=True)
class RayNode:
    """The ports of one Ray node on a host."""

    name: str
    first: int
    last: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for templates."""
        fixed = {name: self.first + index for index, name in enumerate(RAY_NODE_PORTS)}
        return {"name": self.name, **fixed, "worker_min": self.first + len(fixed), "worker_max": self.last}


@dataclass(frozen=True)
class HostPlan:
    """Every port of one host."""

    services: Mapping[str, Entry]
    ray_nodes: tuple[RayNode, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for templates."""
        return {
            "services": {name: entry.first for name, entry in self.services.items()},
            "ray_nodes": [node.as_dict() for node in self.ray_nodes],
        }


def read_table(table: Mapping[str, Any]) -> dict[str, Entry]:
    """Check the table's lines, one by one."""
    return {str(name): _entry(str(name), line) for name, line in table.items()}


def plan_host(table: Mapping[str, Any], host: Host) -> HostPlan:
    """The ports of one host; refuses a plan in which two things share a port."""
    entries = read_table(table)
    services = {
        name: entry for name, entry in entries.items() if name != RAY_NODE and host.groups.intersection(entry.at)
    }
    ray = entries.get(RAY_NODE)
    nodes = tuple(_ray_nodes(ray, host)) if ray else ()
    taken = sorted(
        [(e.first, e.last, e.proto, name) for name, e in services.items()]
        + [(n.first, n.last, "tcp", f"Ray node {n.name}") for n in nodes]
    )
    for proto in ("tcp", "udp"):
        _refuse_clash([(first, last, name) for first, last, p, name in taken if p == proto], host.name)
    return HostPlan(services, nodes)


def plan(table: Mapping[str, Any], hosts: Sequence[Host]) -> dict[str, HostPlan]:
    """The ports of every host."""
    return {host.name: plan_host(table, host) for host in hosts}


def firewall_rules(table: Mapping[str, Any], host: Host, hosts: Sequence[Host]) -> list[dict[str, Any]]:
    """What must be open on a host, from the plan alone: a rule per service, one for all Ray nodes."""
    mine = plan_host(table, host)
    rules = []
    for entry in mine.services.values():
        rules.append(_rule(entry.first, entry.last, entry, sources(entry, host, hosts)))
    if mine.ray_nodes:
        # The blocks stand side by side.
        ray = read_table(table)[RAY_NODE]
        rules.append(_rule(mine.ray_nodes[0].first, mine.ray_nodes[-1].last, ray, sources(ray, host, hosts)))
    return [rule for rule in rules if rule["from"]]


def sources(entry: Entry, host: Host, hosts: Sequence[Host]) -> list[str]:
    """Addresses and networks that may connect; the host itself needs no rule."""
    more = [network for variable in entry.sources_variables for network in host.networks.get(variable, ())]
    return resolve([*entry.sources, *more], host, hosts)


def resolve(names: Sequence[str], host: Host, hosts: Sequence[Host]) -> list[str]:
    """Groups become the addresses of their hosts; addresses and networks stay; `any` swallows the rest."""
    if ANY in names:
        return [ANY]
    found: dict[str, None] = {}
    for name in names:
        if is_network(name):
            found[name] = None
        else:
            found.update((other.address, None) for other in hosts if name in other.groups)
    found.pop(host.address, None)
    # Always in the same order: that of groups changes while a run goes on, as when a laptop is found asleep.
    return sorted(found, key=_order)


def _order(text: str) -> tuple[int, int, int, str]:
    if not is_network(text):
        return (0, 0, 0, text)
    network = ip_network(text, strict=False)
    return (network.version, int(network.network_address), network.prefixlen, text)


def is_network(text: str) -> bool:
    """Whether it is an address or a network, and not the name of a group."""
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def bracketed(host: object) -> str:
    """A name or an address as URLs want it: IPv6 in brackets."""
    text = str(host)
    return f"[{text}]" if ":" in text else text


def as_ports(first: int, last: int) -> str:
    """A port or a range as UFW writes it."""
    return str(first) if first == last else f"{first}:{last}"


def _rule(first: int, last: int, entry: Entry, allowed: list[str]) -> dict[str, Any]:
    return {"ports": as_ports(first, last), "proto": entry.proto, "from": allowed, "why": entry.why}


def _ray_nodes(entry: Entry, host: Host) -> Iterator[RayNode]:
    size = len(RAY_NODE_PORTS) + (host.worker_ports or entry.worker_ports)
    blocks = [(0, "head")] if "ray_head" in host.groups else []
    if "ray_worker" in host.groups:
        blocks += [(number, f"worker-{number}") for number in range(1, host.workers + 1)]
    for number, name in blocks:
        first = entry.first + number * size
        if first + size - 1 > entry.last:
            room = max((entry.last - entry.first + 1) // size - 1, 0)
            raise MusterError(
                f"{host.workers} Ray workers need ports up to {entry.first + (host.workers + 1) * size - 1}, "
                f"the range ends at {entry.last} ({room} workers of {size} ports each)",
                fix="lower ray_workers or ray_worker_ports, or widen ray_node in muster_ports_extra",
                host=host.name,
            )
        yield RayNode(name, first, first + size - 1)


def _refuse_clash(taken: Sequence[tuple[int, int, str]], host: str) -> None:
    for (_, last, one), (first, _, other) in pairwise(taken):
        if first <= last:
            raise MusterError(
                f"port {first} is planned for both {one} and {other}",
                fix="give one of them another port in muster_ports_extra",
                host=host,
            )


def _entry(name: str, line: Any) -> Entry:
    def wrong(problem: str, fix: str) -> MusterError:
        return MusterError(f"muster_ports: {name} {problem}", fix=fix)

    if not isinstance(line, Mapping):
        raise wrong(f"is {line!r}", "write it like {port: 6379, at: [ray_head], from: [cluster], why: text}")
    unknown = sorted(set(map(str, line)) - KEYS)
    if unknown:
        raise wrong(f"has the unknown key {', '.join(unknown)}", f"use {', '.join(sorted(KEYS))}")
    given = line.get("ports", [line.get("port"), line.get("port")])
    try:
        first, last = (int(port) for port in given)
        worker_ports = int(line.get("worker_ports", 0))
    except (TypeError, ValueError):
        raise wrong("has no usable port", "give port: 6379 or ports: [20000, 20100]") from None
    if not 0 < first <= last < 65536:
        raise wrong(f"has the ports {as_ports(first, last)}", "use ports from 1 to 65535, the lower first")
    if name == RAY_NODE and worker_ports < 1:
        raise wrong(f"has worker_ports {worker_ports}", "give every Ray node some ports for its processes")
    metrics = str(line.get("metrics") or "")
    if metrics and not metrics.startswith("/"):
        raise wrong(f"has metrics {metrics}", "write the path, as in metrics: /metrics")
    proto = str(line.get("proto", "tcp"))
    if proto not in ("tcp", "udp"):
        raise wrong(f"has the protocol {proto}", "use tcp or udp")
    return Entry(
        name=name,
        first=first,
        last=last,
        proto=proto,
        at=as_names(line.get("at")),
        sources=as_names(line.get("from")),
        sources_variables=as_names(line.get("from_variable")),
        why=str(line.get("why") or name),
        worker_ports=worker_ports,
        metrics=metrics,
    )


def as_names(value: Any) -> tuple[str, ...]:
    """A list of names, also when the inventory or the command line gave a single one."""
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(str(part) for part in value)
