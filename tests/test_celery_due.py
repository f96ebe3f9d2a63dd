"""When beat's entries are due, across changes of the clock too, with a simulated clock."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from celery_app.due import latest, times

BERLIN = ZoneInfo("Europe/Berlin")


def fired(entry: dict[str, Any], start: datetime, hours: float) -> list[str]:
    """Wall-clock times at which it fires when one looks every 20 seconds."""
    # Sums of times with a zone are sums of wall clocks.
    start = start.astimezone(UTC)
    found, last, now = [], start, start
    while now < start + timedelta(hours=hours):
        now += timedelta(seconds=20)
        due = latest(entry, last, now)
        if due:
            assert due <= now < due + timedelta(seconds=20)
            found.append(f"{due.astimezone(ZoneInfo(entry.get('timezone', 'UTC'))):%d %H:%M%z}")
            last = due
    # Who looks only at the end counts the same.
    assert times(entry, start, now) == len(found)
    return found


def berlin(crontab: str) -> dict[str, Any]:
    return {"name": "x", "crontab": crontab, "timezone": "Europe/Berlin"}


@pytest.mark.parametrize(
    ("crontab", "expected"),
    [
        ("30 2 * * *", ["28 02:30+0100", "29 03:00+0200", "30 02:30+0200"]),
        ("15,45 2 * * *", ["28 02:15+0100", "28 02:45+0100", "29 03:00+0200", "30 02:15+0200", "30 02:45+0200"]),
        ("0 3 * * *", ["28 03:00+0100", "29 03:00+0200", "30 03:00+0200"]),
        ("0 4 * * sun", ["29 04:00+0200"]),
    ],
)
def test_spring(crontab: str, expected: list[str]) -> None:
    assert fired(berlin(crontab), datetime(2026, 3, 28, tzinfo=BERLIN), 71) == expected


def test_autumn_fires_once() -> None:
    start = datetime(2026, 10, 24, 12, tzinfo=BERLIN)
    assert fired(berlin("30 2 * * *"), start, 48) == ["25 02:30+0200", "26 02:30+0100"]


def test_what_runs_all_day_goes_on_through_both_changes() -> None:
    autumn = fired(berlin("*/30 * * * *"), datetime(2026, 10, 25, 1, 45, tzinfo=BERLIN), 2.5)
    assert autumn == ["25 02:00+0200", "25 02:30+0200", "25 02:00+0100", "25 02:30+0100", "25 03:00+0100"]
    spring = fired(berlin("*/30 * * * *"), datetime(2026, 3, 29, 1, 15, tzinfo=BERLIN), 1.5)
    assert spring == ["29 01:30+0100", "29 03:00+0200", "29 03:30+0200"]


def test_intervals_are_counted_by_the_clock() -> None:
    start = datetime(2026, 6, 1, 0, 0, 50, tzinfo=UTC)
    assert fired({"name": "x", "every": 60}, start, 320 / 3600) == [f"01 00:0{minute}+0000" for minute in range(1, 7)]
    assert times({"every": 60}, start, start + timedelta(seconds=9)) == 0


def test_days_and_names_as_cron_takes_them() -> None:
    start = datetime(2026, 6, 1, tzinfo=UTC)
    assert fired({"name": "x", "crontab": "0 0 3 6 fri"}, start, 24 * 6) == ["03 00:00+0000", "05 00:00+0000"]
    assert fired({"name": "x", "crontab": "0 12 * jun mon-tue"}, start, 24 * 6) == ["01 12:00+0000", "02 12:00+0000"]


def test_intervals_are_the_same_for_everyone() -> None:
    now = datetime(2026, 6, 1, 12, 0, 7, tzinfo=UTC)
    entry = {"name": "x", "every": 5}
    assert latest(entry, now - timedelta(days=1), now) == now - timedelta(seconds=2)
    assert latest(entry, now - timedelta(seconds=2), now) is None


def test_only_the_last_of_many_missed_is_due() -> None:
    now = datetime(2026, 6, 10, 12, tzinfo=UTC)
    due = latest({"name": "x", "crontab": "30 2 * * *"}, now - timedelta(days=9), now)
    assert due == datetime(2026, 6, 10, 2, 30, tzinfo=UTC)
