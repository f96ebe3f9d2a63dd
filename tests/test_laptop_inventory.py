"""What preflight says about laptops whose agent could not obey."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from muster import checks
from muster.known import known
from muster.preflight import validate
from muster.problems import report

from .conftest import HOSTS, Inventories

Problems = Callable[..., list[str]]


@pytest.fixture
def problems(inventories: Inventories) -> Problems:
    def call(**changes: Any) -> list[str]:
        hostvars, groups = inventories.load(HOSTS, **changes)
        raw = {host: hostvars.raw_get(host) for members in groups.values() for host in members}  # type: ignore[attr-defined]
        return report(checks.inventory_problems(checks.Inventory(hostvars, groups, known(), raw=raw), validate))

    return call


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"laptop_hours": ["9 to 5"]}, "laptop_hours has '9 to 5', which says no time. Fix: write it like"),
        ({"laptop_hours": "sat,sun"}, "laptop_hours is 'sat,sun', which is no list. Fix: write it like"),
        ({"laptop_min_battery": 101}, "laptop_min_battery is 101. Fix: give percent from 0 to 100"),
        ({"laptop_max_temperature": 9}, "laptop_max_temperature is 9. Fix: give degrees Celsius from 40 to 120"),
        ({"laptop_grace": "long"}, "laptop_grace is 'long'. Fix: give seconds from 0 to 600"),
        ({"laptop_clock_tolerance": 0}, "laptop_clock_tolerance is 0. Fix: give seconds from 1 to 300"),
        ({"laptop_lid": "shut"}, "laptop_lid 'shut' is not valid"),
        ({"laptop_on_battery": "yes"}, "laptop_on_battery 'yes' is not valid"),
        ({"laptop_lids": "ignore"}, "the variable laptop_lids is unknown. Fix: write laptop_lid"),
    ],
)
def test_what_the_agent_could_not_obey(problems: Problems, variables: dict[str, Any], line: str) -> None:
    assert [found for found in problems(laptop1=variables) if line in found]


def test_what_it_can(problems: Problems) -> None:
    good = {"laptop_hours": ["mon-fri 18:00-08:00", "sat,sun"], "laptop_lid": "ignore", "laptop_min_battery": 0}
    assert not [found for found in problems(laptop1=good) if "laptop_" in found]
