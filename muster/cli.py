"""The muster command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from muster import __version__
from muster.errors import MusterError

DEFAULT_INVENTORY = "inventory/lab"


def parser() -> argparse.ArgumentParser:
    """What can be typed."""
    result = argparse.ArgumentParser(prog="muster", description="Looks after a Muster cluster.")
    result.add_argument("--version", action="version", version=f"muster {__version__}")
    commands = result.add_subparsers(dest="command", metavar="COMMAND", required=True)
    plan = commands.add_parser("plan", help="print which port every service and Ray node has, and who may connect")
    plan.add_argument(
        "-i", "--inventory", action="append", help=f"inventory as for ansible-playbook (default: {DEFAULT_INVENTORY})"
    )
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; mistakes of the user are one line and exit code 2."""
    options = parser().parse_args(arguments)
    try:
        # The one command so far; its imports are slow.
        from muster.planning import plan_lines

        print("\n".join(plan_lines(options.inventory or [DEFAULT_INVENTORY])))
    except MusterError as error:
        print(f"muster: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
