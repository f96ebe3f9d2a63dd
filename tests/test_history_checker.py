"""The judge of histories: a good one passes, each kind of bad one is told by name."""

import pytest

from .history.checker import EFFECT, ENQUEUED, FINISHED, STARTED, Event, judge

Line = tuple[str, str]


def history(*lines: Line) -> list[Event]:
    return [Event(kind, "a", at=number, run=run) for number, (kind, run) in enumerate(lines)]


GOOD = history((ENQUEUED, ""), (STARTED, "1"), (EFFECT, "1"), (FINISHED, "1"))
AGAIN = history((ENQUEUED, ""), (STARTED, "1"), (STARTED, "2"), (EFFECT, "2"), (FINISHED, "2"))


@pytest.mark.parametrize("events", [GOOD, AGAIN])
def test_one_effect_is_good_however_often_it_was_tried(events: list[Event]) -> None:
    verdict = judge(events, {"a": 1})
    assert verdict.good and verdict.enqueued == 1, verdict


@pytest.mark.parametrize(
    ("events", "effects", "fault"),
    [
        (history((ENQUEUED, "")), {}, "lost"),
        (history((ENQUEUED, ""), (STARTED, "1"), (FINISHED, "1")), {}, "lost"),
        (GOOD, {"a": 2}, "double"),
        (
            history((ENQUEUED, ""), (STARTED, "1"), (STARTED, "2"), (EFFECT, "1"), (EFFECT, "2")),
            {"a": 1},
            "overlapping",
        ),
        ([*GOOD, Event(STARTED, "a", 9, "2")], {"a": 1}, "repeated"),
        (GOOD, {"a": 1, "b": 1}, "unknown"),
    ],
)
def test_every_fault_has_its_name(events: list[Event], effects: dict[str, int], fault: str) -> None:
    verdict = judge(events, effects)
    assert not verdict.good
    assert [name for name in ("lost", "double", "overlapping", "repeated", "unknown") if getattr(verdict, name)] == [
        fault
    ]
