"""What a site without internet installs from (playbooks/bundle.yml): whether it is there, whole, and of this commit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from muster.treehash import tree_hash

AGAIN = "copy it again from the machine that made it, and run sha256sum --check SHA256SUMS in it"


def mistakes(folder: Path, root: Path) -> Iterator[tuple[str, str]]:
    """What is wrong with a bundle for the repository at `root`, and what to do."""
    try:
        made_of = json.loads((folder / "bundle.json").read_text())["recipes"]
        sums = (folder / "SHA256SUMS").read_text()
    except (OSError, ValueError, KeyError):
        yield (
            f"offline is true and {folder} is no bundle",
            "run make bundle on a machine with internet and copy the folder here; its place is bundle_dir",
        )
        return
    if made_of != tree_hash(str(root / "images")):
        yield (
            f"{folder} was made of another commit of this repository",
            "use the one that is in it (muster.tar.gz), or run make bundle with this one",
        )
    for line in sums.splitlines():
        wanted, _, name = line.partition("  ")
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            yield f"{folder} lacks {name.removeprefix('./')}", AGAIN
            continue
        if found != wanted:
            yield f"{folder}: {name.removeprefix('./')} is not what was packed", AGAIN
