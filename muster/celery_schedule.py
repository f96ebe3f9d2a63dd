"""What can be wrong with celery_schedule, told before anything runs by it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any
from zoneinfo import ZoneInfo

from muster.problems import meant

KEYS = ("name", "task", "crontab", "every", "args", "kwargs", "queue", "priority", "timezone", "catch_up")
PRIORITIES = ("critical", "normal", "low", "batch")
CATCH_UP = ("once", "skip")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
# Name, lowest, highest, and names for the values from the lowest on.
FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, MONTHS),
    ("day of week", 0, 6, DAYS),
)
DAYS_IN_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
PART = re.compile(r"(\*|\w+)(?:-(\w+))?(?:/(\d+))?")
EXAMPLE = 'write it like {name: nightly, task: celery_app.tasks.default.report, crontab: "30 2 * * *"}'


def schedule_mistakes(schedule: object, served: Collection[str] | None = None) -> Iterator[tuple[str, str]]:
    """Every mistake and what to do about it; `served`: queues that some worker serves, None when unknown."""
    if isinstance(schedule, str) or not isinstance(schedule, Sequence):
        yield f"celery_schedule is {schedule!r}, which is no list", EXAMPLE
        return
    for number, entry in enumerate(schedule, start=1):
        if not isinstance(entry, Mapping):
            yield f"celery_schedule entry {number} is {entry!r}", EXAMPLE
            continue
        label = f"celery_schedule entry {entry.get('name') or number}"
        for problem, fix in _entry(entry, served):
            yield f"{label}: {problem}", fix
    names = Counter(str(entry["name"]) for entry in schedule if isinstance(entry, Mapping) and entry.get("name"))
    for name, times in names.items():
        if times > 1:
            yield f"celery_schedule has {times} entries with the name {name}", "give each entry a name of its own"


def _entry(entry: Mapping[str, Any], served: Collection[str] | None) -> Iterator[tuple[str, str]]:
    for key in sorted(set(map(str, entry)) - set(KEYS)):
        close = meant(key, KEYS)
        yield f"the key {key} is unknown", f"write {close}" if close else f"use {', '.join(KEYS)}"
    for key in ("name", "task"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            yield f"it has no {key}", EXAMPLE
    if ("crontab" in entry) == ("every" in entry):
        yield "it needs either crontab or every", EXAMPLE
    if "crontab" in entry:
        problem = crontab_mistake(entry["crontab"])
        if problem:
            yield (
                f"crontab {entry['crontab']!r}: {problem}",
                'give minute, hour, day, month and weekday: "30 2 * * mon-fri"',
            )
    every = entry.get("every", 1)
    if isinstance(every, bool) or not isinstance(every, int | float) or every <= 0:
        yield f"every is {every!r}", "give it in seconds, like 300"
    for key, kind, shown in (("args", list, "[1, two]"), ("kwargs", dict, "{path: incoming}")):
        if key in entry and not isinstance(entry[key], kind):
            yield f"{key} is {entry[key]!r}", f"write it like {shown}"
    for key, choices in (("priority", PRIORITIES), ("catch_up", CATCH_UP)):
        if key in entry and entry[key] not in choices:
            yield f"{key} is {entry[key]!r}", f"use one of {', '.join(choices)}"
    if "timezone" in entry and not zone_exists(entry["timezone"]):
        yield f"the time zone {entry['timezone']!r} is unknown", "name it like Europe/Berlin"
    queue = entry.get("queue")
    if queue is not None and served is not None and queue not in served:
        yield (
            f"no worker serves the queue {queue}",
            f"use one of {', '.join(sorted(served))}, or add it to celery_workers",
        )


def zone_exists(name: object) -> bool:
    """Whether the tz database knows it."""
    try:
        ZoneInfo(str(name))
    except (KeyError, ValueError, OSError):
        return False
    return True


def crontab_mistake(text: object) -> str:
    """Why a crontab never works; empty when it does."""
    fields = text.split() if isinstance(text, str) else []
    if len(fields) != len(FIELDS):
        return f"it has {len(fields)} fields instead of 5"
    values = []
    for written, (name, first, last, names) in zip(fields, FIELDS, strict=True):
        found: set[int] = set()
        for part in written.split(","):
            match = PART.fullmatch(part)
            span = match and _span(match, first, last, names)
            if not span:
                return f"{part!r} is no {name}"
            found.update(span)
        values.append(found)
    days, months = values[2], values[3]
    if all(min(days) > DAYS_IN_MONTH[month - 1] for month in months):
        return "no month it names has such a day"
    return ""


def _span(match: re.Match[str], first: int, last: int, names: Sequence[str]) -> Sequence[int]:
    start, end, step = match[1], match[2], match[3]
    if start == "*":
        low, high = (first, last) if end is None else (1, 0)
    else:
        low = _number(start, first, names)
        # `5/10` without an end is neither cron's nor Celery's.
        high = low if end is None else _number(end, first, names)
        if step is not None and end is None:
            return ()
    if not first <= low <= high <= last or step == "0":
        return ()
    return range(low, high + 1, int(step or 1))


def _number(text: str, first: int, names: Sequence[str]) -> int:
    if text.isdecimal():
        return int(text)
    short = text.lower()[:3]
    return names.index(short) + first if text.isalpha() and short in names else -1
