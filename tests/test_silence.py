"""What silence.yml is told, and what it makes of it; tests/delivery/test_silence.py tries it on Alertmanager."""

import pytest

from muster.errors import MusterError
from muster.known import known
from muster.silence import Silence, alert_names, silence

from .conftest import Inventories

GIVE = "give a number from 0 to 720, as in -e hours=2; 0 ends it"


def told(inventories: Inventories, **given: str) -> Silence:
    hostvars, groups = inventories.load()
    return silence(given, given, known().names, hostvars, groups)


@pytest.mark.parametrize(
    ("given", "problem", "fix"),
    [
        ({}, "nobody is named", "add -e host=server1, or -e alert=DiskFull, or both"),
        ({"host": " ", "hours": "0"}, "nobody is named", "add -e host=server1, or -e alert=DiskFull, or both"),
        ({"host": "servr1"}, "the inventory has no host servr1", "write server1"),
        ({"host": "192.0.2.99"}, "the inventory has no host 192.0.2.99", "give its name, as in -e host=server1"),
        ({"host": "laptop"}, "the inventory has no host laptop", "write laptop1"),
        ({"alert": "DiskFul"}, "there is no alert DiskFul in roles/prometheus/files/rules/*.yml", "write DiskFull"),
        ({"alert": "X"}, "there is no alert X in roles/prometheus/files/rules/*.yml", "give one of those"),
        (
            {"host": "server1", "alrt": "DiskFull"},
            "the argument alrt is unknown",
            "write alert; there are host, alert, hours, why",
        ),
        (
            {"host": "server1", "why": "new", "_raw_params": "disk"},
            "-e has a word that belongs to no argument",
            "quote spaces once more, as in -e 'why=\"new disk\"'",
        ),
        *[
            ({"host": "server1", "hours": text}, f"hours is '{text}'", GIVE)
            for text in ("soon", "-1", "721", "nan", "inf")
        ],
    ],
    ids=str,
)
def test_a_mistake_is_one_line(inventories: Inventories, given: dict[str, str], problem: str, fix: str) -> None:
    with pytest.raises(MusterError) as caught:
        told(inventories, **given)
    assert (caught.value.problem, caught.value.fix) == (problem, fix)


def test_a_host_is_meant_by_its_name_or_its_address(inventories: Inventories) -> None:
    for host in ("laptop1", "192.0.2.101"):
        found = told(inventories, host=host, alert="DiskFull")
        assert (found["about"], found["hours"], found["why"]) == ("DiskFull on laptop1", 2, "maintenance")
        assert [(one["name"], one["value"]) for one in found["matchers"]] == [
            ("alertname", "DiskFull"),
            ("host", "laptop1"),
        ]


def test_the_alerts_are_those_of_the_rules() -> None:
    assert {"DiskFull", "RayHeadDown", "BrokerDown"} <= set(alert_names())
    assert not [name for name in alert_names() if ":" in name]
