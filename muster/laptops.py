"""What add-laptop.yml and remove-laptop.yml are told, judged before anything is changed, and the file laptops.yml."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypedDict

import yaml

from muster import celery_sizing, inventory, sizing
from muster.errors import MusterError
from muster.problems import meant

FILE = "laptops.yml"
HEADER = """\
# The laptops, one line each: written by add-laptop.yml and remove-laptop.yml, read by every run. Change a line as in
# hosts.yml and run site.yml, or run add-laptop.yml again. The lines' order is that of the names; comments do not stay.
"""
ADD = ("host", "name", "user", "port", "ray", "cpus", "memory")
REMOVE = ("host", "name", "lost")
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?")
USER = re.compile(r"[a-z_][a-z0-9_.-]*\$?", re.IGNORECASE)
YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
HostVars = Mapping[str, Mapping[str, Any]]
Groups = Mapping[str, Sequence[str]]
Resolve = Callable[[str], str]


class Laptop(TypedDict):
    """A laptop that is to be enrolled, and the file that says so."""

    name: str
    address: str
    variables: dict[str, Any]
    groups: list[str]
    file: str
    text: str


class Leaver(TypedDict):
    """A laptop that is to go, and the file without it."""

    name: str
    address: str
    lost: bool
    known: bool
    ray: bool
    file: str
    text: str


def resolve(name: str) -> str:
    """The address of a host's name, IPv4 first; nothing when there is none."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return ""
    return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


def add(
    given: Mapping[str, Any],
    extra: Collection[str],
    known: Collection[str],
    hostvars: HostVars,
    groups: Groups,
    sources: Sequence[str],
    find: Resolve = resolve,
) -> Laptop:
    """The laptop as the inventory will have it; every mistake is one line that says what to do."""
    words = arguments(given, extra, known, ADD)
    file = laptops_file(sources)
    data = read(file)
    host = named(words.get("host", ""), "add-laptop.yml -e host=10.0.0.85")
    name, address = whom(host, words.get("name", ""), hostvars, groups, find)
    refuse_others(host, name, address, hostvars, groups)
    mine = entries(data, file).get(name)
    if mine is None and name in groups.get("laptop", ()):
        if more := sorted(set(words) & set(ADD) - {"host", "name"}):
            raise wrong(
                f"{name} is in the inventory, but not in {FILE}, and {', '.join(more)} cannot be written there",
                f"change its line by hand, and leave out {', '.join(more)}",
            )
        return Laptop(
            name=name, address=address, variables={}, groups=[], file=str(file), text=written(file, data, HEADER)
        )
    variables = {**(mine or {}), "ansible_host": address, **settings(words, mine or {}, name)}
    entries(data, file)[name] = variables
    return Laptop(
        name=name, address=address, variables=variables, groups=["laptop"], file=str(file),
        text=written(file, data, HEADER),
    )  # fmt: skip


def remove(
    given: Mapping[str, Any],
    extra: Collection[str],
    known: Collection[str],
    hostvars: HostVars,
    groups: Groups,
    sources: Sequence[str],
    find: Resolve = resolve,
) -> Leaver:
    """The laptop that is to go. One that nobody knows any more is no mistake: the second run finds nothing to do."""
    words = arguments(given, extra, known, REMOVE)
    file = laptops_file(sources)
    data = read(file)
    host = named(words.get("host") or words.get("name", ""), "remove-laptop.yml -e host=laptop1")
    name, address = whom(host, words.get("name", ""), hostvars, groups, find)
    refuse_others(host, name, address, hostvars, groups, leaves=True)
    found = entries(data, file)
    if name not in found and name in groups.get("laptop", ()):
        raise wrong(
            f"{name} is in the inventory, but not in {FILE}, the only file that this writes",
            f"move its line to {file}, then run this again",
        )
    there = name in found
    variables = hostvars[name] if there and name in hostvars else {}
    ray = bool(variables) and sizing.count(inventory.worker_spec(variables, {"laptop"}), host=name) > 0
    found.pop(name, None)
    return Leaver(
        name=name, address=address, lost=truth(words.get("lost", "no"), "lost"), known=there, ray=ray,
        file=str(file), text=written(file, data, HEADER),
    )  # fmt: skip


def named(host: str, example: str) -> str:
    """The laptop that is meant; somebody must be."""
    if not host:
        raise wrong("no host is given", f"say which one, as in: ansible-playbook {example}")
    return host


def arguments(
    given: Mapping[str, Any], extra: Collection[str], known: Collection[str], mine: Sequence[str]
) -> dict[str, str]:
    """Those that have a value, as text. Anything else that -e sets must be a variable that a role knows."""
    for name in sorted(extra):
        if name == "_raw_params":  # Ansible's name for words of -e without an equals sign.
            raise wrong(
                "-e has a word that belongs to no argument", "quote spaces once more, as in -e 'why=\"new disk\"'"
            )
        if name not in mine and name not in known:
            close = meant(name, [*mine, *known])
            fix = f"write {close}" if close and close not in extra else "leave it out"
            raise wrong(f"the argument {name} is unknown", f"{fix}; there are {', '.join(mine)}")
    return {name: str(given[name]).strip() for name in mine if str(given.get(name, "")).strip()}


def whom(host: str, name: str, hostvars: HostVars, groups: Groups, find: Resolve) -> tuple[str, str]:
    """Name and address of who is meant: by its name in the inventory, its address, or a name that resolves."""
    names = {str(member) for members in groups.values() for member in members}
    if host in names:
        address, known = owned(host, hostvars), host
    elif not numeric(host) and re.fullmatch(r"[0-9.:]+", host):
        raise wrong(f"host is {host!r}, which is no address", "write it like host=10.0.0.85")
    elif not numeric(host) and not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", host):
        raise wrong(f"host is {host!r}, which is neither an address nor a name", "write it like host=10.0.0.85")
    else:
        address = numeric(host) or find(host)
        owners = [other for other in sorted(names) if address and owned(other, hostvars) == address]
        known = owners[0] if owners else ""
    if known and name and name != known and known not in groups.get("server", ()):
        raise wrong(f"{host} is {known} in the inventory, not {name}", f"leave out name, or write name={known}")
    label = known or name or default_name(host)
    if not address and label not in names:
        # Its name may be all that is left of one that is to go.
        if name == label or NAME.fullmatch(label):
            return label, ""
        raise wrong(f"host is {host!r}, which has no address", "give the laptop's IP address, as in host=10.0.0.85")
    return label, address


def refuse_others(
    host: str, name: str, address: str, hostvars: HostVars, groups: Groups, *, leaves: bool = False
) -> None:
    """A server is no laptop, and a name or an address belongs to one host."""
    for group, what in (("server", "a server"), ("builder", "the builder"), ("ray_head", "Ray's head")):
        for other in groups.get(group, ()):
            if name == other or (address and owned(other, hostvars) == address):
                who = other if other in (host, name) and host != address else f"{address} is {other}, and {other}"
                raise wrong(
                    f"{who} is {what} in this inventory",
                    "servers leave by hand: take it out of hosts.yml and run site.yml"
                    if leaves
                    else "give a laptop's address, or another name",
                )
    if not leaves and not address:
        raise wrong(f"host is {host!r}, which has no address", "give the laptop's IP address, as in host=10.0.0.85")
    if not NAME.fullmatch(name) and name not in groups.get("laptop", ()):
        raise wrong(f"name is {name!r}", "use small letters, digits and hyphens, 42 at most, as in name=anna")
    if name in groups or name in ("all", "localhost", "ungrouped"):
        raise wrong(f"name is {name!r}, which is the name of a group", "give another, as in name=anna")
    for other in groups.get("laptop", ()):
        if not leaves and other == name and address and owned(other, hostvars) not in ("", address):
            raise wrong(
                f"the name {name} belongs to the laptop at {owned(other, hostvars)}",
                f"give this one another name; if {name} has moved to {address}, change ansible_host in its line",
            )


def settings(words: Mapping[str, str], old: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the other arguments write into the laptop's line."""
    found: dict[str, Any] = {}
    if user := words.get("user"):
        if not USER.fullmatch(user):
            raise wrong(f"user is {user!r}", "give the login's name, as in user=anna")
        found["ansible_user"] = user
    if port := words.get("port"):
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise wrong(f"port is {port!r}", "give the port of its SSH server, 1 to 65535")
        found["ansible_port"] = int(port)
    ray = inventory.is_true(old.get("ray_on_laptop", False))
    if "ray" in words:
        ray = truth(words["ray"], "ray")
        if ray or "ray_on_laptop" in old:
            found["ray_on_laptop"] = ray
    cpus, memory = words.get("cpus", ""), words.get("memory", "")
    if cpus and (not cpus.isdecimal() or int(cpus) < 1):
        raise wrong(f"cpus is {cpus!r}", "give how many CPUs the cluster may use there, as in cpus=2")
    if memory:
        try:
            sizing.parse_memory(memory, what="memory")
        except MusterError as error:
            raise wrong(error.problem, "write it like memory=2G") from None
    if ray:
        found |= ({"ray_worker_cpus": int(cpus)} if cpus else {}) | ({"ray_worker_memory": memory} if memory else {})
        return found
    if cpus or memory:
        worker: dict[str, Any] = {"queues": list(celery_sizing.LOCAL)}
        worker |= ({"concurrency": int(cpus)} if cpus else {}) | ({"memory": memory} if memory else {})
        try:
            celery_sizing.celery_workers([worker], host_cpus=1, ray=False, guest=True)
        except MusterError as error:
            raise wrong(error.problem.partition(": ")[2] or error.problem, error.fix) from None
        found["celery_workers"] = [worker]
    return found


def truth(text: str, name: str) -> bool:
    """A yes or a no, and nothing else."""
    if text.lower() not in YES + NO:
        raise wrong(f"{name} is {text!r}", f"write {name}=true or {name}=false")
    return text.lower() in YES


def default_name(host: str) -> str:
    """The same for the same host at any time: the first part of its name, or its address spelt out."""
    if address := numeric(host):
        return "laptop-" + re.sub(r"[^0-9a-f]+", "-", address).strip("-")
    return host.partition(".")[0].lower()


def numeric(text: str) -> str:
    """An address in its usual form; nothing when it is none."""
    try:
        return str(ip_address(text))
    except ValueError:
        return ""


def owned(name: str, hostvars: HostVars) -> str:
    """A host's address as the inventory has it."""
    found = str(inventory.value(hostvars[name], "muster_address", hostvars[name].get("ansible_host", "")))
    return numeric(found) or found


def laptops_file(sources: Sequence[str]) -> Path:
    """laptops.yml in the folder of the inventory in use; the last one, where there are several."""
    folder = Path(sources[-1])
    if not folder.is_dir():
        raise wrong(
            f"the inventory {folder} is a file, and {FILE} beside it would not be read",
            f"give its folder: -i {folder.parent}",
        )
    return folder / FILE


def read(file: Path) -> dict[str, Any]:
    """What the file says; nothing when there is none."""
    if not file.exists():
        return {}
    try:
        data = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise wrong(f"{file} cannot be read: {' '.join(str(error).split())}", "correct it, or remove it") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise wrong(f"{file} is no inventory", "correct it, or remove it")
    return data


def entries(data: dict[str, Any], file: Path) -> dict[str, dict[str, Any]]:
    """The laptops of the file, each with its variables."""
    group = data.setdefault("laptop", {})
    hosts = group.setdefault("hosts", {}) if isinstance(group, dict) else None
    if hosts is None and isinstance(group, dict):
        hosts = group["hosts"] = {}
    if not isinstance(hosts, dict) or not all(isinstance(one, dict | None) for one in hosts.values()):
        raise wrong(
            f"{file} has no laptops where they should be", "write: laptop: {hosts: {NAME: {ansible_host: ...}}}"
        )
    for name, variables in hosts.items():
        if variables is None:
            hosts[name] = {}
    return hosts


def written(file: Path, data: dict[str, Any], header: str) -> str:
    """The file's text: a line per laptop in the order of names, and whatever else was in it."""
    hosts = entries(data, file)
    lines = [header.rstrip(), "laptop:", "  hosts:" if hosts else "  hosts: {}"]
    for name in sorted(hosts):
        lines.append(f"    {_line(name)}: {_line(hosts[name])}")
    rest = {key: value for key, value in data["laptop"].items() if key != "hosts"}
    if rest:
        lines.append(_block(rest, indent=2))
    others = {key: value for key, value in data.items() if key != "laptop"}
    if others:
        lines.append(_block(others, indent=0))
    return "\n".join(lines) + "\n"


def wrong(problem: str, fix: str) -> MusterError:
    """Nothing was changed, and this is why."""
    return MusterError(problem, fix=fix)


class _Tagged(str):
    """A value with one of Ansible's own tags, as !vault; it is written as it was read."""

    tag = ""


class _Loader(yaml.SafeLoader):
    """Keeps Ansible's own tags."""


def _tagged(_: Any, suffix: str, node: yaml.Node) -> _Tagged:
    value = _Tagged(node.value)
    value.tag = f"!{suffix}"
    return value


class _Dumper(yaml.SafeDumper):
    """Writes them again, and refers to nothing twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.add_multi_constructor("!", _tagged)
_Dumper.add_representer(_Tagged, lambda dumper, value: dumper.represent_scalar(value.tag, str(value), style='"'))


def _line(value: Any) -> str:
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, width=10**6)
    return str(text).removesuffix("...\n").strip()


def _block(data: Mapping[str, Any], indent: int) -> str:
    text = yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, width=110).rstrip()
    return "\n".join(" " * indent + line for line in text.splitlines())
