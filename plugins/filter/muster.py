"""The decisions of the muster package as Jinja filters; every error is one line that says what to do."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

# The package stands beside this folder in every clone: no installation needed.
_ROOT = str(Path(__file__).resolve().parents[2])
if _ROOT not in sys.path:
    sys.path.append(_ROOT)

try:
    from muster import (
        celery_sizing,
        celery_times,
        drain,
        inventory,
        kubernetes,
        laptop_hours,
        laptops,
        logins,
        ports,
        preflight,
        rotation,
        scrape,
        silence,
        sizing,
        support,
        treehash,
        uninstall,
        upgrade,
    )
    from muster.errors import MusterError
    from muster.known import CONNECTION, known
except ImportError as error:
    raise AnsibleFilterError(
        f"The muster package cannot be imported ({error}). Fix: run `make venv`, or `pip install -e .` in {_ROOT}."
    ) from error


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except MusterError as error:
            raise AnsibleFilterError(str(error)) from None

    return call


def _judged(function: Callable[..., Any]) -> Callable[..., Any]:
    """Arguments of a playbook: the line about what is wrong with them is the result's `problem`."""

    def call(given: Any, *more: Any) -> Any:
        names = known().names | CONNECTION
        try:
            found = function(given, preflight.extra_names(), names, *more)
        except MusterError as error:
            return {"problem": str(error)}
        return {**found, "problem": ""}

    return call


def _visibility(time_limit: Any, max_countdown: Any) -> int:
    return celery_times.visibility(int(time_limit), int(max_countdown))


class FilterModule:
    """Where Ansible looks for filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Filters by their names in templates."""
        return {
            "muster_port_plan": _plain(inventory.port_plan),
            "muster_bracketed": ports.bracketed,
            "muster_logins": _plain(logins.logins),
            "muster_scrape_jobs": _plain(scrape.jobs),
            "muster_firewall_rules": _plain(inventory.firewall_rules),
            "muster_ray_workers": _plain(sizing.ray_workers),
            "muster_celery_workers": _plain(celery_sizing.workers_of),
            "muster_celery_ray_node": _plain(celery_sizing.ray_node_of),
            "muster_celery_reserve": _plain(celery_sizing.reserve_of),
            "muster_celery_redis_limit": _plain(celery_sizing.redis_limit),
            "muster_celery_visibility": _plain(_visibility),
            "muster_kubernetes": _plain(kubernetes.facts),
            "muster_laptop_hours": _plain(laptop_hours.parse_hours),
            "muster_memory": _plain(sizing.parse_memory),
            "muster_add_laptop": _judged(laptops.add),
            "muster_remove_laptop": _judged(laptops.remove),
            "muster_drain": _judged(drain.drain),
            "muster_undrain": _judged(drain.undrain),
            "muster_reboot": _judged(drain.reboot),
            "muster_away": _plain(drain.away),
            "muster_nodes_of": _plain(drain.nodes_of),
            "muster_rotation": _judged(rotation.rotation),
            "muster_silence": _judged(silence.silence),
            "muster_support": _plain(support.bundle),
            "muster_uninstall": _judged(uninstall.uninstall),
            "muster_upgrade": _judged(upgrade.upgrade),
            "muster_silence_calls": _plain(silence.calls),
            "muster_tree_hash": _plain(treehash.tree_hash),
            "muster_tree_archive": _plain(treehash.tree_archive),
            "muster_inventory_problems": _plain(preflight.inventory_problems),
            "muster_host_problems": _plain(preflight.host_problems),
            "muster_verdict": preflight.verdict,
            "muster_hardware": _plain(preflight.hardware_report),
            "muster_ray_doors": _plain(preflight.ray_doors),
        }
