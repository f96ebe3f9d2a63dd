"""What docs/laptops.md says of variables, times and commands is so."""

from __future__ import annotations

import re

import yaml

from celery_app.hosts import DAY, PATIENCE
from muster import cli

from .conftest import ROOT

TEXT = (ROOT / "docs/laptops.md").read_text()


def test_every_policy_stands_there_with_its_default() -> None:
    rows = {row[0].strip("`"): row[1] for row in re.findall(r"^\| (`laptop_[a-z_]+`) \| (.*?) \|", TEXT, re.MULTILINE)}
    known = yaml.safe_load((ROOT / "group_vars/all/laptop.yml").read_text())
    wished = {name: value for name, value in known.items() if name not in ("laptop_dir", "laptop_root")}
    assert rows.pop("laptop_networks") == "none"
    assert rows.pop("laptop_hours") == "always" and wished.pop("laptop_hours") == []
    assert {name: default.strip("`") for name, default in rows.items()} == {
        name: str(value) for name, value in wished.items()
    }


def test_the_times_are_those_of_the_code() -> None:
    assert f"silent for {PATIENCE['laptop'].asleep:.0f} s" in TEXT
    assert f"asleep for {PATIENCE['laptop'].lost / DAY:.0f} days" in TEXT
    assert f"heard of for {PATIENCE['server'].lost:.0f} s" in TEXT


def test_its_commands_exist() -> None:
    said = re.findall(r"^(?:muster|ansible-playbook) .*", TEXT, re.MULTILINE)
    assert len(said) == 5
    for line in said:
        words = line.split()
        if words[0] == "muster":
            assert cli.parser().parse_args(words[1:]).command == "laptops"
        else:
            assert (ROOT / words[3]).is_file(), line
