"""What `muster queues` shows."""

from __future__ import annotations

from typing import Any

from muster import queues
from muster.tables import plain

TASK = {"task": "app.report", "id": "0123456789", "queue": "default"}
SEEN: dict[str, Any] = {
    "now": 1_000_000,
    "queues": {"data": {"critical": 0, "normal": 0}, "default": {"critical": 1, "normal": 20}},
    "workers": {
        "head/default": {"lease": 21.5, "tasks": [TASK, TASK | {"id": "abc"}]},
        "server1/data": {"lease": -3.0, "tasks": []},
        "old/ml": {"lease": None, "tasks": [TASK]},
    },
    "hosts": {"anna": {"kind": "laptop", "state": "asleep", "why": "lid closed", "since": 999_000, "tasks": []}},
    "dead": 4,
}
PLANNED = {"nodes": {}, "laptops": ["anna"], "workers": ["head/default", "server1/data", "anna/default", "x/data"]}


def figure(name: str, value: str, **labels: str) -> dict[str, Any]:
    return {"metric": {"figure": name, **labels}, "value": [1_000_000, value]}


AGES = [
    figure("oldest", "130", queue="default"),
    figure("oldest", "0", queue="data"),
    figure("queue", "9", queue="default"),
]


def test_every_queue_every_worker_and_every_task_has_a_line() -> None:
    lines = [line.split() for line in plain(queues.shown(queues.facts(SEEN, PLANNED, AGES))).splitlines()]
    assert " ".join(lines[0]) == "Celery: 21 tasks are waiting, 3 with workers, 4 dead letters"
    assert lines[2:5] == [
        ["queue", "waiting", "oldest", "critical", "normal"],
        ["data", "0", "-", "0", "0"],
        ["default", "21", "2", "min", "1", "20"],
    ]
    assert lines[6:13] == [
        ["worker", "state", "queue", "task", "id"],
        ["head/default", "alive", "default", "app.report", "0123456789"],
        ["head/default", "alive", "default", "app.report", "abc"],
        ["server1/data", "dead", "-", "-", "-"],
        ["anna/default", "asleep", "-", "-", "-"],
        ["x/data", "missing", "-", "-", "-"],
        ["old/ml", "dead", "default", "app.report", "0123456789"],
    ]
    assert [" ".join(line) for line in lines[14:]] == [
        "missing: Celery worker server1/data: run site.yml --tags celery --limit server1",
        "missing: Celery worker x/data: run site.yml --tags celery --limit x",
    ]


def test_without_prometheus_nobody_knows_for_how_long() -> None:
    facts = queues.facts(SEEN, PLANNED)
    assert {queue["name"]: queue["oldest_seconds"] for queue in facts["queues"]} == {"data": 0.0, "default": None}
    assert "default  21       -       1         20" in plain(queues.shown(facts))


def test_an_answer_without_this_queue_or_with_no_number_is_none() -> None:
    for answer in ([], [figure("oldest", "NaN", queue="default")], [figure("oldest", "3")]):
        assert queues.facts(SEEN, PLANNED, answer)["queues"][1]["oldest_seconds"] is None


def test_without_any_queue_there_is_still_a_screen() -> None:
    empty = {**SEEN, "queues": {}, "workers": {}, "dead": 0}
    nobody = {**PLANNED, "workers": []}
    assert plain(queues.shown(queues.facts(empty, nobody))).startswith("Celery: 0 tasks are waiting, 0 with workers")
