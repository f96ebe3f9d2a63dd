"""What drain.yml, undrain.yml and reboot.yml are told, judged before anything is changed, and what they wait for."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypedDict

from muster.errors import MusterError
from muster.laptops import arguments, named, truth
from muster.silence import member

DRAIN = ("host", "within", "why")
UNDRAIN = ("host",)
REBOOT = ("within", "why", "back", "only_if_needed")
# The longest that Ray waits by itself (RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S in roles/ray_node).
MOST_WITHIN, MOST_BACK = 86_400, 7_200
BACK = "900"
# Without these nobody works.
CENTRE = {"ray_head": "Ray's head", "celery_redis": "the broker"}
HostVars = Mapping[str, Mapping[str, Any]]
Groups = Mapping[str, Sequence[str]]


class Drain(TypedDict):
    """Which server takes no more work; `within` as it was given, in seconds."""

    name: str
    within: str
    why: str


class Reboot(TypedDict):
    """Whom to reboot, one after the other."""

    order: list[str]
    within: str
    why: str
    back: int
    only_if_needed: bool


def drain(
    given: Mapping[str, Any],
    extra: Collection[str],
    known: Collection[str],
    hostvars: HostVars,
    groups: Groups,
    limit: Collection[str],
) -> Drain:
    """The host that is meant; every mistake is one line that says what to do. `limit` are the hosts of this run."""
    words = arguments(given, extra, known, DRAIN)
    name = worker_host(words, "drain", hostvars, groups, limit)
    if parts := [what for group, what in CENTRE.items() if name in groups.get(group, ())]:
        raise MusterError(
            f"{name} is {' and '.join(parts)}, without which nobody works: there is nobody to hand its work to",
            fix=f"to restart it run playbooks/reboot.yml --limit {name}; tasks and Ray's state wait on its disk",
        )
    return Drain(name=name, within=seconds(words, "within", MOST_WITHIN), why=words.get("why", "maintenance"))


def undrain(
    given: Mapping[str, Any],
    extra: Collection[str],
    known: Collection[str],
    hostvars: HostVars,
    groups: Groups,
    limit: Collection[str],
) -> dict[str, str]:
    """The host that is to work again."""
    words = arguments(given, extra, known, UNDRAIN)
    return {"name": worker_host(words, "undrain", hostvars, groups, limit)}


def reboot(
    given: Mapping[str, Any],
    extra: Collection[str],
    known: Collection[str],
    hostvars: HostVars,
    groups: Groups,
    limit: Collection[str],
) -> Reboot:
    """The servers of this run, those last without which nobody works."""
    words = arguments(given, extra, known, REBOOT)
    servers = [name for name in groups.get("server", ()) if name in limit]
    for name in servers:
        if hostvars[name].get("ansible_connection") == "local":
            raise MusterError(
                f"{name} is the machine that this runs on, and cannot wait for itself",
                fix=f"leave it out with --limit 'all:!{name}', and reboot it by hand at the end",
            )
    centre = [name for name in servers if any(name in groups.get(group, ()) for group in CENTRE)]
    return Reboot(
        order=[name for name in servers if name not in centre] + centre,
        within=seconds(words, "within", MOST_WITHIN),
        why=words.get("why", "reboot.yml"),
        back=int(seconds(words, "back", MOST_BACK) or BACK),
        only_if_needed=truth(words.get("only_if_needed", "no"), "only_if_needed"),
    )


def worker_host(
    words: Mapping[str, str], playbook: str, hostvars: HostVars, groups: Groups, limit: Collection[str]
) -> str:
    """A server that has work of its own and belongs to this run."""
    name = member(named(words.get("host", ""), f"playbooks/{playbook}.yml -e host=server1"), hostvars, groups)
    if name in groups.get("laptop", ()):
        verb = "resume" if playbook == "undrain" else "pause"
        raise MusterError(
            f"{name} is a laptop, of which its owner has the last word",
            fix=f"say `muster-laptop {verb}` on it; it may also sleep or be switched off at any time",
        )
    if not any(name in groups.get(group, ()) for group in ("ray_worker", "celery_worker")):
        raise MusterError(f"{name} runs no workers: there is nothing to hand back", fix="name a host that has some")
    if name not in limit:
        raise MusterError(f"--limit leaves out {name}", fix="leave out --limit: -e host says whom this is about")
    return name


def seconds(words: Mapping[str, str], name: str, most: int) -> str:
    """A number of seconds as it was given; nothing when none was."""
    text = words.get(name, "")
    if text and not (text.isdecimal() and int(text) <= most):
        raise MusterError(f"{name} is {text!r}", fix=f"give whole seconds from 0 to {most}, as in -e {name}=120")
    return text


def away(
    planned: Mapping[str, Any], hosts: Collection[str], ray: str | None = None, celery: str | None = None
) -> list[str]:
    """What of these hosts is planned and not there. ray, celery: what was said on the question, an empty text when
    nobody answered, None where nobody was asked."""
    missing: list[str] = []
    if ray is not None:
        found = nodes_of(hosts, ray)
        names = [f"{host}/{node}" for host in hosts for node in planned["nodes"].get(host, [])]
        missing += [f"Ray node {name}" for name in names if name not in found]
    if celery is not None:
        workers = json_of(celery).get("workers", {})
        missing += [
            f"Celery worker {name}"
            for name in planned["workers"]
            if name.partition("/")[0] in hosts and (workers.get(name, {}).get("lease") or 0) <= 0
        ]
    return missing


def nodes_of(hosts: Collection[str], ray: str) -> list[str]:
    """Ray nodes of these hosts that are alive."""
    nodes = json_of(ray).get("nodes", [])
    return [node["name"] for node in nodes if node["state"] == "alive" and node["name"].partition("/")[0] in hosts]


def json_of(text: str) -> dict[str, Any]:
    """What a program said; nothing when that is no answer."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
