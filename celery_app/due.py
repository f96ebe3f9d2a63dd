"""When an entry of the schedule is due: pure functions of time, in the entry's own zone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
FIELDS: tuple[tuple[int, int, tuple[str, ...]], ...] = (
    (0, 59, ()),
    (0, 23, ()),
    (1, 31, ()),
    (1, 12, MONTHS),
    (0, 6, DAYS),
)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


def latest(entry: Mapping[str, Any], after: datetime, until: datetime, zone: str = "UTC") -> datetime | None:
    """The last time in (after, until] at which the entry is due, in UTC; None when there is none."""
    if "every" in entry:
        every = float(entry["every"])
        moment = datetime.fromtimestamp(until.timestamp() // every * every, UTC)
        return moment if moment > after else None
    crontab, place = fields(str(entry["crontab"])), ZoneInfo(str(entry.get("timezone") or zone))
    day = until.astimezone(place).date()
    first = after.astimezone(place).date() - DAY
    while day >= first:
        due = _within(crontab, day, place, after, until)
        if due:
            return max(due)
        day -= DAY
    return None


def times(entry: Mapping[str, Any], after: datetime, until: datetime, zone: str = "UTC") -> int:
    """How often it is due in (after, until]."""
    if "every" in entry:
        every = float(entry["every"])
        return int(until.timestamp() // every - after.timestamp() // every)
    crontab, place = fields(str(entry["crontab"])), ZoneInfo(str(entry.get("timezone") or zone))
    day, found = until.astimezone(place).date(), 0
    while day >= after.astimezone(place).date() - DAY:
        found += len(_within(crontab, day, place, after, until))
        day -= DAY
    return found


def _within(
    crontab: list[frozenset[int]], day: date, place: ZoneInfo, after: datetime, until: datetime
) -> set[datetime]:
    """Two wall-clock times that a change of the clock makes one are one."""
    return {moment for moment in _of_day(crontab, day.year, day.month, day.day, place) if after < moment <= until}


def fields(text: str) -> list[frozenset[int]]:
    """Minutes, hours, days, months and weekdays of a crontab."""
    written = text.split()
    return [
        frozenset(value for part in field.split(",") for value in _span(part, *bounds))
        for field, bounds in zip(written, FIELDS, strict=True)
    ]


def _span(part: str, low: int, high: int, names: tuple[str, ...]) -> range:
    span, _, every = part.partition("/")
    if span != "*":
        start, _, end = span.partition("-")
        low, high = _number(start, low, names), _number(end or start, low, names)
    return range(low, high + 1, int(every or 1))


def _number(text: str, first: int, names: tuple[str, ...]) -> int:
    return int(text) if text.isdecimal() else names.index(text.lower()[:3]) + first


def _of_day(crontab: list[frozenset[int]], year: int, month: int, day: int, zone: ZoneInfo) -> Iterator[datetime]:
    minutes, hours, days, months, weekdays = crontab
    weekday = datetime(year, month, day).isoweekday() % 7
    # As cron does: where both are restricted, either will do.
    good = [day in days, weekday in weekdays]
    restricted = len(days) < 31 and len(weekdays) < 7
    if month not in months or not (any(good) if restricted else all(good)):
        return
    # What runs all day long goes on through a change of the clock: it neither piles up nor pauses for an hour.
    through = len(hours) == 24
    for hour in hours:
        for minute in minutes:
            wall = datetime(year, month, day, hour, minute)
            moment = wall.replace(tzinfo=zone).astimezone(UTC)
            if moment.astimezone(zone).replace(tzinfo=None) == wall:
                yield moment
                if through:
                    yield wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
            elif not through:
                # That time does not exist on this day: the first minute that does.
                while moment.astimezone(zone).replace(tzinfo=None) != wall:
                    wall += MINUTE
                    moment = wall.replace(tzinfo=zone).astimezone(UTC)
                yield moment
