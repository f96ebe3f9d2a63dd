"""Where one long task runs, with a Ray of a few lines. With a real one: tests/jobs/test_llm_train_tiny.py."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from ray_jobs import afar, outcome
from ray_jobs.command import JobError


class FakeRay(ModuleType):
    """Notes what it is asked for. A task's function runs when it is waited for."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.result: Any = None
        self.asked: dict[str, dict[str, Any]] = {}
        self.killed = 0
        error = type("RayError", (Exception,), {})
        self.exceptions = ModuleType("ray.exceptions")
        self.exceptions.__dict__.update(RayError=error, RayTaskError=type("RayTaskError", (error,), {}))

    def nodes(self) -> list[dict[str, Any]]:
        def node(cpus: float, name: str, kind: str, alive: bool = True) -> dict[str, Any]:
            return {"Alive": alive, "Resources": {"CPU": cpus}, "Labels": {"node": name, "class": kind}}

        return [
            node(16, "head", "server"),
            node(12, "worker-1", "laptop"),
            node(10, "worker-1", "server", alive=False),
            node(3, "worker-1", "server"),
            {"Alive": True, "Resources": {}, "Labels": {}},
        ]

    def remote(self, what: Any) -> Any:
        ray = self

        class Remote:
            def options(self, **options: Any) -> Any:
                ray.asked[what.__name__] = options
                return self

            def remote(self, *arguments: Any) -> Any:
                if isinstance(what, type):
                    made = what()
                    for name in ("say", "read"):
                        method = ModuleType(name)
                        method.__dict__["remote"] = getattr(made, name)
                        setattr(made, name, method)
                    return made
                return lambda: what(*arguments)

        return Remote()

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        try:
            self.result = references[0]()
        except JobError as error:
            self.result = self.exceptions.RayTaskError("a long traceback")
            self.result.cause = error
        return references, []

    def get(self, reference: Any, timeout: float | None = None) -> Any:
        if not callable(reference):
            return reference
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    def cancel(self, reference: Any, force: bool) -> None:
        pass

    def kill(self, actor: Any) -> None:
        self.killed += 1


def half(number: int, tell: Any) -> float:
    tell(1, 2, "begun")
    return number / 2


def test_it_is_one_task_of_a_server_that_is_not_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, seen = FakeRay(), []
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(outcome, "progress", lambda *said: seen.append(said))
    assert afar.call(half, 5, cpus=3, retries=2) == 2.5
    assert seen == [(1, 2, "begun")]
    server = {"class": "!laptop", "node": "!head"}
    assert ray.asked["half"] == {"num_cpus": 3, "max_retries": 2, "label_selector": server}
    assert ray.asked["Board"] == {"num_cpus": 0, "max_restarts": -1, "label_selector": server}
    assert ray.killed == 1


def refuses(tell: Any) -> None:
    raise JobError("data: no text")


def test_a_users_mistake_comes_back_as_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(JobError) as error:
        afar.call(refuses, cpus=1)
    assert str(error.value) == "data: no text"
    assert ray.killed == 1


def test_more_than_a_server_has_is_refused_before_it_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(JobError, match=r"4 are wanted of one server, the largest has 3"):
        afar.call(half, 5, cpus=4)
    assert not ray.asked
