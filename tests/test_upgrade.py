"""What upgrade.yml is told, and which jobs begin anew after it."""

from typing import Any

import pytest

from muster.errors import MusterError
from muster.known import known
from muster.upgrade import upgrade
from ray_jobs import interrupted
from ray_jobs.jobs_api import Job

GROUPS = {"ray_head": ["head"], "ray_worker": ["server1"], "celery_worker": ["server1", "laptop1"]}
ALL = ("head", "server1", "laptop1")


def test_jobs_are_waited_for_ten_minutes_if_nothing_is_said() -> None:
    assert upgrade({"ray_version": "pinned"}, (), known().names, GROUPS, ALL, ["all"])["within"] == 600
    given = {"ray_version": "2.59.0", "within": "0"}
    assert upgrade(given, given, known().names, GROUPS, ALL)["within"] == 0


@pytest.mark.parametrize(
    ("given", "limit", "tags", "problem", "fix"),
    [
        ({"ray_version": "2.59"}, ALL, (), "ray_version is '2.59'", "write it like ray_version=2.60.0"),
        ({"ray_version": ""}, ALL, (), "ray_version is ''", "write it like ray_version=2.60.0"),
        ({"within": "soon"}, ALL, (), "within is 'soon'", "give whole seconds"),
        ({"withn": "5"}, ALL, (), "the argument withn is unknown", "write within"),
        ({}, ("head", "server1"), (), "--limit leaves out laptop1", "leave out --limit"),
        ({}, ALL, ("all", "ray"), "no parts to choose by tags", "leave the tags out"),
    ],
)
def test_what_makes_no_sense_is_refused(
    given: dict[str, str], limit: tuple[str, ...], tags: tuple[str, ...], problem: str, fix: str
) -> None:
    with pytest.raises(MusterError) as error:
        upgrade(given, given, known().names, GROUPS, limit, tags)
    assert problem in str(error.value) and fix in str(error.value)


class Ray:
    """The Jobs API, with what became of the jobs."""

    def __init__(self, **status: str) -> None:
        self.status = status
        self.deleted: list[str] = []
        self.submitted: list[dict[str, Any]] = []

    def all(self) -> list[dict[str, Any]]:
        return [
            {"submission_id": name, "status": status, "entrypoint": f"run {name}", "metadata": {"muster_job": name}}
            for name, status in self.status.items()
        ] + [
            {"submission_id": "theirs", "status": "RUNNING", "entrypoint": "sleep 1", "metadata": None},
            {"submission_id": None, "status": "RUNNING", "entrypoint": "a notebook"},
        ]

    def get(self, name: str) -> Job | None:
        return Job(self.status[name]) if name in self.status else None

    def delete(self, name: str) -> None:
        self.deleted.append(name)

    def submit(self, body: dict[str, Any]) -> None:
        self.submitted.append(body)


def test_those_that_run_are_named() -> None:
    ray: Any = Ray(one="RUNNING", two="SUCCEEDED", three="PENDING")
    assert [(job["id"], job["again"]) for job in interrupted.running(ray)] == [
        ("one", True), ("three", True), ("theirs", False),
    ]  # fmt: skip


def test_what_was_cut_begins_anew_where_it_bears_it() -> None:
    before: Any = Ray(one="RUNNING", two="RUNNING", three="RUNNING", four="RUNNING")
    jobs = interrupted.running(before)
    ray: Any = Ray(one="FAILED", two="SUCCEEDED", three="RUNNING")
    assert interrupted.again(ray, jobs, patience=0) == {
        "again": ["one", "four"], "ended": ["two"], "cut": ["three", "theirs"],
    }  # fmt: skip
    assert ray.deleted == ["one"]
    assert [(job["submission_id"], job["entrypoint"]) for job in ray.submitted] == [
        ("one", "run one"), ("four", "run four"),
    ]  # fmt: skip
    assert all(job["entrypoint_label_selector"]["node"] == "!head" for job in ray.submitted)
