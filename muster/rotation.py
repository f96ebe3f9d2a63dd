"""What playbooks/rotate.yml is told, judged before anything is changed: which files get new content, on which hosts.

A former file stays as NAME.old until what replaces it is everywhere (plugins/modules/former_files.py). Roles read these
names, too: what is there is good beside the new one. A run that was cut goes on with the new values that it has made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from muster.errors import MusterError
from muster.inventory import value
from muster.laptops import arguments, truth
from muster.problems import meant
from muster.silence import member

ARGUMENTS = ("what", "host", "user", "keep_old")
# What there is, and the groups whose hosts have it. One of these must not be left out by --limit.
WHAT = {
    "ray_token": ("ray_head", "ray_worker", "celery_worker", "gateway"),
    "redis": ("celery_redis", "celery_worker", "celery_beat", "celery_metrics", "flower"),
    "gateway": ("gateway",),
    "flower": ("flower", "gateway"),
    "certificates": ("pki", "builder"),
    "authority": ("pki", "builder"),
}
AUTHORITY = ("pki/ca.key", "pki/ca.csr", "pki/ca.crt")
APP = "celery_app_password"
# A pattern for nobody, of a group that is always there.
NOBODY, ALL = "ungrouped", "all"
HostVars = Mapping[str, Mapping[str, Any]]
Groups = Mapping[str, Sequence[str]]


class Rotation(TypedDict):
    """Names of files below `folder`, by when they are put aside, and for whom each part of the playbook is."""

    what: list[str]
    folder: str
    keep_old: bool
    # Hosts that must have come to the end before anything former is refused.
    needed: list[str]
    # Two values are good at a time: the broker's logins, by the laptop that has them, and the authority.
    logins: dict[str, str]
    authority: list[str]
    # The broker has to show the new authority's certificate before anybody trusts that alone.
    broker_certificate: list[str]
    # One value at a time.
    others: list[str]
    users: dict[str, str]
    only: dict[str, str]
    theirs: list[str]


def rotation(
    given: Mapping[str, Any],
    extra: Collection[str],
    known: Collection[str],
    hostvars: HostVars,
    groups: Groups,
    hosts: Collection[str],
    tags: Collection[str] = (),
) -> Rotation:
    """What is to be done; every mistake is one line that says what to do."""
    words = arguments(given, extra, known, ARGUMENTS)
    what = _what(words.get("what", ""))
    everything = "all" in what
    if any(tag != "all" for tag in tags):
        raise MusterError(
            "parts are not chosen by tags here", fix=f"leave the tags out and give -e what=...; {_list()}"
        )
    names = [name for name in WHAT if everything or name in what]
    if "authority" in names:
        names = [name for name in names if name != "certificates"]
    host, user = words.get("host", ""), words.get("user", "")
    if host and names != ["certificates"]:
        raise MusterError("host is for one host's certificate", fix="write what=certificates, or leave host out")
    if user and names != ["gateway"]:
        raise MusterError("user is for one person's login", fix="write what=gateway, or leave user out")
    keep = truth(words.get("keep_old", "no"), "keep_old")
    if keep and not {"redis", "authority"} & set(names):
        raise MusterError(
            "keep_old is for the broker's password and for the authority: of all else there is one at a time",
            fix="leave keep_old out",
        )
    host = member(host, hostvars, groups) if host else ""
    some = next(iter(groups.get("ray_head", ())), "") or next(iter(groups.get("cluster", ())), "")
    if not some:
        raise MusterError("the inventory has no hosts", fix="give yours, as in -i inventory/mine")
    folder = Path(str(hostvars[some]["muster_secrets_dir"]))
    if not folder.is_dir():
        raise MusterError(
            f"{folder} is not there: nothing was made here that could be made anew", fix="run site.yml first"
        )
    own_registry = not str(value(hostvars[some], "muster_registry", ""))
    certified = [
        name for name in _members(groups, WHAT["certificates"]) if own_registry or name in groups.get("pki", ())
    ]
    if host and host not in certified:
        raise MusterError(f"{host} has no certificate of ours", fix="name a host of the group pki")
    if "certificates" in names and _former(folder, AUTHORITY[-1]):
        raise MusterError(
            "the authority is being replaced, and a new certificate would be one of the new authority",
            fix="finish that first, with what=authority",
        )
    if not everything:
        for name in names:
            if not _members(groups, WHAT[name][:1]):
                raise MusterError(f"nobody has {name}: the group {WHAT[name][0]} is empty", fix="leave it out")
    wanted = [name for name in names if _members(groups, WHAT[name][:1])]
    needed = [host] if host else sorted({one for name in wanted for one in _needed(name, groups, certified, hosts)})
    if missing := [one for one in needed if one not in hosts]:
        raise MusterError(
            f"--limit leaves out {', '.join(missing)}, and what is new must get there, too",
            fix="leave --limit out; single hosts: what=certificates",
        )
    asleep = groups.get("asleep", ())
    renewed = [one for one in ([host] if host else certified) if one in hosts and one not in asleep]
    secrets = {name: list(_secrets(name, user, hostvars, groups)) for name in wanted}
    theirs, ours = _judged(secrets, folder, hostvars)
    if not everything and theirs and not any(ours.values()) and not {"certificates", "authority"} & set(wanted):
        raise MusterError(
            f"{', '.join(sorted(theirs))}: set in your inventory or Vault, so it is not ours to make anew",
            fix="change it there and run site.yml",
        )
    # Who has begun with these and kept the old one goes on where he stopped, and gets no third one.
    begun = any(_former(folder, name) for name in ours.get("redis", {}) if "_laptop_" not in name)
    logins = {name: who for name, who in ours.get("redis", {}).items() if not begun or _former(folder, name)}
    switch = "authority" in wanted and not keep
    broker = next(iter(groups.get("celery_redis", ())), "")
    certificates = {one: list(_certificate(one, hostvars)) for one in renewed}
    last = [name for one in renewed for name in certificates[one]] if switch or "certificates" in wanted else []
    return Rotation(
        what=wanted,
        folder=str(folder),
        keep_old=keep,
        needed=[one for one in needed if one not in asleep],
        logins=logins,
        authority=list(AUTHORITY) if "authority" in wanted else [],
        broker_certificate=certificates.get(broker, []) if switch else [],
        others=[name for kind in ("ray_token", "gateway", "flower") for name in ours.get(kind, {})] + last,
        users={name: _user(name, who) for name, who in logins.items()},
        only=_only(wanted, host, switch=switch, own_registry=own_registry),
        theirs=sorted(theirs),
    )


def _what(text: str) -> list[str]:
    """What is named; at least one thing must be."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise MusterError("nothing is named", fix=f"add -e what=...; {_list()}")
    for name in names:
        if name != "all" and name not in WHAT:
            close = meant(name, [*WHAT, "all"])
            raise MusterError(f"what is {name!r}", fix=f"write {close}" if close else _list())
    return names


def _list() -> str:
    return f"there are {', '.join(WHAT)} (several by comma), and all"


def _members(groups: Groups, names: Collection[str]) -> list[str]:
    return sorted({str(host) for name in names for host in groups.get(name, ())})


def _needed(what: str, groups: Groups, certified: Sequence[str], hosts: Collection[str]) -> list[str]:
    """Hosts that must get it. Laptops may sleep."""
    there = certified if what in ("certificates", "authority") else _members(groups, WHAT[what])
    laptops = groups.get("laptop", ())
    return [one for one in there if one not in laptops and (what != "certificates" or one in hosts)]


def _secrets(what: str, user: str, hostvars: HostVars, groups: Groups) -> Iterator[tuple[str, str, str]]:
    """File, the host whose variable has its content, and the variable; none where there can be no other content."""
    first = {group: next(iter(members), "") for group, members in groups.items()}
    if what == "ray_token":
        yield "ray_token", first["ray_head"], "ray_token"
    if what == "redis":
        for name in (APP, "celery_exporter_password", "celery_operator_password"):
            yield name, first["celery_redis"], name
        for laptop in sorted(groups.get("laptop", ())):
            yield f"celery_laptop_{laptop}_password", laptop, "celery_redis_password"
    if what == "flower":
        yield "flower_password", first["flower"], "flower_password"
    if what == "gateway":
        variables = hostvars[first["gateway"]]
        people = list(value(variables, "gateway_users", ["admin"]))
        holders = list(value(variables, "gateway_tokens", people))
        if user and user not in people + holders:
            close = meant(user, people + holders)
            raise MusterError(
                f"there is no user {user} in gateway_users and gateway_tokens",
                fix=f"write {close}" if close else f"there are {', '.join(dict.fromkeys(people + holders))}",
            )
        for name in people if not user else [user] if user in people else []:
            yield f"gateway_{name}_password", first["gateway"], f"gateway_passwords.{name}"
        for name in holders if not user else [user] if user in holders else []:
            yield f"gateway_{name}_token", first["gateway"], ""
        if not user:
            yield "gateway_key", first["gateway"], ""


def _judged(
    secrets: Mapping[str, Sequence[tuple[str, str, str]]], folder: Path, hostvars: HostVars
) -> tuple[set[str], dict[str, dict[str, str]]]:
    """Variables that somebody has set himself, and the files that are ours, each with its host."""
    theirs: set[str] = set()
    ours: dict[str, dict[str, str]] = {}
    for what, files in secrets.items():
        for name, host, variable in files:
            if _former(folder, name) or _ours(folder / name, variable, hostvars[host]):
                ours.setdefault(what, {})[name] = host
            elif variable:
                theirs.add(variable)
    return theirs, ours


def _ours(file: Path, variable: str, variables: Mapping[str, Any]) -> bool:
    """Whether the file is what the cluster uses: an inventory or Vault may say something else."""
    if not file.is_file():
        return False
    if variable.startswith("gateway_passwords."):
        given = value(variables, "gateway_passwords", {})
        return not (isinstance(given, Mapping) and given.get(variable.partition(".")[2]))
    return not variable or str(variables[variable]) == file.read_text(encoding="utf-8").rstrip("\n")


def _former(folder: Path, name: str) -> bool:
    """Whether its change was begun and not finished."""
    return any((folder / f"{name}.{state}").exists() for state in ("old", "out"))


def _certificate(host: str, hostvars: HostVars) -> Iterator[str]:
    """As the role pki names them."""
    address = value(hostvars[host], "muster_address", hostvars[host].get("ansible_host", ""))
    for end in ("key", "csr", "crt"):
        yield f"pki/hosts/{host}_{address}.{end}"


def _user(file: str, host: str) -> str:
    """The broker's user that has the password."""
    kind = file.removeprefix("celery_").removesuffix("_password")
    return f"laptop-{host}" if kind.startswith("laptop_") else kind


def _only(what: Collection[str], host: str, *, switch: bool, own_registry: bool) -> dict[str, str]:
    """Patterns: who takes part in which step."""
    redis, token = "redis" in what, "ray_token" in what
    # Whose certificates are new, and with them what runs there.
    new = ALL if switch else (host or ALL) if "certificates" in what else ""
    patterns = {
        "both_logins": ALL if redis else "",
        "both_authorities": (ALL if own_registry else "pki") if "authority" in what else "",
        "switch": ALL if switch else "",
        "pki": new if own_registry or host or not new else "pki",
        "ray_anew": ALL if token or switch else "",
        "ray": ALL if token else new,
        "clients": ALL if redis or token else new or ("flower" if "flower" in what else ""),
        "laptop": ALL if redis else "",
        "broker": ALL if redis else new,
        "registry": ("builder" if new == ALL else new) if own_registry else "",
        "gateway": ALL if {"gateway", "flower", "ray_token"} & set(what) else new,
    }
    return {name: pattern or NOBODY for name, pattern in patterns.items()}
