"""The hardware table: of what was seen now, over what was seen before."""

import json

from muster import hardware
from muster.preflight import hardware_report

from .conftest import Inventories, probed
from .test_host_checks import GOOD


def test_gpus_are_counted_by_model() -> None:
    row = hardware.row("a", ["server"], {**GOOD, "gpus": ["RTX 3090", "RTX 3090", "T4"]})
    assert row["gpus"] == "2 x RTX 3090, 1 x T4"
    assert (row["class"], row["memory"], row["cpus"]) == ("server", "15.6G", "8")


def test_a_run_on_one_host_keeps_the_others_and_forgets_those_that_left() -> None:
    before = [hardware.row(name, ["server"], GOOD) for name in ("a", "b", "gone")]
    now = hardware.row("b", ["server"], {**GOOD, "cpus": 16})
    merged = hardware.merge(json.dumps(before), [now], ["a", "b", "c"])
    assert [(row["host"], row["cpus"]) for row in merged] == [("a", "8"), ("b", "16")]


def test_a_damaged_report_is_made_anew() -> None:
    assert hardware.merge("{]", [], ["a"]) == []


def test_the_page_and_the_data_say_the_same(inventories: Inventories) -> None:
    hostvars, groups = inventories.load()
    probes = {name: GOOD if name == "head" else {"silent": "x"} for name in hostvars}
    report = hardware_report(probed(hostvars, probes), groups, list(probes))
    assert [row["host"] for row in json.loads(report["json"])] == ["head"]
    assert "| head | server | Debian 13 |" in report["md"]
    assert report["lines"][0].startswith("host") and len(report["lines"]) == 2
