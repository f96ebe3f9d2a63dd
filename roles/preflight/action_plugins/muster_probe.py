"""Sees whether somebody is at home before the probe connects, and compares the clocks: both only work from here."""

from __future__ import annotations

import socket
import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase


def _last_line(message: object) -> str:
    lines = str(message).strip().splitlines()
    return lines[-1].strip() if lines else ""


class ActionModule(ActionBase):
    """The probe, with clock_skew instead of the bare time; or silent, refused or broken with the reason."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """The module's result; the skew is what the time on the way cannot explain."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        silent = self._knock(float(self._task.args.get("knock", 0)))
        if silent:
            return {**result, "silent": silent}
        before = time.time()
        try:
            seen = self._execute_module(module_name="muster_probe", task_vars=task_vars)
        except AnsibleConnectionFailure as error:
            # Whoever shows us the door is awake.
            return {**result, "refused" if "Permission denied" in str(error) else "silent": _last_line(error)}
        after = time.time()
        if "clock" not in seen:
            said = [seen.get(name) for name in ("module_stderr", "module_stdout", "exception", "msg")]
            return {**result, "broken": _last_line(next(filter(None, said), "no reason given"))}
        clock = seen.pop("clock")
        return {**result, **seen, "clock_skew": min(clock - before, 0.0) + max(clock - after, 0.0)}

    def _knock(self, seconds: float) -> str:
        """Why nobody answers. A sleeping laptop may still accept connections: only the banner is an answer."""
        connection = self._connection
        if not seconds or connection.transport != "ssh":
            return ""
        arguments = " ".join(
            str(connection.get_option(name) or "") for name in ("ssh_args", "ssh_common_args", "ssh_extra_args")
        )
        if "Proxy" in arguments or "-J" in arguments:
            return ""
        address, port = str(connection.get_option("host")), int(connection.get_option("port") or 22)
        deadline = time.monotonic() + seconds
        try:
            with socket.create_connection((address, port), timeout=seconds) as door:
                door.settimeout(max(deadline - time.monotonic(), 0.1))
                return "" if door.recv(4) == b"SSH-" else f"port {port} is not SSH"
        except socket.gaierror:  # A name that only ssh's own configuration knows.
            return ""
        except TimeoutError:
            return f"no answer within {seconds:g} s"
        except OSError as error:
            return error.strerror or str(error)
