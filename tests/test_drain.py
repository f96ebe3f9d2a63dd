"""What drain.yml, undrain.yml and reboot.yml are told, and what they wait for."""

import json
from collections.abc import Callable, Collection
from typing import Any

import pytest

from muster import drain
from muster.errors import MusterError
from muster.known import known

from .conftest import Inventories

ALL = ("head", "server1", "laptop1")
Judge = Callable[..., Any]


def told(inventories: Inventories, judge: Judge, given: dict[str, str], limit: Collection[str] = ALL) -> Any:
    hostvars, groups = inventories.load()
    return judge(given, given, known().names, hostvars, groups, limit)


@pytest.mark.parametrize(
    ("judge", "given", "problem", "fix"),
    [
        (
            drain.drain,
            {},
            "no host is given",
            "say which one, as in: ansible-playbook playbooks/drain.yml -e host=server1",
        ),
        (drain.drain, {"host": "servr1"}, "the inventory has no host servr1", "write server1"),
        (
            drain.drain,
            {"host": "head"},
            "head is Ray's head and the broker, without which nobody works: there is nobody to hand its work to",
            "to restart it run playbooks/reboot.yml --limit head; tasks and Ray's state wait on its disk",
        ),
        (
            drain.drain,
            {"host": "192.0.2.101"},
            "laptop1 is a laptop, of which its owner has the last word",
            "say `muster-laptop pause` on it; it may also sleep or be switched off at any time",
        ),
        (
            drain.undrain,
            {"host": "laptop1"},
            "laptop1 is a laptop, of which its owner has the last word",
            "say `muster-laptop resume` on it; it may also sleep or be switched off at any time",
        ),
        *(
            (
                drain.drain,
                {"host": "server1", "within": text},
                f"within is {text!r}",
                "give whole seconds from 0 to 86400, as in -e within=120",
            )
            for text in ("soon", "-1", "1.5", "86401")
        ),
        (
            drain.drain,
            {"host": "server1", "witin": "3"},
            "the argument witin is unknown",
            "write within; there are host, within, why",
        ),
        (
            drain.reboot,
            {"only_if_needed": "maybe"},
            "only_if_needed is 'maybe'",
            "write only_if_needed=true or only_if_needed=false",
        ),
        (
            drain.reboot,
            {"host": "server1"},
            "the argument host is unknown",
            "leave it out; there are within, why, back, only_if_needed",
        ),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(
    inventories: Inventories, judge: Judge, given: dict[str, str], problem: str, fix: str
) -> None:
    with pytest.raises(MusterError) as caught:
        told(inventories, judge, given)
    assert (caught.value.problem, caught.value.fix) == (problem, fix)


def test_a_host_that_the_limit_leaves_out_is_said(inventories: Inventories) -> None:
    with pytest.raises(MusterError, match="--limit leaves out server1"):
        told(inventories, drain.drain, {"host": "server1"}, ["head"])


def test_a_host_without_workers_has_nothing_to_hand_back(inventories: Inventories) -> None:
    hostvars, groups = inventories.load()
    idle = {name: [] if name in ("ray_worker", "celery_worker") else hosts for name, hosts in groups.items()}
    with pytest.raises(MusterError, match="server1 runs no workers"):
        drain.drain({"host": "server1"}, ["host"], known().names, hostvars, idle, ALL)


def test_what_is_not_said_is_left_to_the_host(inventories: Inventories) -> None:
    assert told(inventories, drain.drain, {"host": "192.0.2.11"}) == {
        "name": "server1",
        "within": "",
        "why": "maintenance",
    }
    assert told(inventories, drain.drain, {"host": "server1", "within": "0"})["within"] == "0"
    assert told(inventories, drain.undrain, {"host": "server1"}) == {"name": "server1"}


def test_those_without_which_nobody_works_come_last(inventories: Inventories) -> None:
    found = told(inventories, drain.reboot, {})
    assert found == {
        "order": ["server1", "head"], "within": "", "why": "reboot.yml", "back": 900, "only_if_needed": False,
    }  # fmt: skip
    assert told(inventories, drain.reboot, {"back": "60"}, ["server1"])["order"] == ["server1"]


def test_the_machine_that_this_runs_on_does_not_reboot_itself(inventories: Inventories) -> None:
    hostvars, groups = inventories.load(server1={"ansible_connection": "local"})
    with pytest.raises(MusterError, match=r"server1 is the machine that this runs on.*--limit 'all:!server1'"):
        drain.reboot({}, [], known().names, hostvars, groups, ALL)


PLANNED = {
    "nodes": {"server1": ["worker-1", "worker-2"], "server2": ["worker-1"]},
    "workers": ["server1/default", "server1/data", "server2/default"],
}
RAY = json.dumps(
    {"nodes": [{"name": "server1/worker-1", "state": "alive"}, {"name": "server1/worker-2", "state": "dead"}]}
)
CELERY = json.dumps({"workers": {"server1/default": {"lease": 12.5}, "server1/data": {"lease": -3}}})


def test_what_is_missing_is_named() -> None:
    one = ["server1"]
    assert drain.away(PLANNED, one, RAY, CELERY) == ["Ray node server1/worker-2", "Celery worker server1/data"]
    assert drain.away(PLANNED, one, RAY) == ["Ray node server1/worker-2"]
    assert drain.away(PLANNED, one, celery=CELERY) == ["Celery worker server1/data"]
    assert len(drain.away(PLANNED, one, "", "the head does not answer")) == 4
    assert drain.nodes_of(one, RAY) == ["server1/worker-1"] and drain.nodes_of(["server2"], RAY) == []
