"""The screen of `muster queues`, and Celery's part of `muster status`: what waits, and who works on what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from muster import fleet
from muster.figures import Figures
from muster.tables import Screen

SHOWN_TASKS = 4
BROKER_SILENT = "Celery's broker does not answer: see `docker compose logs` in celery_redis and celery_metrics."


def facts(
    seen: Mapping[str, Any], planned: Mapping[str, Any], answer: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """seen: what `python -m celery_app.status` said; answer: what Prometheus said, None when it did not."""
    absent = fleet.absent(seen, planned["laptops"])
    ages = Figures(answer or []).by("queue", "oldest")
    alive = {name for name, worker in seen["workers"].items() if (worker["lease"] or 0) > 0}
    workers, notes = [], []
    for name in [*planned["workers"], *sorted(set(seen["workers"]) - set(planned["workers"]))]:
        host = name.partition("/")[0]
        state = "alive" if name in alive else "dead" if name in seen["workers"] else "missing"
        tasks = [dict(task) for task in seen["workers"].get(name, {"tasks": []})["tasks"]]
        workers.append({"name": name, "state": absent[host][0] if host in absent else state, "tasks": tasks})
        if name in planned["workers"] and name not in alive and host not in absent:
            notes.append(f"missing: Celery worker {name}: run site.yml --tags celery --limit {host}")
    return {
        "queues": [
            {
                "name": name,
                "waiting": sum(lengths.values()),
                # A list: on its way to the command Ansible sorts keys, and these have an order.
                "priorities": [{"name": priority, "waiting": length} for priority, length in lengths.items()],
                "oldest_seconds": ages.get(name) if any(lengths.values()) else 0.0,
            }
            for name, lengths in seen["queues"].items()
        ],
        "workers": workers,
        "dead_letters": seen["dead"],
        "notes": notes,
    }


def shown(facts: Mapping[str, Any]) -> Screen:
    """All of it: a line for each task that a worker holds."""
    rows = [("worker", "state", "queue", "task", "id")]
    for worker in facts["workers"]:
        held = [(task["queue"], task["task"], task["id"]) for task in worker["tasks"]] or [("-", "-", "-")]
        rows += [(worker["name"], worker["state"], *task) for task in held]
    return [summary(facts), queue_rows(facts, ages=True), rows, *facts["notes"]]


def short(facts: Mapping[str, Any]) -> Screen:
    """As a part of the status screen: a line for each worker."""
    rows = [("worker", "state", "works on")]
    rows += [
        (worker["name"], worker["state"], fleet.tasks(worker["tasks"], SHOWN_TASKS)) for worker in facts["workers"]
    ]
    return [summary(facts), queue_rows(facts, ages=False), rows, *facts["notes"]]


def summary(facts: Mapping[str, Any]) -> str:
    """How much there is to do."""
    waiting = sum(queue["waiting"] for queue in facts["queues"])
    held = sum(len(worker["tasks"]) for worker in facts["workers"])
    tasks = "1 task is" if waiting == 1 else f"{waiting} tasks are"
    return f"Celery: {tasks} waiting, {held} with workers, {facts['dead_letters']} dead letters"


def queue_rows(facts: Mapping[str, Any], *, ages: bool) -> list[list[str]]:
    """A line for each queue."""
    priorities = [priority["name"] for queue in facts["queues"][:1] for priority in queue["priorities"]]
    rows = [["queue", *(["waiting", "oldest"] if ages else []), *priorities]]
    for queue in facts["queues"]:
        age = queue["oldest_seconds"]
        oldest = "-" if age is None or not queue["waiting"] else fleet.span(age)
        lengths = [str(priority["waiting"]) for priority in queue["priorities"]]
        rows.append([queue["name"], *([str(queue["waiting"]), oldest] if ages else []), *lengths])
    return rows
