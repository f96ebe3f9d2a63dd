"""Writes reports on the controller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """See the documentation in library/."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Write what differs."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        folder = Path(self._task.args["folder"])
        if not self._task.check_mode:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in self._task.args["files"].items():
                (folder / name).write_text(text, encoding="utf-8")
        return {**result, "changed": False, "folder": str(folder)}
