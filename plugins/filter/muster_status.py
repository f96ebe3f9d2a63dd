"""The screens of `muster` as filters."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ROOT = str(Path(__file__).resolve().parents[2])
if _ROOT not in sys.path:
    sys.path.append(_ROOT)

from muster import fleet, status  # noqa: E402


class FilterModule:
    """Where Ansible looks for filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Filters by their names in templates."""
        return {"muster_status": status.status, "muster_laptops": fleet.laptops}
