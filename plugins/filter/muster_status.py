"""The facts behind the screens of `muster`, and the screens themselves, as filters."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

_ROOT = str(Path(__file__).resolve().parents[2])
if _ROOT not in sys.path:
    sys.path.append(_ROOT)

from muster import alerts, figures, fleet, nodes, planned, queues, screens, status  # noqa: E402
from muster.errors import MusterError  # noqa: E402


def _planned(hostvars: Any, groups: Any) -> dict[str, Any]:
    try:
        return planned.planned(hostvars, groups)
    except MusterError as error:
        raise AnsibleFilterError(str(error)) from None


class FilterModule:
    """Where Ansible looks for filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Filters by their names in templates."""
        return {
            "muster_planned": _planned,
            "muster_question": figures.question,
            "muster_status": status.facts,
            "muster_nodes": nodes.facts,
            "muster_queues": queues.facts,
            "muster_laptops": fleet.facts,
            "muster_alerts": alerts.facts,
            "muster_screen": screens.screen,
        }
