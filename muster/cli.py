"""The muster command."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from muster import __version__
from muster.errors import MusterError
from muster.screen import screen
from muster.screens import SHOWN
from muster.tables import paint, plain

DEFAULT_INVENTORY = "inventory/lab"
EXIT_CODES = (
    "Ends with 0 when all went well, 1 when `muster alerts` shows an alert, 2 when what was typed or the inventory is "
    "wrong, 3 when the cluster could not be asked."
)
# Screens that only a host in some group can fill, and what is said where none is in it.
NOBODY = {
    "queues": ("nobody knows what waits", "put one host into the group celery_metrics"),
    "laptops": ("nobody knows how the laptops are", "put one host into the group celery_metrics"),
    "alerts": ("nobody looks for what is wrong", "put a host into prometheus and alertmanager"),
}


def parser() -> argparse.ArgumentParser:
    """What can be typed."""
    result = argparse.ArgumentParser(prog="muster", description="Looks after a Muster cluster.", epilog=EXIT_CODES)
    result.add_argument("--version", action="version", version=f"muster {__version__}")
    commands = result.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("plan", help="print which port every service and Ray node has, and who may connect")
    for name, text in (
        ("status", "one screen: nodes, queues, who works on what, what is missing"),
        ("nodes", "every host and Ray node: its state, what it has and how much of that is used"),
        ("queues", "what waits and for how long, and who works on what"),
        ("laptops", "each laptop: its state and why, battery, what it works on"),
        ("alerts", "what is wrong, since when, what to do; and who is silenced. Ends with 1 when something is"),
    ):
        screen = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=EXIT_CODES)
        screen.add_argument("--json", action="store_true", help="for scripts: one JSON document; keys: docs/cli.md")
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


def plan(inventory: list[str], _: argparse.Namespace) -> int:
    """Ports and who may connect."""
    # Its imports are slow.
    from muster.planning import plan_lines

    print("\n".join(plan_lines(inventory)))
    return 0


def look(inventory: list[str], options: argparse.Namespace) -> int:
    """One of the screens: its playbook finds the facts."""
    name = options.command
    facts = screen(f"{name}.yml", inventory, {"screen_facts": True})
    if not facts:
        problem, fix = NOBODY[name]
        raise MusterError(problem, fix=fix)
    if options.json:
        print(json.dumps(facts, indent=2))
    elif sys.stdout.isatty():
        from rich.console import Console

        paint(SHOWN[name](facts), Console())
    else:
        print(plain(SHOWN[name](facts)))
    return 1 if name == "alerts" and facts["alerts"] else 0


def dead(inventory: list[str], options: argparse.Namespace) -> int:
    """What celery_app.deadletter says on the broker's host."""
    if options.action != "list" and not options.id and not options.all:
        raise MusterError(f"dead {options.action} needs the id of a task", fix="look for it with: muster dead list")
    words = [options.action, *([options.id] if options.id else []), *(["--all"] if options.all else [])]
    print(screen("dead.yml", inventory, {"dead_words": words}) or "")
    return 0


COMMANDS = {"plan": plan, "dead": dead, **dict.fromkeys(SHOWN, look)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; what goes wrong is one line, and a number that scripts can use."""
    options = parser().parse_args(arguments)
    try:
        return COMMANDS[options.command](options.inventory or [DEFAULT_INVENTORY], options)
    except MusterError as error:
        print(f"muster: {error}", file=sys.stderr)
        return error.code


if __name__ == "__main__":
    sys.exit(main())
