"""Files and folders as one short hash and as an archive, the same in every clone: names and contents, no times."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from muster.errors import MusterError

IGNORED_FOLDERS = {"__pycache__", ".git", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
IGNORED_SUFFIXES = {".pyc", ".pyo", ".swp"}
LENGTH = 12


def tree_hash(paths: Sequence[str] | str, extra: object = "") -> str:
    """Hash files and folders by their own names, wherever they are; `extra` is hashed as text."""
    digest = hashlib.sha256()
    for path in [paths] if isinstance(paths, str) else paths:
        root = Path(path)
        if not root.exists():
            raise MusterError(f"{root} does not exist", fix="correct the list of paths to hash")
        for name, file in sorted(_files(root)):
            content = str(file.readlink()).encode() if file.is_symlink() else file.read_bytes()
            # Lengths keep a name and a content from being moved into each other.
            for part in (name.encode(), content):
                digest.update(f"{len(part)}:".encode())
                digest.update(part)
    digest.update(f"extra:{extra}".encode())
    return digest.hexdigest()[:LENGTH]


def tree_archive(paths: Sequence[str] | str) -> str:
    """What `tree_hash` hashes, as a compressed tar archive in base64."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for path in [paths] if isinstance(paths, str) else paths:
            for name, file in sorted(_files(Path(path))):
                member = tar.gettarinfo(file, name)
                member.mode = 0o755 if member.mode & 0o100 else 0o644
                member.uid = member.gid = member.mtime = 0
                member.uname = member.gname = "root"
                if member.isreg():
                    with file.open("rb") as content:
                        tar.addfile(member, content)
                else:
                    tar.addfile(member)
    return base64.b64encode(gzip.compress(raw.getvalue(), mtime=0)).decode()


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    name = root.resolve().name
    if root.is_file():
        yield name, root
        return
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - IGNORED_FOLDERS)
        links = [child for child in folders if (Path(folder) / child).is_symlink()]
        for child in [*files, *links]:
            file = Path(folder) / child
            if file.suffix not in IGNORED_SUFFIXES:
                yield f"{name}/{file.relative_to(root).as_posix()}", file
