#!/usr/bin/env python3
"""Runs the checks of this repository, two at a time, and ends with `N passed, N failed`.

run_tests.py                 lint, unit tests and every Molecule scenario but the long ones
run_tests.py lint unit       only these kinds; jobs and delivery are others
run_tests.py scenario:ufw    one scenario; its hosts stay with KEEP=1
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / ".lab" / "logs"
BIN = ROOT / ".venv" / "bin"
LANES = int(os.environ.get("TEST_LANES", "2"))
TAIL_LINES = 80

# Scenarios share one set of certificates, one registry and one set of images: the first to need them
# makes them, and must be alone in doing so.
AFTER = {
    "registry": ("pki",),
    "node_image": ("pki", "registry"),
    "ray_head": ("node_image",),
    "code": ("node_image",),
    "celery_redis": ("node_image",),
    "storage": ("node_image",),
    "celery_worker": ("node_image",),
    "jobs": ("node_image",),
    "laptop_sleep": ("node_image",),
    "add_laptop": ("node_image",),
    "cluster": ("node_image",),
    "offline": ("node_image",),
}
ALONE = ("cluster",)
# Backups, rotations and reboots; a site without internet; workers, of which `cluster` shows most; the library with the
# large image, of which tests/jobs shows most. make soak has them, and SCENARIO=operate.
LONG = ("operate", "offline", "ray_worker", "jobs")
# The others' ground, then what takes longest: what is short fills the lanes to the end.
FIRST = ("pki", "registry", "node_image", "add_laptop", "laptop_sleep", "celery_worker", "cluster")


@dataclass
class Check:
    """One line of the report: a command, its log, and how many passed and failed in it."""

    name: str
    argv: list[str]
    limit: int
    after: tuple[str, ...] = ()
    # Its tests wait (molecule/conftest.py) until nothing else runs; its hosts are made meanwhile.
    alone: bool = False
    beside: bool = False
    passed: int = 0
    failed: int = 0
    seconds: float = 0.0
    state: str = "waiting"
    env: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return LOGS / f"{self.name.replace(':', '-')}.log"


def lint_checks() -> list[Check]:
    playbooks = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.yml"), *ROOT.glob("playbooks/*.yml")])
    playbooks = [path for path in playbooks if path != "requirements.yml"]
    shell = sorted(
        str(path.relative_to(ROOT))
        for path in [*ROOT.glob("scripts/*"), *ROOT.glob("images/*/*"), ROOT / ".ci/run"]
        if path.is_file() and path.read_bytes().startswith((b"#!/usr/bin/env bash", b"#!/bin/sh"))
    )
    commands = {
        "ruff": ["ruff", "check", "."],
        "ruff-format": ["ruff", "format", "--check", "."],
        "mypy": ["mypy"],
        "yamllint": ["yamllint", "--strict", "."],
        "syntax": ["ansible-playbook", "--syntax-check", *playbooks],
        "bash": ["bash", "-c", 'for file; do bash -n "$file" || exit 1; done', "bash", *shell],
        "ansible-lint": ["ansible-lint", "--offline"],
    }
    return [Check(f"lint:{name}", argv, 900) for name, argv in commands.items()]


def unit_checks() -> list[Check]:
    return [Check("unit", ["pytest", "-q", "tests", "--ignore=tests/delivery", "--ignore=tests/jobs"], 900)]


def jobs_checks() -> list[Check]:
    """The library's jobs with a real Ray on this machine and the libraries of the ml image."""
    python = os.environ.get("JOBS_PYTHON", str(ROOT / ".venv-jobs/bin/python"))
    return [Check("jobs", [python, "-m", "pytest", "-q", "tests/jobs"], 2700)]


def delivery_checks(after: tuple[str, ...] = ()) -> list[Check]:
    """Celery's promises with a real broker and real workers, which are processes in the images, not hosts."""
    argv = ["pytest", "-q", "tests/delivery"]
    return [Check("delivery", argv, 2700, after=after, beside=True, env={"MUSTER_NO_SKIP": "1"})]


def scenario_checks(names: list[str] | None = None) -> list[Check]:
    found = sorted(path.parent.name for path in ROOT.glob("molecule/*/molecule.yml"))
    for name in names or []:
        if name not in found:
            sys.exit(f"There is no scenario {name!r}. There are: {', '.join(found)}")
    chosen = names or [*FIRST, *(name for name in found if name not in (*FIRST, *LONG))]
    keep = ["--destroy=never"] if os.environ.get("KEEP") else []
    return [
        Check(
            f"scenario:{name}",
            ["molecule", "-c", str(ROOT / ".config/molecule/config.yml"), "test", *keep, "-s", name],
            4500 if name in (*ALONE, *LONG) else 2700,
            after=tuple(f"scenario:{other}" for other in AFTER.get(name, ())),
            alone=name in ALONE,
        )
        for name in chosen
    ]


class Runner:
    """Starts checks as lanes get free, and beside them what mostly waits; says when one has the machine for itself."""

    def __init__(self, checks: list[Check]) -> None:
        self.checks = checks
        self.changed = threading.Condition()
        self.children: dict[str, subprocess.Popen[bytes]] = {}

    def ready(self) -> Check | None:
        running = [check for check in self.checks if check.state == "running"]
        full = sum(not check.beside for check in running) >= LANES
        unfinished = {check.name for check in self.checks if check.state != "done"}
        # What wants to be alone holds a lane until all others are through: with one lane they come first.
        to_come = LANES == 1 and any(check.state == "waiting" and not check.alone for check in self.checks)
        for check in self.checks:
            if check.state != "waiting" or unfinished.intersection(check.after) or (full and not check.beside):
                continue
            if check.alone and (to_come or any(other.alone for other in running)):
                continue
            return check
        return None

    def quiet(self) -> Path:
        """There once nothing else runs or will."""
        return LOGS / "quiet"

    def hush(self) -> None:
        left = [check for check in self.checks if check.state != "done"]
        if all(check.alone for check in left) and sum(check.state == "running" for check in left) == 1:
            self.quiet().touch()
        else:
            self.quiet().unlink(missing_ok=True)

    def run(self) -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        threads = []
        with self.changed:
            while any(check.state != "done" for check in self.checks):
                check = self.ready()
                if check is None:
                    self.changed.wait(timeout=60)
                    self.say_what_runs()
                    continue
                check.state = "running"
                self.hush()
                check.seconds = time.monotonic()
                thread = threading.Thread(target=self.run_one, args=(check,), daemon=True)
                thread.start()
                threads.append(thread)
        for thread in threads:
            thread.join()

    def say_what_runs(self) -> None:
        now = time.monotonic()
        running = [
            f"{c.name} ({now - c.seconds:.0f} s)" for c in self.checks if c.state == "running" and now - c.seconds > 55
        ]
        if running:
            print(f"  ...  running: {', '.join(running)}", flush=True)

    def run_one(self, check: Check) -> None:
        env = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORCE_COLOR": "0",
            "NO_COLOR": "1",
            "PY_COLORS": "0",
            "MOLECULE_COMMAND_BORDERS": "0",
            **({"MUSTER_QUIET": str(self.quiet())} if check.alone else {}),
            **check.env,
        }
        started = time.monotonic()
        note = ""
        with check.log.open("wb") as log:
            child = subprocess.Popen(
                check.argv,
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self.children[check.name] = child
            try:
                code = child.wait(timeout=check.limit)
            except subprocess.TimeoutExpired:
                stop(child)
                code, note = 1, f"stopped after {check.limit} s"
                if check.name.startswith("scenario:"):
                    destroy = [*check.argv[:3], "destroy", "-s", check.argv[-1]]
                    subprocess.run(
                        destroy,
                        cwd=ROOT,
                        env=env,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        check=False,
                    )
        self.children.pop(check.name, None)
        with self.changed:
            text = check.log.read_text(errors="replace")
            check.passed, check.failed = counts(check.name, code, text)
            check.seconds = time.monotonic() - started
            check.state = "done"
            self.hush()
            self.report(check, code, text, note)
            self.changed.notify_all()

    def report(self, check: Check, code: int, text: str, note: str) -> None:
        verdict = "ok  " if code == 0 else "FAIL"
        detail = f"{check.passed} passed" if check.passed + check.failed > 1 else ""
        print(f"  {verdict} {check.name:<24} {check.seconds:6.1f} s  {detail} {note}".rstrip(), flush=True)
        if code != 0:
            print(f"  ---- the end of {check.log.relative_to(ROOT)}")
            for line in relevant(text):
                print(f"  | {line}")
            print("  ----", flush=True)

    def abort(self) -> None:
        for child in list(self.children.values()):
            stop(child)


def relevant(text: str) -> list[str]:
    """The lines that tell why: pytest's own summary, then from where a task or a test failed, or else the log's end."""
    lines = text.rstrip().splitlines()
    # First, as whoever shows this may cut it.
    summary = [line for line in lines if re.match(r"(FAILED|ERROR) \S+::|E   ", line.strip())][:20]
    for number, line in enumerate(lines):
        if line.startswith(("fatal:", "failed:", "[ERROR]", "=================================== FAILURES", "ERROR ")):
            start = max(number - 3, 0)
            chosen = lines[start : start + TAIL_LINES]
            rest = lines[max(start + TAIL_LINES, len(lines) - 12) :]
            return [*summary, *chosen, *(["..."] if rest else []), *rest]
    return lines[-TAIL_LINES:]


def stop(child: subprocess.Popen[bytes]) -> None:
    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, how)
            child.wait(timeout=20)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def counts(name: str, code: int, text: str) -> tuple[int, int]:
    """Tests of pytest alone count one by one, everything else as one."""
    if name in ("unit", "jobs", "delivery"):
        found = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error)", text[-2000:])}
        passed, failed = found.get("passed", 0), found.get("failed", 0) + found.get("error", 0)
        if passed or failed:
            return passed, failed if code == 0 or failed else 1
    return (1, 0) if code == 0 else (0, 1)


def choose(words: list[str]) -> list[Check]:
    checks: list[Check] = []
    everything = not words
    for word in words or ["lint", "unit", "jobs", "scenarios", "delivery"]:
        if word == "lint":
            checks += lint_checks()
        elif word == "unit":
            checks += unit_checks()
        elif word == "jobs":
            checks += jobs_checks()
        elif word == "scenarios":
            checks += scenario_checks()
        elif word == "delivery":
            # The images that it runs are made by this scenario.
            checks += delivery_checks(("scenario:node_image",) if everything else ())
        elif word.startswith("scenario:"):
            checks += scenario_checks([word.removeprefix("scenario:")])
        else:
            sys.exit(f"run_tests.py: {word!r} is none of lint, unit, jobs, delivery, scenarios, scenario:NAME")
    return checks


def main() -> int:
    checks = choose(sys.argv[1:])
    runner = Runner(checks)
    started = time.monotonic()
    # A CI system that gives up sends SIGTERM: nothing may go on running after that.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        runner.run()
    except KeyboardInterrupt:
        # The same signal may come twice; the clean-up must not be what it stops.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        runner.abort()
        print("Interrupted. Hosts of scenarios that were running may be left: make down removes them.")
        return 130
    passed, failed = sum(check.passed for check in checks), sum(check.failed for check in checks)
    print(f"  {time.monotonic() - started:.0f} s; logs in {LOGS.relative_to(ROOT)}/")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
