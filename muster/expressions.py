"""Every PromQL expression that the repository ships: in rules, dashboards and the status page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from muster.known import ROOT, read_yaml

RULES, DASHBOARDS = "roles/prometheus/files/rules", "roles/grafana/files/dashboards"
PAGE = "roles/gateway/files/page/queries.json"
# Grafana's own variables, which are times; what else begins with a $ stands for what somebody chose.
TIME = re.compile(r"\$\{?__(?:rate_interval|interval|range)\}?")
CHOSEN = re.compile(r"\$\{\w+(?::\w+)?\}|\$\w+")
OF_VARIABLE = re.compile(r"label_values\((.+), *\w+\)")
# What stands in an expression beside the names of series. Arguments that are text come after a comma.
TEXT = re.compile(r', *"(?:\\.|[^"\\])*"(?= *[,)])')
GROUPING = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right) *\([^)]*\)")
RANGE = re.compile(r"\[[^\]]*\]")
SERIES = re.compile(r'(?<![\w:.])([a-zA-Z_:][\w:]*) *(\{(?:"(?:\\.|[^"\\])*"|[^}"])*\})?(?! *\(|[\w:])')
WORDS = frozenset({"and", "or", "unless", "bool", "offset", "group_left", "group_right", "inf", "nan"})


class Expression(NamedTuple):
    """Where one is, and what it says with nothing left to choose."""

    file: str
    place: str
    text: str

    @property
    def is_alert(self) -> bool:
        """Returns nothing while all is well."""
        return self.place.startswith("alert ")


def every(root: Path = ROOT) -> Iterator[Expression]:
    """All of them, file by file."""
    yield from of_rules(root)
    yield from of_dashboards(root)
    for name, text in json.loads((root / PAGE).read_text(encoding="utf-8")).items():
        yield Expression(PAGE, name, text)


def of_rules(root: Path = ROOT) -> Iterator[Expression]:
    for path in sorted((root / RULES).glob("*.yml")):
        for group in read_yaml(path)["groups"]:
            for rule in group["rules"]:
                kind = "alert" if "alert" in rule else "record"
                yield Expression(str(path.relative_to(root)), f"{kind} {rule[kind]}", rule["expr"])


def of_dashboards(root: Path = ROOT) -> Iterator[Expression]:
    for path in sorted((root / DASHBOARDS).glob("*.json")):
        file, dashboard = str(path.relative_to(root)), json.loads(path.read_text(encoding="utf-8"))
        for variable in dashboard["templating"]["list"]:
            if found := OF_VARIABLE.fullmatch(_query(variable)):
                yield Expression(file, f"variable {variable['name']}", chosen(found[1]))
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                yield Expression(file, f"{panel['title']} {target['refId']}", chosen(target["expr"]))


def _query(variable: dict[str, Any]) -> str:
    query = variable.get("query", "")
    return str(query["query"] if isinstance(query, dict) else query)


def chosen(text: str) -> str:
    """As Grafana sends it when everything is chosen."""
    return CHOSEN.sub(".*", TIME.sub("5m", text))


def selectors(text: str) -> list[str]:
    """The series that an expression reads, each as a selector of its own: an alert is silent, what it reads is not."""
    bare = GROUPING.sub(" ", RANGE.sub(" ", TEXT.sub("", text)))
    found = (name + labels for name, labels in SERIES.findall(bare) if name.lower() not in WORDS)
    return list(dict.fromkeys(found))
