"""What can be wrong with an inventory, found before any host is contacted."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muster import bundle, celery_sizing, celery_times, inventory, logins, messages, ports, sizing
from muster.celery_schedule import schedule_mistakes, zone_exists
from muster.errors import MusterError
from muster.known import CONNECTION, Known
from muster.laptop_hours import parse_hours
from muster.problems import COMMAND_LINE, INVENTORY, Problem, meant

SECRET = re.compile(r"_(token|password|passphrase|secret)$")
SHORTEST_SECRET = 16
WEAK_SECRETS = ("changeme", "change_me", "password", "passw0rd", "secret", "admin", "letmein", "default", "muster")
Validate = Callable[[Mapping[str, Any], Any], str]


@dataclass(frozen=True)
class Inventory:
    """An inventory as Ansible sees it: values are templated when read, `raw` holds them as they are written."""

    hostvars: Mapping[str, Mapping[str, Any]]
    groups: Mapping[str, Sequence[str]]
    known: Known
    raw: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    extra: Collection[str] = ()
    own: Collection[str] = ()
    limit: Collection[str] = ()

    def members(self, group: str) -> list[str]:
        """Hosts of a group; none when there is no such group."""
        return [str(host) for host in self.groups.get(group, ())]

    @property
    def managed(self) -> list[str]:
        """Hosts that Muster sets up, and the builder."""
        return list(dict.fromkeys([*self.members("cluster"), *self.members("builder")]))

    def in_this_run(self, group: str) -> list[str]:
        """Hosts of a group that --limit leaves: what -e says is meant for them only."""
        return [host for host in self.members(group) if not self.limit or host in self.limit]

    def overridden(self, host: str) -> Iterator[tuple[str, Any]]:
        """Variables that the inventory or -e sets, beside or against the repository's own values."""
        nothing = object()
        for name, written in self.raw.get(host, {}).items():
            if self.known.defaults.get(name, nothing) != written:
                yield str(name), written


def inventory_problems(inv: Inventory, validate: Validate | None = None) -> list[Problem]:
    """Every mistake that the inventory alone gives away."""
    found: list[Problem] = [
        *_groups(inv),
        *_unknown(inv),
        *_addresses(inv),
        *_table_groups(inv),
        *_plans(inv),
        *_doors(inv),
        *_certificates(inv),
        *_declared_sizes(inv),
        *_broker(inv),
        *_celery_workers(inv),
        *_times(inv),
        *_schedules(inv),
        *_laptops(inv),
        *_gateway(inv),
        *_storage(inv),
        *_backup(inv),
        *_llm(inv),
        *_offline(inv),
        *_messages(inv),
        *_secrets(inv),
    ]
    if validate:
        found += _types(inv, validate)
    return found


def _groups(inv: Inventory) -> Iterator[Problem]:
    heads = inv.members("ray_head")
    if not heads:
        yield Problem(INVENTORY, "the group ray_head is empty", "put exactly one server into ray_head")
    if len(heads) > 1:
        yield Problem(
            INVENTORY, f"ray_head has {len(heads)} hosts: {', '.join(heads)}", "leave one of them in ray_head"
        )
    laptops = inv.members("laptop")
    for host in laptops:
        if host in inv.members("server"):
            yield Problem(host, "is a server and a laptop", "take it out of one of the groups server and laptop")
    for host in heads:
        if host in laptops:
            yield Problem(host, "is Ray's head and a laptop", "make a host the head that is always on")
        elif inv.members("cluster") and host not in inv.members("cluster"):
            yield Problem(host, "is Ray's head, but not in the cluster", "add it to the group server")
    if not inv.members("cluster"):
        yield Problem(INVENTORY, "there is no host in the groups server and laptop", "add the machines to server")
    registry = inventory.value(inv.hostvars[inv.managed[0]], "muster_registry", "") if inv.managed else ""
    if not inv.members("builder") and not registry:
        yield Problem(
            INVENTORY,
            "the group builder is empty and muster_registry is not set, so nobody can serve the images",
            "put one host into builder (the head will do), or set muster_registry to a registry of your own",
        )


def _unknown(inv: Inventory) -> Iterator[Problem]:
    candidates = inv.known.names | CONNECTION
    for name in inv.extra:
        if not inv.known.has(name) and name not in inv.own:
            yield Problem(COMMAND_LINE, f"the variable {name} is unknown", _spelling(name, candidates))
    for host in inv.managed:
        for name in inv.raw.get(host, ()):
            if not inv.known.has(name) and name not in inv.own and name not in inv.extra:
                yield Problem(host, f"the variable {name} is unknown", _spelling(name, candidates))


def _spelling(name: str, candidates: Collection[str]) -> str:
    close = meant(name, candidates)
    hint = f"write {close}" if close else "remove it"
    return f"{hint}, or name it in preflight_own_variables if it is yours"


def _addresses(inv: Inventory) -> Iterator[Problem]:
    owner: dict[str, str] = {}
    for host in inv.managed:
        try:
            address = inventory.address(host, inv.hostvars[host])
        except MusterError as error:
            yield Problem.of(error)
            continue
        except Exception as error:
            yield Problem(host, f"muster_address cannot be read: {_short(error)}", "set ansible_host to its IP address")
            continue
        if address in owner:
            yield Problem(
                host, f"has the address {address}, which is {owner[address]}'s", "give every host its own ansible_host"
            )
        owner.setdefault(address, host)


def _table_groups(inv: Inventory) -> Iterator[Problem]:
    if not inv.managed:
        return
    try:
        table = ports.read_table(inv.hostvars[inv.managed[0]]["muster_ports"])
    except (KeyError, MusterError):
        return
    for entry in table.values():
        for name in (*entry.at, *entry.sources):
            if name != ports.ANY and not ports.is_network(name) and name not in inv.groups:
                close = meant(name, inv.groups)
                yield Problem(
                    INVENTORY,
                    f"muster_ports: {entry.name} names the group {name}, which does not exist",
                    f"write {close}" if close else "name it in groups.yml, or take it out",
                )


def _plans(inv: Inventory) -> Iterator[Problem]:
    for host in dict.fromkeys([*inv.in_this_run("cluster"), *inv.in_this_run("builder")]):
        try:
            table = inv.hostvars[host].get("muster_ports", {})
            ports.plan_host(table, inventory.read_host(host, inv.hostvars, inv.groups, table))
        except MusterError as error:
            if "address" not in error.problem:
                yield Problem.of(error)
        except Exception as error:
            yield Problem(host, f"its ports cannot be planned: {_short(error)}", "correct the variable that it names")


def _doors(inv: Inventory) -> Iterator[Problem]:
    """Who is let in must exist: a misspelt group would be a door that stays shut without a word."""
    for host in inv.members("ufw"):
        raw, variables = inv.raw.get(host, {}), inv.hostvars[host]
        if "ufw_ssh_networks" in raw and not ports.as_names(variables["ufw_ssh_networks"]):
            yield Problem(
                host, "ufw_ssh_networks is empty, which would shut out SSH", "name the networks you administer from"
            )
        for name, allowed in _let_in(raw, variables):
            for who in ports.as_names(allowed):
                if who != ports.ANY and not ports.is_network(who) and who not in inv.groups:
                    close = meant(who, inv.groups)
                    yield Problem(
                        host,
                        f"{name} has {who!r}, which is no network and no group",
                        f"write {close}" if close else "write it like 10.0.0.0/24, or any",
                    )


def _let_in(raw: Mapping[str, Any], variables: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in raw:
        if name.endswith("_networks"):
            yield name, variables[name]
    extra = variables["ufw_extra_rules"] if "ufw_extra_rules" in raw else []
    for rule in extra if isinstance(extra, list) else []:
        if isinstance(rule, Mapping):
            yield "ufw_extra_rules", rule.get("from")


def _certificates(inv: Inventory) -> Iterator[Problem]:
    for host in inv.managed:
        days, renew = (
            inventory.value(inv.hostvars[host], name, inv.known.options.get(name, {}).get("default"))
            for name in ("pki_host_days", "pki_renew_before_days")
        )
        if str(days).isdecimal() and str(renew).isdecimal() and 0 < int(days) <= int(renew):
            yield Problem(
                host,
                f"pki_renew_before_days {renew} is not less than pki_host_days {days}: every run would renew",
                "lower pki_renew_before_days, or raise pki_host_days",
            )


def worker_sizes(
    host: str, variables: Mapping[str, Any], groups: Mapping[str, Sequence[str]], size: Mapping[str, Any]
) -> list[sizing.Worker]:
    """The workers of a host of the given size (cpus, memory_mb, gpus), as the ray_worker role sizes them."""
    member = inventory.groups_of(groups).get(host, frozenset())
    kept = [inventory.value(variables, "ray_reserve_memory", 0)]
    if "ray_head" in member:
        kept.append(inventory.value(variables, "ray_head_memory", 0))
    celery = celery_sizing.celery_reserve(variables, member, size["cpus"], host)
    kept += celery
    if "ray_worker" not in member or sizing.count(inventory.worker_spec(variables, member), host=host) == 0:
        _refuse_too_much(sizing.reserve(kept), sum(celery), size["memory_mb"] * sizing.MIB, host)
        return []
    return sizing.ray_workers(
        inventory.worker_spec(variables, member),
        host=host,
        host_cpus=size["cpus"],
        host_memory_mb=size["memory_mb"],
        host_gpus=size.get("gpus"),
        cpus=inventory.value(variables, "ray_worker_cpus"),
        memory=inventory.value(variables, "ray_worker_memory"),
        gpus=inventory.value(variables, "ray_worker_gpus", 0),
        reserve_cpus=inventory.value(variables, "ray_reserve_cpus", 0),
        reserve_memory=kept,
    )


def _refuse_too_much(kept: int, celery: int, memory: int, host: str) -> None:
    """Without Ray workers nothing shrinks to make room."""
    if celery and kept > memory:
        raise MusterError(
            f"Celery and the small services ask for {sizing.human(celery)} of memory and {sizing.human(kept - celery)} "
            f"are kept for the host, which has {sizing.human(memory)}",
            fix="lower concurrency or memory in celery_workers, or celery_redis_memory",
            host=host,
        )


def _declared_sizes(inv: Inventory) -> Iterator[Problem]:
    for host in inv.in_this_run("cluster"):
        variables = inv.hostvars[host]
        cpus, memory = (inventory.value(variables, name) for name in ("muster_cpus", "muster_memory"))
        if cpus is None or memory is None:
            continue
        try:
            memory_mb = sizing.parse_memory(memory, what="muster_memory", host=host) // sizing.MIB
            size = {"cpus": cpus, "memory_mb": memory_mb, "gpus": inventory.value(variables, "muster_gpus")}
            worker_sizes(host, variables, inv.groups, size)
        except MusterError as error:
            yield Problem.of(error)


def _broker(inv: Inventory) -> Iterator[Problem]:
    """Whoever sends or takes tasks needs the one broker."""
    brokers = inv.members("celery_redis")
    if brokers == inv.members("ray_head") and len(brokers) != 1:
        return  # As a rule it is the head; what is wrong with that group has been said.
    if len(brokers) > 1:
        yield Problem(
            INVENTORY,
            f"celery_redis has {len(brokers)} hosts: {', '.join(sorted(brokers))}",
            "leave one of them in celery_redis",
        )
    for host in brokers:
        if host in inv.members("laptop") and host not in inv.members("ray_head"):
            yield Problem(host, "has Celery's broker and is a laptop", "put a host into celery_redis that is always on")
    users = [group for group in ("celery_worker", "celery_beat", "celery_metrics", "flower") if inv.members(group)]
    if users and not brokers:
        yield Problem(
            INVENTORY,
            f"the group celery_redis is empty, and {', '.join(users)} need Celery's broker",
            "put one host into celery_redis (the head will do), or empty those groups, too",
        )


def _celery_workers(inv: Inventory) -> Iterator[Problem]:
    for host in inv.in_this_run("celery_worker"):
        try:
            served = served_queues(host, inv.hostvars[host], inv.groups)
        except MusterError as error:
            yield Problem.of(error)
            continue
        options = inventory.value(inv.hostvars[host], "celery_options", {})
        reaches_jobs = host in inv.members("ray_head") or "MUSTER_RAY_JOBS_URL" in options
        if celery_sizing.RAY_QUEUE in served and not reaches_jobs:
            yield Problem(
                host,
                f"celery_workers serves {celery_sizing.RAY_QUEUE}, whose tasks are jobs of Ray, and Ray's Jobs API is "
                "on the head's loopback only",
                f"let ray_head serve {celery_sizing.RAY_QUEUE}, or set MUSTER_RAY_JOBS_URL in celery_options",
            )


def served_queues(host: str, variables: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> set[str]:
    """The queues that a host's workers serve; how many CPUs it has does not matter here."""
    member = inventory.groups_of(groups).get(host, frozenset())
    workers = celery_sizing.celery_workers(
        inventory.value(variables, "celery_workers"),
        host_cpus=inventory.value(variables, "muster_cpus", 2),
        ray=celery_sizing.serves_ray(variables, member),
        host=host,
    )
    return {queue for worker in workers for queue in worker["queues"]}


TIMES = ("celery_soft_time_limit", "celery_time_limit", "celery_max_countdown", "celery_visibility_timeout")
SHORTEST_LEASE = 15


def _times(inv: Inventory) -> Iterator[Problem]:
    """What the promise rests on: no task is handed out again while its worker may still be at it."""
    hosts = dict.fromkeys([*inv.in_this_run("celery_worker"), *inv.in_this_run("celery_beat")])
    for host in hosts:
        try:
            soft, hard, countdown, visibility = (
                sizing.parse_count(inventory.value(inv.hostvars[host], name, 0), what=name, host=host) for name in TIMES
            )
            lease = sizing.parse_count(
                inventory.value(inv.hostvars[host], "celery_lease", 0), what="celery_lease", host=host
            )
        except MusterError as error:
            yield Problem.of(error)
            continue
        if not 0 < soft < hard:
            yield Problem(
                host,
                f"celery_soft_time_limit {soft} is not between 0 and celery_time_limit {hard}",
                "lower it, or raise celery_time_limit: a task that is told to end needs time to do so",
            )
        needed = celery_times.visibility(hard, countdown)
        if visibility < needed:
            yield Problem(
                host,
                f"celery_visibility_timeout {visibility} is too short: a task of {hard} s after a countdown of "
                f"{countdown} s would run twice",
                f"remove it, or raise it to {needed}",
            )
        if lease < SHORTEST_LEASE:
            yield Problem(
                host,
                f"celery_lease {lease} is too short: workers that are only slow would count as dead",
                f"raise it to {SHORTEST_LEASE} or more",
            )


def _schedules(inv: Inventory) -> Iterator[Problem]:
    """The schedule is one for the cluster; each beat must have the same."""
    served: set[str] = set()
    for host in inv.members("celery_worker"):
        try:
            served |= served_queues(host, inv.hostvars[host], inv.groups)
        except MusterError:
            return
    for host in inv.in_this_run("celery_beat"):
        variables = inv.hostvars[host]
        where = COMMAND_LINE if "celery_schedule" in inv.extra else host
        # [] where somebody writes `celery_schedule:` and nothing after it.
        for problem, fix in schedule_mistakes(inventory.value(variables, "celery_schedule", []), served or None):
            yield Problem(where, problem, fix)
        zone = inventory.value(variables, "celery_timezone", "UTC")
        if not zone_exists(zone):
            yield Problem(host, f"celery_timezone {zone!r} is unknown", "name it like Europe/Berlin")


# What a laptop's numbers may be, and what they are.
LAPTOP_NUMBERS = {
    "laptop_min_battery": (0, 100, "percent"),
    "laptop_max_temperature": (40, 120, "degrees Celsius"),
    "laptop_grace": (0, 600, "seconds"),
    "laptop_clock_tolerance": (1, 300, "seconds"),
}


def _laptops(inv: Inventory) -> Iterator[Problem]:
    """What its agent could not obey."""
    for host in inv.in_this_run("laptop"):
        variables = inv.hostvars[host]
        try:
            parse_hours(inventory.value(variables, "laptop_hours"), host=host)
        except MusterError as error:
            yield Problem.of(error)
        for name, (least, most, unit) in LAPTOP_NUMBERS.items():
            given = inventory.value(variables, name, least)
            try:
                good = least <= float(given) <= most
            except (TypeError, ValueError):
                good = False
            if not good:
                yield Problem(host, f"{name} is {given!r}", f"give {unit} from {least} to {most}")


def _gateway(inv: Inventory) -> Iterator[Problem]:
    for host in inv.in_this_run("gateway"):
        if host not in inv.members("ray_head"):
            yield Problem(
                host, "is the gateway and not Ray's head, whose pages are on loopback", "put Ray's head into gateway"
            )
        for problem, fix in logins.mistakes(inv.hostvars[host]):
            yield Problem(host, problem, fix)


def _storage(inv: Inventory) -> Iterator[Problem]:
    folder = re.compile(r"(/[\w.-]+)+")
    serving = inv.members("storage_server")
    if len(serving) > 1:
        yield Problem(
            INVENTORY,
            f"storage_server has {len(serving)} hosts: {', '.join(serving)}",
            "leave one of them in storage_server",
        )
    for host in serving:
        if host not in inv.members("server"):
            yield Problem(host, "is in storage_server, but no server", "put a host of the group server there")
        path = str(inventory.value(inv.hostvars[host], "storage_server_path", ""))
        if not folder.fullmatch(path):
            yield Problem(host, f"storage_server_path is {path!r}", "give the whole path of a folder, as in /srv/files")
    for host in inv.in_this_run("cluster"):
        path = str(inventory.value(inv.hostvars[host], "storage_path", ""))
        if path and serving:
            yield Problem(
                host,
                f"storage_path is {path!r}, and {serving[0]} is in storage_server",
                "keep one of them: a folder that you mount, or one that storage_server serves",
            )
        elif re.match(r"\w+://", path):
            yield Problem(
                host,
                f"storage_path is {path!r}; runs and models are kept in a folder, not at an address",
                "mount the bucket on all servers (rclone mount, s3fs) and give the folder",
            )
        elif path and not folder.fullmatch(path):
            yield Problem(host, f"storage_path is {path!r}", "give the whole path of a folder, as in /srv/share")


def _backup(inv: Inventory) -> Iterator[Problem]:
    for host in inv.members("backup"):
        # Of a laptop that is the head more is wrong, and told.
        if host not in [*inv.members("server"), *inv.members("ray_head")]:
            yield Problem(host, "is in backup, but no server", "put hosts of the group server there")
        repository = str(inventory.value(inv.hostvars[host], "backup_repository", ""))
        if not re.match(r"/\S|sftp:\S+@\S|s3:\S|rest:\S|b2:\S|azure:\S|gs:\S", repository):
            yield Problem(
                host,
                f"backup_repository is {repository!r}",
                "give the whole path of a folder, or an address as in sftp:user@host:folder or s3:https://server/bucket",
            )
        elif repository.startswith("sftp:") and not inventory.value(inv.hostvars[host], "backup_known_host", ""):
            yield Problem(
                host,
                "backup_known_host is empty, so nobody knows whether the SFTP server is the right one",
                "set it to the line that `ssh-keyscan -t ed25519 SERVER` prints",
            )


def _llm(inv: Inventory) -> Iterator[Problem]:
    for host in inv.in_this_run("ray_head"):
        variables = inv.hostvars[host]
        wanted = inventory.value(variables, "llm_models", [])
        if not wanted:
            continue
        # Takes a moment to load, and most have none.
        from ray_jobs.command import JobError
        from ray_jobs.llm import config as llm

        try:
            llm.check({"models": wanted})
        except JobError as error:
            yield Problem(host, f"llm_models: {error}", "see group_vars/all/llm.yml, and docs/jobs.md (llm_serve)")
        if inventory.value(variables, "node_image_profile", "") == "core":
            yield Problem(host, "llm_models needs more than the core image has", "set node_image_profile: ml")


def _offline(inv: Inventory) -> Iterator[Problem]:
    for host in inv.managed[:1]:
        variables = inv.hostvars[host]
        if not inventory.value(variables, "offline", False):
            continue
        folder, root = (inventory.value(variables, name, "") for name in ("bundle_dir", "muster_root"))
        for problem, fix in bundle.mistakes(Path(folder), Path(root)):
            yield Problem(INVENTORY, problem, fix)


def _messages(inv: Inventory) -> Iterator[Problem]:
    """Whoever is to be told must be reachable, and Celery's tasks send mail by the same server."""
    for host in inv.in_this_run("cluster"):
        for problem, fix in messages.smtp_mistakes(inv.hostvars[host], "celery_smtp_url"):
            yield Problem(host, problem, fix)
    for host in inv.in_this_run("alertmanager"):
        for problem, fix in messages.receiver_mistakes(inv.hostvars[host]):
            yield Problem(host, problem, fix)


def _secrets(inv: Inventory) -> Iterator[Problem]:
    for host in inv.managed:
        for name, _ in inv.overridden(host):
            if not SECRET.search(name) or name.startswith("ansible_"):
                continue
            value = str(inv.hostvars[host][name])
            if len(value) < SHORTEST_SECRET or any(weak in value.lower() for weak in WEAK_SECRETS):
                yield Problem(
                    COMMAND_LINE if name in inv.extra else host,
                    f"{name} is weak: a known default, or shorter than {SHORTEST_SECRET} characters",
                    "remove it and let the first run generate one, or make a long random one",
                )


def _types(inv: Inventory, validate: Validate) -> Iterator[Problem]:
    for host in inv.managed:
        for name, written in inv.overridden(host):
            option = inv.known.options.get(name)
            if option is None:
                continue
            try:
                value = inv.hostvars[host][name]
            except Exception as error:
                # What is made of facts cannot be judged before there are any.
                if "ansible_facts" not in f"{written} {error}":
                    yield Problem(host, f"{name} cannot be read: {_short(error)}", "correct its template")
                continue
            wrong = validate(option, value)
            if wrong:
                shown = "" if SECRET.search(name) else f" {value!r}"
                where = COMMAND_LINE if name in inv.extra else host
                yield Problem(where, f"{name}{shown} is not valid: {wrong}", _expected(option))


def _expected(option: Mapping[str, Any]) -> str:
    if option.get("choices"):
        return f"use one of {', '.join(map(str, option['choices']))}"
    return f"give a value of type {option.get('type', 'str')}"


def _short(error: Exception) -> str:
    return " ".join(str(error).split("\n")[0].split())
