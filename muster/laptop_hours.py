"""When a laptop may work: from what people write to what its agent reads."""

from __future__ import annotations

import re
from collections.abc import Sequence

from muster.errors import MusterError

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
RANGE = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})")
DAY = 24 * 60
HINT = 'write it like "mon-fri 18:00-08:00", "sat,sun" or "22:00-06:00"'


def parse_hours(given: object, *, host: str = "") -> list[list[object]]:
    """Weekdays (Monday is 0), from and to in minutes of the day; one that ends before it begins goes over midnight."""
    if given is None or given == "":
        return []
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise MusterError(f"laptop_hours is {given!r}, which is no list", fix=f"{HINT}, in a list", host=host)
    return [_entry(str(entry).strip().lower(), entry, host) for entry in given]


def _entry(text: str, given: object, host: str) -> list[object]:
    wrong = MusterError(f"laptop_hours has {given!r}, which says no time", fix=HINT, host=host)
    words = text.split()
    times = RANGE.fullmatch(words[-1]) if words else None
    named = words[:-1] if times else words
    if len(named) > 1 or not words:
        raise wrong
    days = list(range(7))
    if named:
        found = [_days(part) for part in named[0].split(",")]
        if not all(found):
            raise wrong
        days = sorted({day for part in found for day in part})
    if not times:
        return [days, 0, DAY]
    numbers = [int(part) for part in times.groups()]
    start, end = numbers[0] * 60 + numbers[1], numbers[2] * 60 + numbers[3]
    if max(numbers[1], numbers[3]) > 59 or start >= DAY or end > DAY:
        raise wrong
    return [days, start, end]


def _days(part: str) -> list[int]:
    """One day, or a range of them, which may go over Sunday; nothing for what is neither."""
    first, _, last = part.partition("-")
    if first not in DAYS or (last or first) not in DAYS:
        return []
    start, count = DAYS.index(first), (DAYS.index(last or first) - DAYS.index(first)) % 7 + 1
    return [(start + step) % 7 for step in range(count)]
