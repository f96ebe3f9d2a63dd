"""What a command shows: lines and tables, as plain aligned text or, in a terminal, with colours."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# A table is its rows, the headings first.
Rows = Sequence[Sequence[str]]
Screen = Sequence[str | Rows]

GOOD, ODD, BAD = "green", "yellow", "bold red"
STYLES = {
    **dict.fromkeys(["alive", "ready"], GOOD),
    **dict.fromkeys(["asleep", "away", "drained", "draining", "not planned", "unknown", "warning"], ODD),
    **dict.fromkeys(["critical", "dead", "down", "lost", "missing"], BAD),
}


def columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows as lines with aligned columns."""
    table = [list(map(str, row)) for row in rows]
    widths = [max(len(row[index]) for row in table) for index in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def plain(screen: Screen) -> str:
    """For pipes, files and playbooks."""
    lines: list[str] = []
    for block in _spaced(screen):
        lines += [block] if isinstance(block, str) else columns(block)
    return "\n".join(lines)


def paint(screen: Screen, console: Console) -> None:
    """For a terminal, by Rich: states have colours, and what is too wide wraps in its column."""
    # Slow to import, and pipes do without.
    from rich.table import Table
    from rich.text import Text

    for block in _spaced(screen):
        if isinstance(block, str):
            word, colon, rest = block.partition(":")
            # Commands in it can be copied: the terminal wraps it, not we.
            console.print(Text.assemble((word, STYLES.get(word, "")), colon + rest), soft_wrap=True)
            continue
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for heading in block[0]:
            table.add_column(Text(heading), overflow="fold")
        for row in block[1:]:
            # As Text, since a name like [red] is no markup.
            table.add_row(*(Text(cell, STYLES.get(cell, "")) for cell in row))
        console.print(table)


def show(screen: Screen) -> None:
    """On stdout, whatever that is."""
    if sys.stdout.isatty():
        from rich.console import Console

        paint(screen, Console())
    else:
        print(plain(screen))


def _spaced(screen: Screen) -> Screen:
    """With one blank line around every table, and never two."""
    result: list[str | Rows] = []
    for block in screen:
        if isinstance(block, str):
            result += [_clean(block)] if block or (result and result[-1]) else []
        else:
            result += [""] if result and result[-1] else []
            result += [[[_clean(cell) for cell in row] for row in block], ""]
    return result[:-1] if result and not result[-1] else result


def _clean(text: object) -> str:
    """Others name tasks and write messages; none of that may steer the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))
