"""Turns the firewall rules of the port plan into what UFW writes to its own files."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

PORTS = re.compile(r"^(\d{1,5})(?::(\d{1,5}))?$")
Entry = dict[str, Any]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _span(ports: str) -> tuple[int, int]:
    first, _, last = ports.partition(":")
    return int(first), int(last or first)


def _ports(value: Any, where: str) -> str:
    text = str(value).strip().replace("-", ":")
    if not PORTS.match(text) or not 0 < _span(text)[0] <= _span(text)[1] < 65536:
        raise AnsibleFilterError(f"{where}: {value!r} is no port, write 1 to 65535 or a range such as 20000:20255")
    first, last = _span(text)
    return str(first) if first == last else f"{first}:{last}"


def _network(value: Any, where: str) -> Network:
    try:
        return ipaddress.ip_network(str(value).strip(), strict=False)
    except ValueError:
        raise AnsibleFilterError(
            f"{where}: {value!r} is no source, write an address, a network such as 10.0.0.0/24, or any"
        ) from None


def _written(network: Network) -> str:
    alone = network.prefixlen == network.max_prefixlen
    return str(network.network_address if alone else network)


def entries(rules: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """One entry per family, protocol, port and source, in the order of the rules, none twice."""
    found: dict[tuple[Any, ...], Entry] = {}
    for number, rule in enumerate(rules, start=1):
        why = re.sub(r"\s+", " ", str(rule.get("why") or "")).strip()
        given = rule.get("ports", rule.get("port"))
        where = f"firewall rule {number} ({why or given})"
        proto = str(rule.get("proto") or "tcp").lower()
        if proto not in ("tcp", "udp", "any"):
            raise AnsibleFilterError(f"{where}: proto is {proto!r}, write tcp, udp or any")
        sources = rule.get("from")
        for source in _listed("any" if sources is None else sources):
            if str(source).strip().lower() == "any":
                families = {4: "any", 6: "any"}
            else:
                network = _network(source, where)
                families = {network.version: "any" if network.prefixlen == 0 else _written(network)}
            for family, address in families.items():
                for each in ("tcp", "udp") if proto == "any" else (proto,):
                    for ports in _listed(given):
                        entry: Entry = {
                            "family": family,
                            "route": bool(rule.get("route", False)),
                            "proto": each,
                            "ports": _ports(ports, where),
                            "source": address,
                        }
                        key = tuple(entry.values())
                        # UFW keeps comments in hexadecimal.
                        entry |= {"why": why, "comment": why.encode().hex()}
                        found.setdefault(key, entry)
    return list(found.values())


def admits(rules: Iterable[Entry], address: str, port: int | str) -> bool:
    """Whether a new TCP connection from the address to the port is let in."""
    source = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(source, ipaddress.IPv6Address) and source.ipv4_mapped:
        source = source.ipv4_mapped
    for entry in rules:
        first, last = _span(entry["ports"])
        if (
            not entry["route"]
            and entry["proto"] == "tcp"
            and entry["family"] == source.version
            and first <= int(port) <= last
            and (entry["source"] == "any" or source in ipaddress.ip_network(entry["source"]))
        ):
            return True
    return False


class FilterModule:
    """Filters of the ufw role."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"ufw_entries": entries, "ufw_admits": admits}
