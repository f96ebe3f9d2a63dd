"""What playbooks/uninstall.yml is told, judged before anything is changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypedDict

from muster.errors import MusterError
from muster.laptops import arguments, truth

ARGUMENTS = ("confirm", "keep_data")
# What the prompt gives for no answer.
NOTHING = "nothing"


class Uninstall(TypedDict):
    """What stays on the hosts."""

    keep_data: bool


def uninstall(given: Mapping[str, Any], extra: Collection[str], known: Collection[str], name: str) -> Uninstall:
    """What is meant; every mistake is one line that says what to do."""
    words = arguments(given, extra, known, ARGUMENTS)
    keep = truth(words.get("keep_data", "yes"), "keep_data")
    if words.get("confirm", NOTHING) == NOTHING:
        raise MusterError("nobody confirmed that", fix=f"type {name} when you are asked, or add -e confirm={name}")
    if words["confirm"] != name:
        raise MusterError(
            f"this cluster is {name}, not {words['confirm']}", fix="give the inventory that you mean, by -i"
        )
    return Uninstall(keep_data=keep)
