"""The code blocks of a page, and whether a program prints what the page shows."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ray_jobs import outcome

NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"


@dataclass(frozen=True)
class Block:
    """A fenced block, the section and the line it begins in, and the ```text that follows it."""

    section: str
    line: int
    language: str
    mark: str
    code: str
    shows: str | None = None


def blocks(text: str) -> list[Block]:
    """The fenced blocks in order, each with what it shows."""
    found: list[Block] = []
    for match in re.finditer(r"^## (?P<title>.+)$|^```(?P<info>.*)\n(?P<code>(?:.*\n)*?)```$", text, re.MULTILINE):
        if match["title"]:
            section = match["title"]
            continue
        language, _, mark = match["info"].partition(" ")
        if language == "text":
            before = found.pop()
            assert before.shows is None, f"line {before.line} shows two outputs"
            found.append(Block(before.section, before.line, before.language, before.mark, before.code, match["code"]))
        else:
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(section, line, language, mark, match["code"]))
    return found


def prints(shown: str, printed: str) -> bool:
    """Does a program that printed this do what the guide shows?"""
    wanted = "".join(
        NUMBER if part.startswith("~") else re.escape(part) for part in re.split(rf"(~{NUMBER})", shown.strip())
    )
    return re.fullmatch(wanted, outcome.without_marks(printed).strip()) is not None
