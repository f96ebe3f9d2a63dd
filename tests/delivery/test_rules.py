"""The alerts, judged by Prometheus' own tool with made-up figures: each fires, and each is seen not to."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from muster import expressions
from tests.delivery.conftest import ROOT, infra_image

RULES, CASES = ROOT / "roles/prometheus/files/rules", ROOT / "tests/rules"
FILES = sorted(path.name for path in RULES.glob("*.yml"))


def rules(path: Path) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("name", FILES)
def test_every_alert_fires_when_it_should_and_only_then(name: str) -> None:
    volumes = [part for path, place in ((RULES, "/rules"), (CASES, "/cases")) for part in ("-v", f"{path}:{place}:ro")]
    command = ["docker", "run", "--rm", "--network", "none", *volumes, infra_image()]
    done = subprocess.run([*command, "promtool", "test", "rules", f"/cases/{name}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", FILES)
def test_every_alert_is_tried_both_ways_and_says_what_to_do(name: str) -> None:
    cases = [
        case for test in yaml.safe_load((CASES / name).read_text())["tests"] for case in test.get("alert_rule_test", ())
    ]
    alerts = {rule["alert"]: rule for rule in rules(RULES / name) if "alert" in rule}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(alerts)
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == set(alerts)
    for alert in alerts.values():
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert set(alert["annotations"]) == {"summary", "fix"}


def test_every_expression_of_dashboards_and_the_page_is_promql(tmp_path: Path) -> None:
    shown = [one for one in expressions.every() if not one.file.startswith(expressions.RULES)]
    rules = [{"record": f"shown_{number}", "expr": one.text} for number, one in enumerate(shown)]
    (tmp_path / "shown.yml").write_text(yaml.safe_dump({"groups": [{"name": "shown", "rules": rules}]}))
    tmp_path.chmod(0o755)
    command = ["docker", "run", "--rm", "--network", "none", "-v", f"{tmp_path}:/rules:ro", infra_image()]
    done = subprocess.run([*command, "promtool", "check", "rules", "/rules/shown.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(shown) > 50
