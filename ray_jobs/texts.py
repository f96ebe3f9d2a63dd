"""Text to train on, and text that is held out of it: files, or what every Python carries with it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ray_jobs.command import JobError

# GPT-2's mark between two documents.
END = "<|endoftext|>"
SUFFIXES = (".txt", ".md")
# It is all in memory at once, and a small model learns nothing more from more.
LARGEST = 100_000_000
# How much is held out in one piece: enough to have a context, small enough to be of many places.
BLOCK = 4_000
# A shorter paragraph may well come twice; a longer one that does is a copy.
COPY = 80


def read(data: str) -> list[str]:
    """The documents of a file or a folder; without either, Python's own about its language."""
    if not data:
        from pydoc_data.topics import topics

        return [topics[name] for name in sorted(topics)]
    path = Path(data)
    if not path.exists():
        raise JobError(f"data: {path} is not there (is the shared storage mounted on this node?)")
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise JobError(f"data: no {' or '.join(SUFFIXES)} file is in {path}")
    if (total := sum(file.stat().st_size for file in files)) > LARGEST:
        raise JobError(f"data: {total} bytes of text are in {path}, {LARGEST} at most: give a part of it")
    return [_text(file) for file in files]


def _text(file: Path) -> str:
    try:
        # Not read_text(): its universal newlines are wanted, a mark of the byte order is not.
        return file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise JobError(f"data: {file} cannot be read as UTF-8 text: {error}") from error


def once(documents: Iterable[str]) -> Iterator[str]:
    """The documents without paragraphs that were there before: of two copies one would be trained on, one held out."""
    seen: set[str] = set()
    for document in documents:
        kept = []
        for paragraph in re.split(r"\n\s*\n", document):
            plain = " ".join(paragraph.split())
            if plain and plain not in seen:
                kept.append(paragraph.rstrip())
            if len(plain) >= COPY:
                seen.add(plain)
        if kept:
            yield "\n\n".join(kept)


def blocks(text: str, size: int) -> Iterator[str]:
    """The text in pieces that end with a line where they can, or with a word."""
    start = 0
    while start < len(text):
        end = start + size
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or text.rfind(" ", start, end) + 1 or end
        yield text[start:end]
        start = end


def split(documents: Iterable[str], share: float, seed: int) -> tuple[str, str]:
    """What to learn from, and what is held out: blocks from all over the text."""
    text = f"\n{END}".join(once(documents))
    if not text:
        raise JobError("data: there is no text in it")
    # A short text in shorter ones: a few should be held out, not one.
    pieces = list(blocks(text, max(1, min(BLOCK, int(len(text) * share / 4)))))
    held = set(random.Random(seed).sample(range(len(pieces)), max(1, round(len(pieces) * share))))
    return (
        "".join(piece for index, piece in enumerate(pieces) if index not in held),
        "".join(piece for index, piece in enumerate(pieces) if index in held),
    )
