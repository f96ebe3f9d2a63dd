"""Every default of every role is documented, with the type that it has."""

from collections.abc import Mapping
from typing import Any

import pytest

from muster.known import role_options
from muster.preflight import validate

ROLES = {name: (options, defaults) for name, options, defaults in role_options()}


@pytest.mark.parametrize("role", sorted(ROLES))
def test_defaults_and_argument_specs_agree(role: str) -> None:
    options, defaults = ROLES[role]
    assert options or not defaults, f"roles/{role}/meta/argument_specs.yml is missing"
    undocumented = {name for name in defaults if not name.startswith("__")} - set(options)
    assert not undocumented, f"add to roles/{role}/meta/argument_specs.yml: {sorted(undocumented)}"
    assert not list(mistakes(options, defaults))


def mistakes(options: Mapping[str, Mapping[str, Any]], defaults: Mapping[str, Any]) -> list[str]:
    found = []
    for name, option in options.items():
        if not option.get("description"):
            found.append(f"{name} has no description")
        if name not in defaults or "{{" in str(defaults[name]):
            continue
        if wrong := validate(option, defaults[name]):
            found.append(f"{name}: its default {defaults[name]!r} is not valid: {wrong}")
        if "default" in option and option["default"] != defaults[name]:
            found.append(f"{name}: the default is {defaults[name]!r}, the documentation says {option['default']!r}")
    return found


@pytest.mark.parametrize("role", sorted(ROLES))
def test_defaults_are_short_and_carry_the_roles_name(role: str) -> None:
    _, defaults = ROLES[role]
    assert len(defaults) < 60
    strangers = [name for name in defaults if not name.lstrip("_").startswith(role)]
    assert not strangers, f"roles/{role}/defaults/main.yml: {strangers}"
