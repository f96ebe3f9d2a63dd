"""The dashboards are what Grafana reads, and say what they show; Grafana itself is not here to be asked."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard
from pydantic import ConfigDict, TypeAdapter, ValidationError

from muster import expressions

from .conftest import ROOT

FOLDER = ROOT / expressions.DASHBOARDS
FILES = sorted(FOLDER.glob("*.json"))
SOURCE = {"type": "prometheus", "uid": "muster-prometheus"}
UNITS = {value for name, value in vars(units).items() if isinstance(value, str) and not name.startswith("__")}
KINDS = {"stat", "state-timeline", "timeseries"}
OF_GRAFANA = ConfigDict(arbitrary_types_allowed=True)
register_default_plugins()

each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def lost(wanted: Any, found: Any, where: str = "") -> Iterator[str]:
    """What Grafana's types did not take over, by its place."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key, value in wanted.items():
            if key not in found:
                yield f"{where}.{key}"
            else:
                yield from lost(value, found[key], f"{where}.{key}")
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for index, (one, other) in enumerate(zip(wanted, found, strict=True)):
            yield from lost(one, other, f"{where}[{index}]")
    elif wanted != found:
        yield where


def misfits(value: Any, where: str = "dashboard") -> Iterator[str]:
    """Attributes of Grafana's objects, to the last, that are not of the type which Grafana's schema gives them."""
    if isinstance(value, list | tuple):
        for index, one in enumerate(value):
            yield from misfits(one, f"{where}[{index}]")
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from misfits(one, f"{where}.{key}")
    elif type(value).__module__.startswith("grafana_foundation_sdk.models") and hasattr(value, "__dict__"):
        for name, hint in get_type_hints(type(value)).items():
            inner = getattr(value, name)
            try:
                # A name of an enumeration is equal to its member, and "1" is not equal to 1.
                if TypeAdapter(hint, config=OF_GRAFANA).validate_python(inner) != inner:
                    yield f"{where}.{name}"
            except ValidationError:
                yield f"{where}.{name}"
            yield from misfits(inner, f"{where}.{name}")


def problems(dashboard: dict[str, Any]) -> list[str]:
    """What Grafana's generated types say against it."""
    taken = Dashboard.from_json(dashboard)
    return [*lost(dashboard, json.loads(JSONEncoder().encode(taken)), "dashboard"), *misfits(taken)]


@each
def test_it_is_of_grafana_s_schema(path: Path) -> None:
    assert not problems(read(path))


def test_what_is_not_of_the_schema_is_seen() -> None:
    def spoilt(place: str, value: Any) -> list[str]:
        dashboard = read(FILES[0])
        *way, last = place.split(".")
        inner: Any = dashboard
        for step in way:
            inner = inner[int(step)] if step.isdigit() else inner[step]
        inner[last] = value
        return problems(dashboard)

    assert spoilt("panels.0.gridpos", {}) == ["dashboard.panels[0].gridpos"]
    assert spoilt("panels.0.options.colourMode", "value") == ["dashboard.panels[0].options.colourMode"]
    assert spoilt("panels.0.targets.0.expression", "up") == ["dashboard.panels[0].targets[0].expression"]
    assert spoilt("panels.0.id", "1") == ["dashboard.panels[0].id_val"]
    assert spoilt("panels.0.targets.0.expr", 5) == ["dashboard.panels[0].targets[0].expr"]
    assert spoilt("panels.0.options.graphMode", "bars") == ["dashboard.panels[0].options.graph_mode"]


def test_each_is_the_only_one_of_its_name() -> None:
    dashboards = [read(path) for path in FILES]
    for key in ("uid", "title"):
        assert not [name for name, times in Counter(one[key] for one in dashboards).items() if times > 1]
    assert {one["uid"] for one in dashboards} == {f"muster-{path.stem}" for path in FILES}


@each
def test_every_panel_says_what_it_shows(path: Path) -> None:
    dashboard = read(path)
    panels = dashboard["panels"]
    assert 6 <= len(panels) <= 12 and dashboard["description"].endswith(".")
    for key in ("id", "title"):
        assert not [name for name, times in Counter(panel[key] for panel in panels).items() if times > 1]
    for panel in panels:
        assert panel["type"] in KINDS and panel["title"] and panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["targets"] and panel["datasource"] == SOURCE, panel["title"]
        assert all(target["datasource"] == SOURCE and target["expr"] for target in panel["targets"]), panel["title"]
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters), panel["title"]


@each
def test_panels_stand_side_by_side(path: Path) -> None:
    places = [panel["gridPos"] for panel in read(path)["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)


@each
def test_what_can_be_chosen_is_used_and_nothing_else(path: Path) -> None:
    dashboard = read(path)
    variables = dashboard["templating"]["list"]
    used = set(re.findall(r"\$(\w+)", json.dumps([panel["targets"] for panel in dashboard["panels"]])))
    assert {variable["name"] for variable in variables} == {name for name in used if not name.startswith("__")}
    assert all(variable["datasource"] == SOURCE for variable in variables)


@each
def test_nothing_comes_from_elsewhere(path: Path) -> None:
    assert not re.search(r"https?:|//", path.read_text(encoding="utf-8"))
