"""Celery in the inventory: how workers are sized, and which mistakes preflight tells."""

from collections.abc import Callable
from typing import Any

import pytest
from celery.schedules import crontab_parser
from hypothesis import given
from hypothesis import strategies as st

from muster import celery_schedule, celery_sizing, celery_times, checks
from muster.celery_sizing import celery_workers
from muster.errors import MusterError
from muster.known import known
from muster.problems import report
from muster.sizing import MIB

from .conftest import HOSTS, Inventories

ENTRY = {"name": "nightly", "task": "celery_app.tasks.default.report", "crontab": "30 2 * * *"}
Problems = Callable[..., list[str]]


@pytest.fixture
def problems(inventories: Inventories) -> Problems:
    def call(hosts: str = HOSTS, **changes: Any) -> list[str]:
        hostvars, groups = inventories.load(hosts, **changes)
        raw = {host: hostvars.raw_get(host) for members in groups.values() for host in members}  # type: ignore[attr-defined]
        return report(checks.inventory_problems(checks.Inventory(hostvars, groups, known(), raw=raw)))

    return call


def test_rays_head_serves_all_queues_and_the_others_those_of_their_own() -> None:
    both = celery_workers(None, host_cpus=2, ray=True)
    assert [worker["queues"] for worker in both] == [["default", "data"], ["ml"]]
    assert [worker["name"] for worker in both] == ["default-data", "ml"]
    assert [worker["queues"] for worker in celery_workers("", host_cpus=2, ray=False)] == [["default", "data"]]
    assert celery_workers([], host_cpus=2, ray=True) == []


@given(st.integers(1, 256), st.booleans())
def test_by_default_all_processes_fit_into_the_memory(cpus: int, ray: bool) -> None:
    for worker in celery_workers(None, host_cpus=cpus, ray=ray):
        assert 2 <= worker["concurrency"] <= 8 and worker["prefetch"] == 1
        assert worker["concurrency"] * worker["child_memory"] + celery_sizing.OVERHEAD == worker["memory"]


@pytest.mark.parametrize("spec", [None, [{"queues": ["default", "data"]}], [{"queues": "data"}, {"queues": "default"}]])
def test_a_guest_gives_one_process_to_each_worker(spec: object) -> None:
    workers = celery_workers(spec, host_cpus=16, ray=False, guest=True)
    assert [worker["concurrency"] for worker in workers] == [1] * len(workers)
    (more,) = celery_workers([{"queues": "data", "concurrency": 3}], host_cpus=16, ray=False, guest=True)
    assert more["concurrency"] == 3


@given(st.integers(1, 64), st.integers(320, 65536))
def test_memory_that_is_given_is_shared_by_the_processes(concurrency: int, megabytes: int) -> None:
    spec = [{"queues": "data", "concurrency": concurrency, "memory": f"{megabytes}M"}]
    try:
        (worker,) = celery_workers(spec, host_cpus=2, ray=True)
    except MusterError:
        assert (megabytes - 256) // concurrency < 64
        return
    assert worker["memory"] == megabytes * MIB
    assert worker["concurrency"] * worker["child_memory"] + celery_sizing.OVERHEAD <= worker["memory"]


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        (
            3,
            "server1: celery_workers is 3, which is no list. Fix: write a list of {queues: [default, data], con",
        ),
        ("default", "server1: celery_workers is 'default', which is no list. Fix"),
        ([["default"]], "server1: celery_workers entry 1 has ['default'], which nobody knows. Fix: use queues"),
        ([{"queue": ["ml"]}], "server1: celery_workers entry 1 has 'queue', which nobody knows. Fix: use queues"),
        ([{"concurrency": 2}], "server1: celery_workers entry 1: it has no queues. Fix: write queues: [default, data]"),
        ([{"queues": ["Not one"]}], "server1: celery_workers entry 1: 'Not one' is no queue. Fix"),
        ([{"queues": ["ml", "ml"]}], "server1: celery_workers entry 1: a queue is named twice: ml, ml. Fix"),
        (
            [{"queues": ["data"]}, {"queues": "data"}],
            "server1: celery_workers has the queues data twice. Fix: give one entry",
        ),
        (
            [{"queues": ["ml"], "concurrency": 0}],
            "server1: celery_workers entry 1: concurrency is 0, prefetch is 1. Fix",
        ),
        ([{"queues": ["ml"], "concurrency": "x"}], "server1: concurrency is 'x', which is not a whole number. Fix"),
        (
            [{"queues": ["ml"], "concurrency": 8, "memory": "512M"}],
            "server1: celery_workers entry 1: each of 8 processes would have 32M. Fix: raise memory, or lower conc",
        ),
        (
            [{"queues": ["ml"], "concurrency": 4, "memory": "1G", "child_memory": "512M"}],
            "server1: celery_workers entry 1: 4 processes of 512M do not fit into 1.0G. Fix: raise memory to 2.2G",
        ),
    ],
)
def test_workers_that_cannot_be(problems: Problems, spec: Any, line: str) -> None:
    found = problems(server1={"celery_workers": spec})
    assert len(found) == 1 and found[0].startswith(line), found


def test_ray_is_asked_for_what_celery_leaves() -> None:
    groups = {"ray_worker": ["server1"], "celery_worker": ["server1"], "celery_redis": ["server1"]}
    variables = {"ray_reserve_memory": "1G", "celery_redis_memory": "512M"}
    size = {"cpus": 4, "memory_mb": 8192}
    (worker,) = checks.worker_sizes("server1", variables, groups, size)
    celery = sum(celery_sizing.celery_reserve(variables, {"celery_worker", "celery_redis", "ray_worker"}, 4))
    assert celery == (768 + 2 * 512 + 64 + 64) * MIB
    assert worker["memory"] == (8192 - 1024) * MIB - celery


def test_the_queue_of_rays_jobs_is_served_on_the_head_or_where_the_jobs_api_is_named(problems: Problems) -> None:
    spec = [{"queues": ["data", "ml"]}]
    assert problems(head={"celery_workers": spec}) == []
    (line,) = problems(server1={"celery_workers": spec})
    assert line.startswith(
        "server1: celery_workers serves ml, whose tasks are jobs of Ray, and Ray's Jobs API is on the"
    )
    url = {"MUSTER_RAY_JOBS_URL": "https://cluster.example.org/ray"}
    assert problems(server1={"celery_workers": spec, "celery_options": url}) == []


@pytest.mark.parametrize(
    ("variables", "groups", "node"),
    [
        ({}, {"ray_worker"}, "worker-1"),
        ({"ray_workers": 3}, {"ray_worker", "ray_head"}, "worker-1"),
        ({"ray_workers": 0}, {"ray_worker", "ray_head"}, "head"),
        ({"ray_workers": 0}, {"ray_worker"}, ""),
        ({}, {"ray_worker", "laptop"}, ""),
        ({"celery_ray": "false"}, {"ray_worker", "ray_head"}, ""),
    ],
)
def test_tasks_use_the_hosts_first_ray_worker(variables: dict[str, Any], groups: set[str], node: str) -> None:
    assert celery_sizing.ray_node(variables, groups) == node


def test_two_brokers_or_none(problems: Problems) -> None:
    two = HOSTS + "    celery_redis:\n      hosts:\n        server1:\n"
    assert problems(two) == [
        "inventory: celery_redis has 2 hosts: head, server1. Fix: leave one of them in celery_redis."
    ]


def test_workers_without_a_broker(inventories: Inventories) -> None:
    text = (inventories.folder / "groups.yml").read_text()
    comment, children = "       # exactly one host: Celery's broker", "      children:\n        ray_head:\n"
    empty = text.replace(f"    celery_redis:{comment}\n{children}", "    celery_redis:\n")
    assert empty != text
    (inventories.folder / "groups.yml").write_text(empty)
    hostvars, groups = inventories.load()
    found = report(checks.inventory_problems(checks.Inventory(hostvars, groups, known())))
    assert len(found) == 1 and found[0].startswith(
        "inventory: the group celery_redis is empty, and celery_worker, celery_beat need Celery's broker. Fix: put one"
    )


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ("nightly", "celery_schedule entry 1 is 'nightly'. Fix: write it like {name: nightly, task:"),
        ({"task": "x", "every": 5}, "celery_schedule entry 1: it has no name. Fix"),
        ({"name": "n", "every": 5}, "celery_schedule entry n: it has no task. Fix"),
        ({**ENTRY, "cron": 1}, "celery_schedule entry nightly: the key cron is unknown. Fix: use name, task"),
        (
            {**ENTRY, "time_zone": "UTC"},
            "celery_schedule entry nightly: the key time_zone is unknown. Fix: write timezone",
        ),
        ({**ENTRY, "every": 5}, "celery_schedule entry nightly: it needs either crontab or every. Fix"),
        ({"name": "n", "task": "x"}, "celery_schedule entry n: it needs either crontab or every. Fix"),
        ({"name": "n", "task": "x", "every": 0}, "celery_schedule entry n: every is 0. Fix: give it in seconds"),
        ({"name": "n", "task": "x", "every": "1h"}, "celery_schedule entry n: every is '1h'. Fix: give it in seconds"),
        (
            {**ENTRY, "crontab": "30 2 * *"},
            "celery_schedule entry nightly: crontab '30 2 * *': it has 4 fields instead",
        ),
        (
            {**ENTRY, "crontab": "61 2 * * *"},
            "celery_schedule entry nightly: crontab '61 2 * * *': '61' is no minute. Fix",
        ),
        (
            {**ENTRY, "crontab": "0 0 30 2 *"},
            "celery_schedule entry nightly: crontab '0 0 30 2 *': no month it names has",
        ),
        (
            {**ENTRY, "timezone": "Europe/Bärlin"},
            "celery_schedule entry nightly: the time zone 'Europe/Bärlin' is unknown",
        ),
        ({**ENTRY, "priority": 9}, "celery_schedule entry nightly: priority is 9. Fix: use one of critical, normal"),
        ({**ENTRY, "catch_up": "all"}, "celery_schedule entry nightly: catch_up is 'all'. Fix: use one of once, skip"),
        ({**ENTRY, "args": "x"}, "celery_schedule entry nightly: args is 'x'. Fix: write it like [1, two]"),
        (
            {**ENTRY, "kwargs": ["x"]},
            "celery_schedule entry nightly: kwargs is ['x']. Fix: write it like {path: incoming}",
        ),
        (
            {**ENTRY, "queue": "dat"},
            "celery_schedule entry nightly: no worker serves the queue dat. Fix: use one of data, default, ml, or add",
        ),
    ],
)
def test_a_schedule_that_cannot_be(problems: Problems, entry: Any, line: str) -> None:
    found = problems(all={"celery_schedule": [entry]})
    assert len(found) == 1 and found[0].startswith(f"head, server1: {line}"), found


def test_two_entries_of_one_name(problems: Problems) -> None:
    (line,) = problems(all={"celery_schedule": [ENTRY, {**ENTRY, "crontab": "0 3 * * *"}]})
    assert "celery_schedule has 2 entries with the name nightly" in line


def test_a_schedule_that_is_none_or_right(problems: Problems) -> None:
    good = [
        ENTRY,
        {
            **ENTRY,
            "name": "b",
            "crontab": "*/15 8-18/2 1,15 jan-mar mon-fri",
            "timezone": "Europe/Berlin",
            "queue": "data",
        },
        {"name": "c", "task": "x", "every": 2.5, "args": [1], "kwargs": {}, "priority": "batch", "catch_up": "skip"},
    ]
    for schedule in ([], None, good):
        assert problems(all={"celery_schedule": schedule}) == []


def test_a_time_zone_for_all_that_does_not_exist(problems: Problems) -> None:
    (line,) = problems(all={"celery_timezone": "Mars/Olympus"})
    assert line.startswith("head, server1: celery_timezone 'Mars/Olympus' is unknown. Fix: name it like")


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        (
            {"celery_visibility_timeout": 3600},
            "celery_visibility_timeout 3600 is too short: a task of 660 s after a count",
        ),
        ({"celery_soft_time_limit": 660}, "celery_soft_time_limit 660 is not between 0 and celery_time_limit 660. Fix"),
        ({"celery_time_limit": 600}, "celery_soft_time_limit 600 is not between 0 and celery_time_limit 600. Fix"),
        (
            {"celery_lease": 5},
            "celery_lease 5 is too short: workers that are only slow would count as dead. Fix: raise it",
        ),
        ({"celery_max_countdown": "1d"}, "celery_max_countdown is '1d', which is not a whole number. Fix"),
    ],
)
def test_times_that_would_break_the_promise(problems: Problems, variables: dict[str, Any], line: str) -> None:
    found = [line for line in problems(all=variables) if "cannot be read" not in line and "is not valid" not in line]
    assert len(found) == 1 and f": {line}" in found[0], found


def test_longer_limits_raise_what_the_broker_waits(problems: Problems) -> None:
    assert problems(all={"celery_time_limit": 7200, "celery_max_countdown": 604800}) == []


@given(st.integers(1, 10**6), st.integers(0, 10**7))
def test_the_broker_waits_longer_than_any_task_may_be_held(time_limit: int, countdown: int) -> None:
    assert celery_times.visibility(time_limit, countdown) > countdown + time_limit + min(60, time_limit)


PARTS = st.one_of(
    st.just("*"),
    st.integers(0, 65).map(str),
    st.sampled_from(["mon", "sunday", "jan", "dec", "x", "", "-1", "1-", "*/0", "/5", "5/10", "1.5", "*-3"]),
    st.tuples(st.integers(0, 62), st.integers(0, 62)).map(lambda pair: f"{pair[0]}-{pair[1]}"),
    st.integers(0, 61).map(lambda step: f"*/{step}"),
    st.tuples(st.integers(0, 61), st.integers(0, 61), st.integers(0, 9)).map(lambda t: f"{t[0]}-{t[1]}/{t[2]}"),
)
FIELDS = st.lists(PARTS, min_size=1, max_size=3).map(",".join)
CELERYS = (crontab_parser(60), crontab_parser(24), crontab_parser(31, 1), crontab_parser(12, 1), crontab_parser(7))


@given(st.integers(0, 4), FIELDS)
def test_what_passes_for_a_crontab_is_one_for_celery(index: int, field: str) -> None:
    fields = ["*"] * 5
    fields[index] = field
    if not celery_schedule.crontab_mistake(" ".join(fields)):
        assert CELERYS[index].parse(field)
