"""What playbooks/upgrade.yml is told, judged before anything is changed."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypedDict

from muster.drain import MOST_WITHIN, seconds
from muster.errors import MusterError
from muster.laptops import arguments

ARGUMENTS = ("within",)
WITHIN = "600"
# Nodes and clients of two versions of Ray do not talk to each other: all of these change at once.
TOGETHER = ("ray_head", "ray_worker", "celery_worker")
HostVars = Mapping[str, Mapping[str, Any]]
Groups = Mapping[str, Sequence[str]]


class Upgrade(TypedDict):
    """Seconds for which running jobs are waited for."""

    within: int


def upgrade(
    given: Mapping[str, Any],
    extra: Collection[str],
    known: Collection[str],
    groups: Groups,
    limit: Collection[str],
    tags: Collection[str] = (),
) -> Upgrade:
    """What is meant; every mistake is one line that says what to do."""
    version = str(given.get("ray_version", "pinned"))
    words = arguments(given, extra, known, ARGUMENTS)
    if version != "pinned" and not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise MusterError(
            f"ray_version is {version!r}",
            fix="write it like ray_version=2.60.0, or ray_version=pinned for the one that this clone comes with",
        )
    if any(tag != "all" for tag in tags):
        raise MusterError("an upgrade has no parts to choose by tags", fix="leave the tags out")
    left = sorted({name for group in TOGETHER for name in groups.get(group, ())} - set(limit))
    if left:
        raise MusterError(
            f"--limit leaves out {', '.join(left)}, and nodes with different versions of Ray do not work together",
            fix="leave out --limit; hosts that are off are no hindrance if they are laptops",
        )
    return Upgrade(within=int(seconds(words, "within", MOST_WITHIN) or WITHIN))
