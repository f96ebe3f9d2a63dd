"""What can be wrong with a host itself, found from what the probe saw and from nothing that changes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from muster import inventory, ports, sizing
from muster.checks import worker_sizes
from muster.errors import MusterError
from muster.problems import Problem

SUPPORTED = {"debian": ("12", "13"), "ubuntu": ("22.04", "24.04")}
OLDEST_PYTHON = (3, 9)


@dataclass(frozen=True)
class Limits:
    """What the operator tolerates."""

    clock_skew: float = 2.0
    free_disk_gb: float = 10.0


@dataclass(frozen=True)
class Seen:
    """One host: what the probe returned, or why there is nothing."""

    name: str
    probe: Mapping[str, Any] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    asleep: bool = False


def host_problems(
    hostvars: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    seen: Sequence[Seen],
    limits: Limits,
) -> list[Problem]:
    """Every reason why a host that answered, or should have, is not fit for the cluster."""
    found: list[Problem] = []
    cluster = set(groups.get("cluster", ()))
    here = {one.name: one for one in seen if one.probe}
    for one in seen:
        if one.asleep:
            continue
        if not one.probe:
            found.append(_unreachable(one, hostvars[one.name]))
            continue
        found += _python(one)
        if one.name in cluster:
            found += _system(one)
            found += _disk(one, limits)
            found += _storage(one, hostvars[one.name])
            found += _clock(one, limits)
            found += _fit(one, hostvars, groups)
            found += _taken_ports(one, hostvars, groups)
            found += _lock_out(one, hostvars, groups)
            found += _blocked(one, here)
    found += _architectures([here[name] for name in here if name in cluster], groups)
    return found


def _unreachable(one: Seen, variables: Mapping[str, Any]) -> Problem:
    where = variables.get("ansible_host", one.name)
    kind, why = next(iter(one.absent.items()), ("silent", "no answer"))
    why = " ".join(why.split()).rstrip(".")
    if kind == "refused":
        fix = f"correct ansible_user or the key; try: ssh {where}"
        return Problem(one.name, f"{where} refuses the login ({why})", fix)
    if kind == "broken":
        fix = "install Python 3.9 or newer there and give the user a shell and sudo"
        return Problem(one.name, f"answers at {where}, but cannot run Ansible's modules ({why})", fix)
    fix = f"start the machine, or correct ansible_host; try: ssh {where}"
    return Problem(one.name, f"does not answer at {where} ({why})", fix)


def _python(one: Seen) -> Iterator[Problem]:
    version = [int(part) for part in str(one.probe["python"]).split(".")[:2]]
    if tuple(version) < OLDEST_PYTHON:
        yield Problem(
            one.name,
            f"Python is {one.probe['python']}",
            "install Python 3.9 or newer and name it in ansible_python_interpreter",
        )


def _system(one: Seen) -> Iterator[Problem]:
    name, version = str(one.probe["os_id"]), str(one.probe["os_version"])
    if version not in SUPPORTED.get(name, ()):
        supported = ", ".join(f"{system.capitalize()} {' and '.join(them)}" for system, them in SUPPORTED.items())
        yield Problem(one.name, f"runs {one.probe['os']}, which is not supported", f"install one of these: {supported}")


def _disk(one: Seen, limits: Limits) -> Iterator[Problem]:
    free = float(one.probe["disk_free_gb"])
    if free < limits.free_disk_gb:
        yield Problem(
            one.name,
            f"{free:.1f} GB are free under /var/lib, images and data need {limits.free_disk_gb:g} GB",
            "make room, or lower preflight_free_disk_gb",
        )


def _storage(one: Seen, variables: Mapping[str, Any]) -> Iterator[Problem]:
    if wrong := one.probe.get("folder"):
        path = inventory.value(variables, "storage_path", "")
        yield Problem(one.name, f"storage_path {path} {wrong}", "mount it there, or correct storage_path")


def _clock(one: Seen, limits: Limits) -> Iterator[Problem]:
    skew = float(one.probe["clock_skew"])
    if abs(skew) > limits.clock_skew:
        yield Problem(
            one.name,
            f"its clock is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}",
            "run a time service on it (systemd-timesyncd or chrony), or raise preflight_clock_skew",
        )


def _fit(
    one: Seen, hostvars: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]]
) -> Iterator[Problem]:
    variables = hostvars[one.name]
    try:
        if one.name in groups.get("ray_head", ()):
            head = sizing.parse_memory(inventory.value(variables, "ray_head_memory", 0), what="ray_head_memory")
            if head > one.probe["memory_mb"] * sizing.MIB:
                total = sizing.human(one.probe["memory_mb"] * sizing.MIB)
                yield Problem(
                    one.name,
                    f"ray_head_memory is {sizing.human(head)}, the host has {total}",
                    "lower ray_head_memory, or make a larger host the head",
                )
                return
        worker_sizes(one.name, variables, groups, {**one.probe, "gpus": len(one.probe["gpus"])})
    except MusterError as error:
        yield Problem.of(error, one.name)


def _taken_ports(
    one: Seen, hostvars: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]]
) -> Iterator[Problem]:
    table = hostvars[one.name].get("muster_ports", {})
    ours = str(inventory.value(hostvars[one.name], "muster_uid", ""))
    try:
        mine = ports.plan_host(table, inventory.read_host(one.name, hostvars, groups, table))
    except MusterError:
        return
    planned = [(entry.first, entry.last, name) for name, entry in mine.services.items()]
    planned += [(node.first, node.last, f"Ray node {node.name}") for node in mine.ray_nodes]
    for listener in one.probe["listening"]:
        for first, last, name in planned:
            if first <= listener["port"] <= last and str(listener["uid"]) != ours:
                who = listener.get("process") or f"a process of uid {listener['uid']}"
                yield Problem(
                    one.name,
                    f"port {listener['port']}, planned for {name}, is taken by {who}",
                    "stop that program, or give the service another port in muster_ports_extra",
                )


def _lock_out(
    one: Seen, hostvars: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]]
) -> Iterator[Problem]:
    client = str(one.probe.get("ssh_client") or "")
    if not client or one.name not in groups.get("ufw", ()):
        return
    try:
        rules = inventory.firewall_rules(hostvars, groups, {}, one.name)
    except MusterError:
        return
    # Addresses of IPv4 in IPv6's notation are those of IPv4 to the firewall.
    source = ip_address(client.removeprefix("::ffff:").partition("%")[0])
    port = str(one.probe.get("ssh_port") or 22)
    allowed = [network for rule in rules if str(rule["ports"]) == port for network in rule["from"]]
    if not any(network == ports.ANY or source in ip_network(network, strict=False) for network in allowed):
        yield Problem(
            one.name,
            f"the firewall would shut out this very connection, from {client} to port {port}",
            f"add {client} or its network to ufw_ssh_networks",
        )


def _blocked(one: Seen, here: Mapping[str, Seen]) -> Iterator[Problem]:
    for miss in one.probe.get("blocked", ()):
        peer = here.get(miss["host"])
        # Our own firewall opens the port later in this run; a host that is down is reported as such.
        if peer and not peer.probe.get("firewall"):
            yield Problem(
                one.name,
                f"cannot reach {miss['host']} on port {miss['port']} ({miss['why']})",
                "open the cluster's ports between these hosts in the network's own firewall",
            )


def _architectures(seen: Sequence[Seen], groups: Mapping[str, Sequence[str]]) -> Iterator[Problem]:
    heads = [one for one in seen if one.name in groups.get("ray_head", ())]
    if not heads:
        return
    wanted = heads[0].probe["architecture"]
    for one in seen:
        if one.probe["architecture"] != wanted:
            yield Problem(
                one.name,
                f"its architecture is {one.probe['architecture']}, the head's is {wanted}",
                "take it out of the cluster: all nodes run the same image",
            )
