"""Where work on Ray goes, with a Ray of a few lines. With a real one: tests/delivery/test_guests.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from celery_app import ray_bridge
from ray_jobs import guests

HOME, AWAY = {"class": "!laptop"}, {"class": "laptop"}


class FakeRay(ModuleType):
    """Runs a task when it is waited for. `script` says, per look, what the cluster has."""

    def __init__(self, *places: dict[str, float]) -> None:
        super().__init__("ray")
        self.places = list(places)
        self.looks = 0
        self.submitted: list[tuple[str, Any]] = []
        self.cancelled: list[Any] = []
        self.fails: Callable[[str, Any], Exception | None] = lambda where, argument: None
        # What hangs is never ready.
        self.hangs: Callable[[str], bool] = lambda where: False
        self.exceptions = ModuleType("ray.exceptions")
        self.exceptions.__dict__.update(
            RayError=type("RayError", (Exception,), {}),
            GetTimeoutError=type("GetTimeoutError", (Exception,), {}),
            TaskCancelledError=type("TaskCancelledError", (Exception,), {}),
        )
        self.exceptions.__dict__["RayTaskError"] = type("RayTaskError", (self.exceptions.__dict__["RayError"],), {})

    def cluster_resources(self) -> dict[str, float]:
        self.looks += 1
        assert self.looks < 100, "it waits for what never comes"
        return self.places.pop(0) if len(self.places) > 1 else self.places[0]

    def remote(self, function: Callable[..., Any]) -> Any:
        ray = self

        class Remote:
            def options(self, **options: Any) -> Any:
                where = "laptop" if options["label_selector"] == AWAY else "home"
                assert options["label_selector"] in (HOME, AWAY)

                class Bound:
                    def remote(self, *arguments: Any) -> Any:
                        ray.submitted.append((where, arguments[0]))
                        return (where, function, arguments, len(ray.submitted))

                return Bound()

        return Remote()

    def wait(self, references: list[Any], timeout: float | None = None) -> tuple[list[Any], list[Any]]:
        ready = [reference for reference in references if not self.hangs(reference[0])][:1]
        return ready, [reference for reference in references if reference not in ready]

    def get(self, reference: Any, timeout: float | None = None) -> Any:
        where, function, arguments, _ = reference
        if error := self.fails(where, arguments[0]):
            raise error
        return function(*arguments)

    def cancel(self, reference: Any, force: bool = False) -> None:
        self.cancelled.append(reference[2][0])


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeRay]:
    def make(*places: dict[str, float]) -> FakeRay:
        made = FakeRay(*places)
        monkeypatch.setitem(sys.modules, "ray", made)
        monkeypatch.setitem(sys.modules, "ray.exceptions", made.exceptions)
        return made

    return make


def double(number: int) -> int:
    return number * 2


PARTS = [(number,) for number in range(7)]
WHOLE = [0, 2, 4, 6, 8, 10, 12]


def test_servers_and_laptops_take_what_they_have_places_for(ray: Any) -> None:
    made = ray({"CPU": 2, "laptop": 1})
    counts: list[int] = []
    assert guests.each(double, PARTS, done=counts.append) == WHOLE
    assert made.submitted[:3] == [("home", 0), ("home", 1), ("laptop", 2)]
    assert counts == [1, 2, 3, 4, 5, 6, 7]
    assert guests.each(double, []) == []


def test_without_laptops_or_any_cpu_servers_are_asked(ray: Any) -> None:
    made = ray({})
    assert guests.each(double, PARTS) == WHOLE
    assert {where for where, _ in made.submitted} == {"home"}


def test_what_a_laptop_takes_along_runs_on_a_server(ray: Any) -> None:
    made = ray({"CPU": 1, "laptop": 2})
    made.fails = lambda where, _: made.exceptions.RayError("its node died") if where == "laptop" else None
    assert guests.each(double, PARTS) == WHOLE
    tried = [argument for where, argument in made.submitted if where == "laptop"]
    assert len(tried) == len(set(tried)) > 0


def test_what_waits_for_a_laptop_that_left_waits_no_longer(ray: Any) -> None:
    made = ray({"CPU": 1, "laptop": 2}, {"CPU": 1, "laptop": 2}, {"CPU": 1})
    made.hangs = lambda where: where == "laptop"
    assert guests.each(double, PARTS) == WHOLE
    assert made.cancelled == [1, 2]


def test_the_functions_own_error_is_nobodys_absence(ray: Any) -> None:
    made = ray({"CPU": 1, "laptop": 2})
    made.fails = lambda where, _: made.exceptions.RayTaskError("wrong") if where == "laptop" else None
    with pytest.raises(made.exceptions.RayTaskError):
        guests.each(double, PARTS)
    made.fails = lambda where, _: made.exceptions.RayError("all died") if where == "home" else None
    with pytest.raises(made.exceptions.RayError, match="all died"):
        guests.each(double, PARTS)


def test_nobody_talks_a_task_into_leaving_home() -> None:
    options = guests.at_home(retries=2, label_selector=AWAY, max_retries=9, memory=5)
    assert options == {"num_cpus": 1, "max_retries": 2, "label_selector": HOME, "memory": 5}
    assert guests.on_laptop(num_cpus=2, max_retries=9, resources={"x": 1}) == {
        "num_cpus": 0, "max_retries": 0, "label_selector": AWAY, "resources": {"x": 1, "laptop": 2},
    }  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of each call that the bridge hands to Ray."""
    found: list[dict[str, Any]] = []

    class Driver:
        def connect(self) -> None:
            pass

        disconnect = connect

        def remote(self, function: Any) -> Any:
            class Remote:
                def options(self, **options: Any) -> Any:
                    found.append(options)
                    return self

                def remote(self, *arguments: Any) -> Any:
                    return ("laptop" if found[-1]["label_selector"] == AWAY else "home", function, arguments, 0)

            return Remote()

    monkeypatch.setattr(ray_bridge, "_driver", Driver())
    monkeypatch.setattr("celery_app.ray_bridge.time.sleep", lambda _: None)
    return found


def test_a_call_stays_at_home_unless_it_bears_repetition_and_asks(ray: Any, asked: list[dict[str, Any]]) -> None:
    ray({"CPU": 1, "laptop": 1})
    home = {"num_cpus": 1, "max_retries": 0, "label_selector": HOME}
    assert ray_bridge.ray_call(double, 1) == 2
    assert asked[-1] == home
    ray_bridge.ray_call(double, 1, num_cpus=0, max_retries=7)
    assert asked[-1] == {**home, "num_cpus": 0}
    ray_bridge.ray_call(double, 1, retryable=True)
    assert asked[-1] == {**home, "max_retries": 3}
    ray_bridge.ray_call(double, 1, retryable=True, label_selector={"node": "worker-2"})
    assert asked[-1]["label_selector"] == {**HOME, "node": "worker-2"}
    ray_bridge.ray_call(double, 1, retryable=True, label_selector=AWAY)
    assert asked[-1] == guests.on_laptop()
    with pytest.raises(ValueError, match="retryable=True"):
        ray_bridge.ray_call(double, 1, label_selector=AWAY)
    ray({"CPU": 1})
    ray_bridge.ray_call(double, 1, retryable=True, label_selector=AWAY)
    assert asked[-1] == {**home, "max_retries": 3}


def test_a_call_whose_laptop_left_is_made_on_a_server(ray: Any, asked: list[dict[str, Any]]) -> None:
    made = ray({"laptop": 1}, {"CPU": 1})
    made.fails = lambda where, _: made.exceptions.RayError("its node died") if where == "laptop" else None
    assert ray_bridge.ray_call(double, 1, retryable=True, label_selector=AWAY) == 2
    assert [options["label_selector"] for options in asked] == [AWAY, HOME]
