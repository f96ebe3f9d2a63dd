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
from muster.tables import show

DEFAULT_INVENTORY = "inventory/lab"
EXIT_CODES = (
    "Ends with 0 when all went well, 1 when `muster alerts` shows an alert or a job failed, 2 when what was typed or "
    "the inventory is wrong, 3 when the cluster could not be asked."
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
    add_jobs(commands)
    for command in commands.choices.values():
        command.add_argument(
            "-i", "--inventory", action="append",
            help=f"inventory as for ansible-playbook (default: {DEFAULT_INVENTORY})",
        )  # fmt: skip
    return result


def add_jobs(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The library of jobs (muster/jobs.py)."""
    ended = (
        "Ends with 0 when the job succeeded, 1 when it did not, 2 when what was typed is wrong, 3 without an answer."
    )
    jobs = commands.add_parser("jobs", help="the jobs there are; with a name, its parameters")
    jobs.add_argument("name", nargs="?", default="")
    run = commands.add_parser("run", help="run a job on the cluster and follow it", epilog=ended)
    run.add_argument("name", help="one of `muster jobs`")
    how = run.add_mutually_exclusive_group()
    how.add_argument("--local", action="store_true", help="here, in this process, without a cluster")
    how.add_argument("--detach", action="store_true", help="do not wait: print the run's id")
    how.add_argument("--queue", action="store_true", help="by way of Celery: it waits its turn; prints the task's id")
    how.add_argument("--schedule", metavar="CRONTAB", help="print the inventory entry that runs it regularly")
    commands.add_parser("runs", help="what was run, the newest first")
    logs = commands.add_parser("logs", help="what a run says, until it ends", epilog=ended)
    logs.add_argument("--no-follow", action="store_true", help="what there is now, and no more")
    commands.add_parser("stop", help="stop a run")
    commands.add_parser("result", help="what came out of a run", epilog=ended)
    for name in ("logs", "stop", "result"):
        commands.choices[name].add_argument("id", help="of the run, as `muster runs` shows it")
    chat = commands.add_parser(
        "chat", help="talk to the cluster's language models",
        description="Talks to the cluster's language models: at a terminal, with --once, or with each line of a pipe.",
        epilog="Ends with 0 when every message was answered, 1 when one was not, 2 when what was typed is wrong.",
    )  # fmt: skip
    chat.add_argument("model", nargs="?", default="", metavar="MODEL", help="its name; default: the first there is")
    chat.add_argument("--system", metavar="TEXT", help="what the model is told before everything else")
    chat.add_argument("--max-tokens", type=int, metavar="N", help="the longest answer")
    chat.add_argument("--temperature", type=float, metavar="T", help="0: always the likeliest word")
    chat.add_argument("--once", metavar="PROMPT", help="one message or /command, and no more")
    kubernetes = commands.add_parser(
        "kubernetes", help="print the cluster as KubeRay's RayCluster, or a job as its RayJob",
        description="Prints the inventory's Ray cluster as YAML for kubectl, or with --job a job on it.",
    )  # fmt: skip
    kubernetes.add_argument("--image", default="", metavar="REF", help="of head and workers; default: the node image")
    kubernetes.add_argument("--storage", default="100Gi", metavar="SIZE", help="of the volume in place of storage_path")
    kubernetes.add_argument(
        "--head-state", action="store_true",
        help="keep the head's state on a volume; KubeRay's feature gate GCSFaultToleranceEmbeddedStorage must be on",
    )  # fmt: skip
    kubernetes.add_argument("--job", default="", metavar="NAME", help="one of `muster jobs`, with its parameters")
    for taker in (run, kubernetes):
        taker.add_argument("-p", dest="pairs", action="append", default=[], metavar="NAME=VALUE", help="one parameter")
        taker.add_argument("--params", default="{}", metavar="JSON", help="the parameters as one JSON object")
    for name in ("jobs", "run", "runs", "result", "chat"):
        commands.choices[name].add_argument("--json", action="store_true", help="for scripts")


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
    else:
        show(SHOWN[name](facts))
    return 1 if name == "alerts" and facts["alerts"] else 0


def dead(inventory: list[str], options: argparse.Namespace) -> int:
    """What celery_app.deadletter says on the broker's host."""
    if options.action != "list" and not options.id and not options.all:
        raise MusterError(f"dead {options.action} needs the id of a task", fix="look for it with: muster dead list")
    words = [options.action, *([options.id] if options.id else []), *(["--all"] if options.all else [])]
    print(screen("dead.yml", inventory, {"dead_words": words}) or "")
    return 0


def library(inventory: list[str], options: argparse.Namespace) -> int:
    """The jobs and their runs."""
    # Its imports are slow.
    from muster import jobs

    return jobs.COMMANDS[options.command](inventory, options)


def chat(inventory: list[str], options: argparse.Namespace) -> int:
    """A conversation."""
    # Its imports are slow.
    from muster.chat import chat

    return chat(inventory, options)


def kubernetes(inventory: list[str], options: argparse.Namespace) -> int:
    """What KubeRay takes."""
    # Its imports are slow.
    from muster.kubernetes import printed

    return printed(inventory, options)


COMMANDS = {
    "plan": plan,
    "kubernetes": kubernetes,
    "chat": chat,
    "dead": dead,
    **dict.fromkeys(SHOWN, look),
    **dict.fromkeys(("jobs", "run", "runs", "logs", "stop", "result"), library),
}


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
