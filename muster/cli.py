"""The muster command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from muster import __version__
from muster.errors import MusterError
from muster.screen import screen

DEFAULT_INVENTORY = "inventory/lab"


def parser() -> argparse.ArgumentParser:
    """What can be typed."""
    result = argparse.ArgumentParser(prog="muster", description="Looks after a Muster cluster.")
    result.add_argument("--version", action="version", version=f"muster {__version__}")
    commands = result.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("plan", help="print which port every service and Ray node has, and who may connect")
    commands.add_parser("status", help="one screen: nodes, queues, who works on what, what is missing")
    commands.add_parser("laptops", help="each laptop: its state and why, battery, what it works on")
    dead = commands.add_parser("dead", help="tasks that were handed out too often: look at them, send them again")
    dead.add_argument("action", choices=["list", "show", "requeue", "drop"], nargs="?", default="list")
    dead.add_argument("id", nargs="?", default="", help="of the task; --all with requeue")
    dead.add_argument("--all", action="store_true", help="requeue every one")
    for command in commands.choices.values():
        command.add_argument(
            "-i", "--inventory", action="append",
            help=f"inventory as for ansible-playbook (default: {DEFAULT_INVENTORY})",
        )  # fmt: skip
    return result


def plan(inventory: list[str], _: argparse.Namespace) -> str:
    """Ports and who may connect."""
    # Its imports are slow.
    from muster.planning import plan_lines

    return "\n".join(plan_lines(inventory))


def status(inventory: list[str], _: argparse.Namespace) -> str:
    """The screen of playbooks/status.yml."""
    return screen("status.yml", inventory, {})


def laptops(inventory: list[str], _: argparse.Namespace) -> str:
    """The screen of playbooks/laptops.yml."""
    said = screen("laptops.yml", inventory, {})
    if not said:
        raise MusterError("nobody knows how the laptops are", fix="put one host into the group celery_metrics")
    return said


def dead(inventory: list[str], options: argparse.Namespace) -> str:
    """What celery_app.deadletter says on the broker's host."""
    if options.action != "list" and not options.id and not options.all:
        raise MusterError(f"dead {options.action} needs the id of a task", fix="look for it with: muster dead list")
    words = [options.action, *([options.id] if options.id else []), *(["--all"] if options.all else [])]
    return screen("dead.yml", inventory, {"dead_words": words})


COMMANDS = {"plan": plan, "status": status, "laptops": laptops, "dead": dead}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; mistakes of the user are one line and exit code 2."""
    options = parser().parse_args(arguments)
    inventory = options.inventory or [DEFAULT_INVENTORY]
    try:
        print(COMMANDS[options.command](inventory, options))
    except MusterError as error:
        print(f"muster: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
