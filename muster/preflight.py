"""Joins the checks with Ansible: its variables, its command line, its validation of types."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.parsing.dataloader import DataLoader
from ansible.utils.vars import load_extra_vars

from muster import checks, hardware, hostchecks, inventory, ports
from muster.errors import MusterError
from muster.known import known
from muster.problems import report

HostVars = Mapping[str, Mapping[str, Any]]
Groups = Mapping[str, Sequence[str]]


def validate(option: Mapping[str, Any], value: Any) -> str:
    """Why a value does not fit its option of an argument spec; empty when it does."""
    spec = {"value": _spec({**option, "required": False})}
    messages = ArgumentSpecValidator(spec).validate({"value": value}).error_messages
    if not messages:
        return ""
    message = " ".join(str(messages[0]).split())
    converted = re.search(r"unable to convert to (\w+)", message)
    return f"it cannot be read as {converted[1]}" if converted else message.replace("value of value", "it")


def _spec(option: Mapping[str, Any]) -> dict[str, Any]:
    wanted = {key: option[key] for key in ("type", "elements", "choices", "required") if key in option}
    if option.get("options"):
        wanted["options"] = {name: _spec(inner or {}) for name, inner in option["options"].items()}
    return wanted


def inventory_problems(
    hostvars: HostVars, groups: Groups, own: Sequence[str] = (), limit: Sequence[str] = ()
) -> list[str]:
    """Every mistake that the inventory and -e give away, one line each; `limit` are the hosts of this run."""
    names = {host for members in groups.values() for host in members}
    raw_get = getattr(hostvars, "raw_get", hostvars.get)
    inv = checks.Inventory(
        hostvars=hostvars,
        groups=groups,
        known=known(),
        raw={name: raw_get(name) or {} for name in names},
        extra=extra_names(),
        own=list(own),
        limit=list(limit),
    )
    return report(checks.inventory_problems(inv, validate))


def host_problems(
    hostvars: HostVars,
    groups: Groups,
    hosts: Sequence[str],
    clock_skew: float = 2.0,
    free_disk_gb: float = 10.0,
) -> list[str]:
    """Every reason why one of the hosts is not fit, one line each; reads what the probe found."""
    limits = hostchecks.Limits(clock_skew=float(clock_skew), free_disk_gb=float(free_disk_gb))
    seen = [_seen(hostvars[host], host, groups) for host in hosts]
    return report(hostchecks.host_problems(hostvars, groups, seen, limits))


def verdict(problems: Sequence[str]) -> str:
    """What the operator reads when the run stops."""
    number = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"Preflight found {number}; nothing was changed.", *problems])


def hardware_report(hostvars: HostVars, groups: Groups, hosts: Sequence[str], earlier: str = "") -> dict[str, Any]:
    """The hardware table: of this run for the terminal, of all hosts ever seen as a page and as data."""
    seen = [_seen(hostvars[host], host, groups) for host in hosts]
    member = inventory.groups_of(groups)
    rows = [hardware.row(one.name, member[one.name], one.probe) for one in seen if one.probe]
    file = Path(earlier)
    written = file.read_text(encoding="utf-8") if earlier and file.is_file() else ""
    merged = hardware.merge(written, rows, [*groups.get("cluster", ()), *groups.get("builder", ())])
    return {
        "lines": hardware.lines(rows),
        "md": hardware.markdown(merged),
        "json": json.dumps(merged, indent=2) + "\n",
    }


def ray_doors(hostvars: HostVars, groups: Groups, table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Ports of the servers that Ray nodes elsewhere must be able to reach: one per server, and the head's GCS."""
    doors = []
    for name in groups.get("server", ()):
        try:
            host = inventory.read_host(name, hostvars, groups, table)
            planned = ports.plan_host(table, host)
        except MusterError:  # The inventory's problems are reported by the checks of the inventory.
            continue
        found = [planned.services["ray_gcs"].first] if "ray_gcs" in planned.services else []
        found += [node.first for node in planned.ray_nodes[:1]]
        doors += [{"host": name, "address": host.address, "port": port} for port in found]
    return doors


def extra_names() -> list[str]:
    """Names of the variables that -e sets in this run."""
    try:
        return sorted(load_extra_vars(DataLoader()))
    except AnsibleError:  # A file under Vault cannot be read again here.
        return []


def _seen(variables: Mapping[str, Any], host: str, groups: Groups) -> hostchecks.Seen:
    probe = variables.get("__preflight_probe") or {}
    if probe.get("architecture"):
        return hostchecks.Seen(host, probe=probe)
    reasons = {why: str(probe[why]) for why in ("silent", "refused", "broken") if probe.get(why)}
    return hostchecks.Seen(host, absent=reasons or {"silent": "no answer"}, asleep=host in groups.get("asleep", ()))
