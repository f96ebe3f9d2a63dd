"""Ask a lab's Ray: run drivers in the head's container, list nodes and containers, kill things as a crash would."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]


def until(seconds: float, what: str, probe: Callable[[], T]) -> T:
    """Wait for a condition with a deadline; the last error tells why it never came true."""
    end, last = time.monotonic() + seconds, "nothing seen"
    while time.monotonic() < end:
        try:
            if seen := probe():
                return seen
        except (AssertionError, ValueError) as error:
            last = str(error)
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds:.0f} s: {what}; last: {last}")


class Lab:
    """The hosts of one scenario."""

    def __init__(self, name: str, head: str = "head") -> None:
        self.name, self.head = name, head
        # Its own where a scenario changes them; all others share those of the lab (muster_env).
        own = ROOT / ".secrets" / name
        self.secrets = own if own.is_dir() else own.with_name("lab")
        self.frozen: dict[str, list[str]] = {}
        # The folder, as an operator gives it: add-laptop.yml writes laptops.yml there.
        inventories = ("inventory/lab/groups.yml", "inventory/lab/machine.py", f"molecule/{name}/inventory")
        self.inventory = [part for path in inventories for part in ("-i", path)]
        self.environment = dict(os.environ, ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"), MOLECULE_SCENARIO_NAME=name)

    def on(self, host: str, *command: str, stdin: str | None = None, check: bool = True) -> str:
        """Run a command on a host as its root, and give what it printed."""
        done = subprocess.run(
            ["docker", "exec", "-i", f"{self.name}-{host}", *command],
            input=stdin,
            capture_output=True,
            text=True,
        )
        if check and done.returncode:
            raise AssertionError(
                f"{host}: {' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}{self.logs(host)}"
            )
        return done.stdout + ("" if check else done.stderr)

    def logs(self, host: str) -> str:
        """The last words of every container of a host."""
        script = "for c in $(docker ps -aq); do docker ps -a -f id=$c; docker logs --tail 15 $c; done 2>&1"
        done = subprocess.run(
            ["docker", "exec", f"{self.name}-{host}", "sh", "-c", script], capture_output=True, text=True
        )
        return f"\n{done.stdout[-4000:]}"

    def inside(
        self, host: str, container: str, *command: str, env: dict[str, str] | None = None, **options: Any
    ) -> str:
        """Run a command in a container of a host."""
        extra = [part for name, value in (env or {}).items() for part in ("-e", f"{name}={value}")]
        return self.on(host, "docker", "exec", "-i", *extra, container, *command, **options)

    def driver(self, code: str, env: dict[str, str] | None = None, check: bool = True) -> str:
        """Run Python in the head's container; `ray` is imported and connected."""
        connect = "import ray\nray.init('auto', namespace='test', log_to_driver=False, logging_level='ERROR')\n"
        return self.inside(
            self.head,
            "ray_head-head-1",
            "timeout",
            "60",
            "python3",
            "-",
            env=env,
            stdin=connect + code,
            check=check,
        )

    def nodes(self) -> dict[str, dict[str, Any]]:
        """The Ray nodes that are alive, by name."""
        answer = self.inside(self.head, "ray_head-head-1", "python3", "-S", "-m", "ray_jobs.nodes")
        return {node["name"]: node for node in json.loads(answer)["nodes"] if node["state"] == "alive"}

    def containers(self, host: str, project: str) -> dict[str, str]:
        """Id of every running container of a Compose project, by its service."""
        form = '{{.Label "com.docker.compose.service"}} {{.ID}}'
        label = f"label=com.docker.compose.project={project}"
        listing = self.on(host, "docker", "ps", "--filter", label, "--format", form)
        return dict(line.split() for line in listing.splitlines())

    def kill_hard(self, host: str, container: str) -> None:
        """Kill a container's main process as a crash would; `docker kill` would count as the operator's wish."""
        inspect = ("docker", "inspect", "-f", "{{.State.Pid}}", container)
        # 0 while Docker starts it again.
        pid = until(30, f"{container} runs", lambda: self.on(host, *inspect).strip().lstrip("0"))
        self.on(host, "kill", "-9", pid)

    def freeze(self, host: str) -> None:
        """A host stands still with all that runs in it, as one that sleeps.

        With version 1 of cgroups its containers are beside it and not below it: `docker pause` leaves them running.
        """
        self.frozen[host] = self.on(host, "docker", "ps", "--quiet", "--no-trunc").split()

        def pause() -> bool:
            done = subprocess.run(["docker", "pause", f"{self.name}-{host}"], capture_output=True, text=True)
            assert not done.returncode, done.stderr
            return True

        # Where many processes start at that moment the kernel may not catch them all, and Docker gives up.
        until(30, f"{host} stands still", pause)
        self._freezer(host, "FROZEN")

    def thaw(self, host: str) -> None:
        """It goes on where it stood."""
        self._freezer(host, "THAWED")
        subprocess.run(["docker", "unpause", f"{self.name}-{host}"], check=True, capture_output=True)

    def _freezer(self, host: str, state: str) -> None:
        # The head sees the groups of all, as every host does.
        assert host != self.head
        script = (
            f'for id; do f=/sys/fs/cgroup/freezer/docker/$id/freezer.state; [ ! -e "$f" ] || echo {state} >"$f"; done'
        )
        self.on(self.head, "sh", "-c", script, "sh", *self.frozen[host])

    def play(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ansible-playbook against this scenario's hosts."""
        return subprocess.run(
            ["ansible-playbook", *self.inventory, *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
        )
