"""The walk over all PromQL expressions, and the names of ours in them."""

from __future__ import annotations

import re

import pytest

from muster import expressions
from ray_jobs import figures

from .conftest import ROOT
from .test_host_figures import script as host_figures

EVERY = list(expressions.every())
OURS = re.compile(r"\b(?:ray_)?muster[_:][\w:]+")


def test_rules_dashboards_and_the_page_are_walked() -> None:
    files = {one.file for one in EVERY}
    folders = (expressions.RULES, expressions.DASHBOARDS)
    shipped = {str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).iterdir()}
    assert files == shipped | {expressions.PAGE}
    assert len({(one.file, one.place) for one in EVERY}) == len(EVERY)
    assert {one.is_alert for one in EVERY if one.file.startswith(expressions.RULES)} == {True, False}


def test_nothing_is_left_to_choose() -> None:
    # $1 is what an expression of label_replace found.
    assert not [one for one in EVERY if re.search(r"\$(?!1\b)", one.text)]
    text = 'rate(x{host=~"$host", node="${node:regex}"}[$__rate_interval]) > avg_over_time(y[${__range}])'
    assert expressions.chosen(text) == 'rate(x{host=~".*", node=".*"}[5m]) > avg_over_time(y[5m])'


@pytest.mark.parametrize(
    ("text", "series"),
    [
        ("up", ["up"]),
        ('sum by (host) (rate(a_total{x="}b("}[5m])) / on (host) group_left (kind) b > 5', ['a_total{x="}b("}', "b"]),
        ("time() - max(muster:x:y) or vector(0) and a offset 5m > bool 1e3", ["muster:x:y", "a"]),
        ('a + a{b=~"c"} unless ignoring (d) a', ["a", 'a{b=~"c"}']),
        ("sum(increase(a[1d:5m])) without (b)", ["a"]),
        ('label_replace(a{b="c, d"}, "e", "$1", "f", "(.*)") < g{h="i", j="k"}', ['a{b="c, d"}', 'g{h="i", j="k"}']),
    ],
)
def test_what_an_expression_reads(text: str, series: list[str]) -> None:
    assert expressions.selectors(text) == series


@pytest.mark.parametrize("file", sorted({one.file for one in EVERY}))
def test_figures_of_ours_are_those_that_are_made(file: str) -> None:
    """Others' names only a running cluster knows."""
    source = (ROOT / "celery_app/metrics.py").read_text(encoding="utf-8")
    exported = set(re.findall(r'"(muster_\w+)"', source)) | {f"muster_host_{name}" for name in host_figures.HELP}
    known = exported | {f"{name}_total" for name in exported}
    known |= {f"ray_{figures.PREFIX}{name}" for name in figures.SHOWN}
    known |= {one.place.removeprefix("record ") for one in EVERY if one.place.startswith("record ")}
    assert not {name for one in EVERY if one.file == file for name in OURS.findall(one.text)} - known
