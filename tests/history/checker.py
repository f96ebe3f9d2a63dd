"""Judge a history of tasks that others wrote down: what was lost, done twice, or done at the same time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

ENQUEUED, STARTED, EFFECT, FINISHED = "enqueued", "started", "effect", "finished"


@dataclass(frozen=True)
class Event:
    """One thing that happened to a task, at the recorder's own time; `run` tells the executions of one task apart."""

    kind: str
    task: str
    at: float
    run: str = ""


@dataclass
class Verdict:
    """What is wrong with a history, by the names of the tasks; everything empty: nothing."""

    enqueued: int = 0
    started: int = 0
    lost: list[str] = field(default_factory=list)
    double: list[str] = field(default_factory=list)
    overlapping: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.lost or self.double or self.overlapping or self.repeated or self.unknown)

    def __str__(self) -> str:
        lines = [f"{self.enqueued} enqueued, {self.started} started, {self.started - self.enqueued} of them again"]
        for name in ("lost", "double", "overlapping", "repeated", "unknown"):
            tasks: list[str] = getattr(self, name)
            lines.append(f"{name}: {len(tasks)}" + (f" ({', '.join(tasks[:5])} ...)" if tasks else ""))
        return "; ".join(lines)


def judge(events: Iterable[Event], effects: dict[str, int]) -> Verdict:
    """
    Compare what was enqueued with what came of it.

    lost: no effect. double: more than one. overlapping: an execution gave a sign of life after a later one had begun.
    repeated: begun anew after one had finished. unknown: an effect of a task that nobody enqueued.
    """
    by_task: dict[str, list[Event]] = defaultdict(list)
    for event in sorted(events, key=lambda event: event.at):
        by_task[event.task].append(event)
    verdict = Verdict()
    for task, history in by_task.items():
        asked = any(event.kind == ENQUEUED for event in history)
        verdict.enqueued += asked
        verdict.started += sum(event.kind == STARTED for event in history)
        count = effects.get(task, 0)
        if asked and count == 0:
            verdict.lost.append(task)
        if count > 1:
            verdict.double.append(task)
        if _overlaps(history):
            verdict.overlapping.append(task)
        if _repeats(history):
            verdict.repeated.append(task)
    known = {task for task, history in by_task.items() if any(event.kind == ENQUEUED for event in history)}
    verdict.unknown = sorted(set(effects) - known)
    return verdict


def _overlaps(history: list[Event]) -> bool:
    """Whether an execution still did something when the next one had begun."""
    current = ""
    for event in history:
        if event.kind == STARTED:
            current = event.run
        elif event.kind in (EFFECT, FINISHED) and event.run != current:
            return True
    return False


def _repeats(history: list[Event]) -> bool:
    finished = False
    for event in history:
        if event.kind == STARTED and finished:
            return True
        finished = finished or event.kind == FINISHED
    return False
