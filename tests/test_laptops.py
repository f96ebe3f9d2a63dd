"""add-laptop.yml and remove-laptop.yml: their arguments, and the file that they keep. No host is contacted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from muster import laptops
from muster.errors import MusterError
from muster.load import load_inventory

from .conftest import HOSTS, Inventories

NAMES = {"anna.example.org": "192.0.2.150", "server1.example.org": "192.0.2.11", "Bert": "2001:db8::7"}
KNOWN = {"preflight_knock_seconds", "ray_tls"}


class Fleet:
    """An inventory on disk that the playbooks' arguments are tried on."""

    def __init__(self, inventories: Inventories) -> None:
        self.folder = inventories.write(HOSTS)
        self.file = self.folder / "laptops.yml"

    def call(self, what: Callable[..., Any], sources: list[str], **given: str) -> Any:
        hostvars, groups = load_inventory(sources)
        return what(given, given, KNOWN, hostvars, groups, sources, lambda name: NAMES.get(name, ""))

    def add(self, **given: str) -> laptops.Laptop:
        """What add-laptop.yml does, up to the file."""
        found: laptops.Laptop = self.call(laptops.add, [str(self.folder)], **given)
        if found["variables"]:
            self.file.write_text(found["text"])
        return found

    def remove(self, **given: str) -> laptops.Leaver:
        """What remove-laptop.yml does, up to the file."""
        found: laptops.Leaver = self.call(laptops.remove, [str(self.folder)], **given)
        if found["known"]:
            self.file.write_text(found["text"])
        return found

    def lines(self) -> list[str]:
        return [line for line in self.file.read_text().splitlines() if not line.startswith("#")]


@pytest.fixture
def fleet(inventories: Inventories) -> Fleet:
    return Fleet(inventories)


@pytest.mark.parametrize(
    ("given", "problem", "fix"),
    [
        ({}, "no host is given", "add-laptop.yml -e host=10.0.0.85"),
        ({"host": " "}, "no host is given", "host=10.0.0.85"),
        ({"hots": "192.0.2.7"}, "the argument hots is unknown", "write host"),
        ({"host": "192.0.2.7", "memroy": "2G"}, "the argument memroy is unknown", "write memory"),
        (
            {"host": "192.0.2.7", "colour": "blue"},
            "the argument colour is unknown",
            "leave it out; there are host, name",
        ),
        ({"host": "192.0.2.300"}, "host is '192.0.2.300', which is no address", "host=10.0.0.85"),
        ({"host": "192.0.2"}, "host is '192.0.2', which is no address", "host=10.0.0.85"),
        ({"host": "nobody.example.org"}, "which has no address", "host=10.0.0.85"),
        ({"host": "anna@192.0.2.7"}, "neither an address nor a name", "host=10.0.0.85"),
        ({"host": "192.0.2.11"}, "192.0.2.11 is server1, and server1 is a server", "give a laptop's address"),
        ({"host": "server1"}, "server1 is a server in this inventory", "give a laptop's address"),
        ({"host": "server1.example.org"}, "server1 is a server", "give a laptop's address"),
        ({"host": "192.0.2.7", "name": "server1"}, "server1 is a server", "or another name"),
        ({"host": "192.0.2.7", "name": "laptop1"}, "laptop1 belongs to the laptop at 192.0.2.101", "another name"),
        ({"host": "192.0.2.101", "name": "anna"}, "192.0.2.101 is laptop1 in the inventory, not anna", "name=laptop1"),
        ({"host": "192.0.2.11", "name": "anna"}, "192.0.2.11 is server1, and server1 is a server", "laptop's address"),
        ({"host": "192.0.2.7", "name": "ray_worker"}, "name is 'ray_worker'", "small letters"),
        ({"host": "192.0.2.7", "name": "flower"}, "which is the name of a group", "name=anna"),
        ({"host": "192.0.2.7", "name": "Anna's"}, 'name is "Anna\'s"', "small letters, digits and hyphens"),
        ({"host": "192.0.2.7", "user": "a b"}, "user is 'a b'", "user=anna"),
        ({"host": "192.0.2.7", "port": "ssh"}, "port is 'ssh'", "1 to 65535"),
        ({"host": "192.0.2.7", "port": "70000"}, "port is '70000'", "1 to 65535"),
        ({"host": "192.0.2.7", "ray": "perhaps"}, "ray is 'perhaps'", "ray=true or ray=false"),
        ({"host": "192.0.2.7", "cpus": "two"}, "cpus is 'two'", "cpus=2"),
        ({"host": "192.0.2.7", "cpus": "0"}, "cpus is '0'", "cpus=2"),
        ({"host": "192.0.2.7", "memory": "much"}, "memory is 'much'", "memory=2G"),
        ({"host": "192.0.2.7", "memory": "much", "ray": "true"}, "memory is 'much'", "memory=2G"),
        ({"host": "192.0.2.7", "memory": "100M"}, "each of 1 processes would have", "raise memory"),
        ({"host": "192.0.2.7", "cpus": "8", "memory": "512M"}, "each of 8 processes would have", "raise memory"),
        ({"host": "laptop1", "cpus": "2"}, "laptop1 is in the inventory, but not in laptops.yml", "by hand"),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else None,
)
def test_a_bad_argument_is_one_line_with_the_fix(
    fleet: Fleet, given: Mapping[str, str], problem: str, fix: str
) -> None:
    with pytest.raises(MusterError) as caught:
        fleet.add(**given)
    said = str(caught.value)
    assert problem in said and fix in said.partition(" Fix: ")[2] and "\n" not in said
    assert not fleet.file.exists()


def test_an_argument_that_a_role_knows_is_let_through(fleet: Fleet) -> None:
    assert fleet.add(host="192.0.2.7", preflight_knock_seconds="8")["name"] == "laptop-192-0-2-7"


def test_an_inventory_that_is_one_file_has_no_place_for_laptops(fleet: Fleet) -> None:
    with pytest.raises(MusterError, match=f"Fix: give its folder: -i {fleet.folder}"):
        fleet.call(laptops.add, [str(fleet.folder / "groups.yml"), str(fleet.folder / "hosts.yml")], host="192.0.2.7")


@pytest.mark.parametrize(
    ("host", "name", "address"),
    [
        ("192.0.2.7", "laptop-192-0-2-7", "192.0.2.7"),
        ("2001:DB8:0::7", "laptop-2001-db8-7", "2001:db8::7"),
        ("anna.example.org", "anna", "192.0.2.150"),
        ("Bert", "bert", "2001:db8::7"),
    ],
)
def test_a_name_is_made_from_the_host_and_stays(fleet: Fleet, host: str, name: str, address: str) -> None:
    first = fleet.add(host=host)
    assert (first["name"], first["address"], first["variables"]) == (name, address, {"ansible_host": address})
    assert fleet.add(host=host) == fleet.add(host=address) == fleet.add(host=name) == first
    hostvars, groups = load_inventory([fleet.folder])
    assert hostvars[name]["muster_address"] == address
    assert {name, "laptop1"} == set(groups["laptop"]) <= set(groups["celery_worker"])


def test_the_file_is_a_line_per_laptop_in_the_order_of_names(fleet: Fleet) -> None:
    fleet.add(host="192.0.2.8", name="carl", user="carl", port="2222")
    fleet.add(host="192.0.2.7", name="anna", cpus="2", memory="1G")
    fleet.add(host="192.0.2.9", name="bert", ray="yes", cpus="2", memory="4G")
    text = fleet.file.read_text()
    assert fleet.lines() == [
        "laptop:",
        "  hosts:",
        "    anna: {ansible_host: 192.0.2.7, celery_workers: [{queues: [default, data], concurrency: 2, memory: 1G}]}",
        "    bert: {ansible_host: 192.0.2.9, ray_on_laptop: true, ray_worker_cpus: 2, ray_worker_memory: 4G}",
        "    carl: {ansible_host: 192.0.2.8, ansible_user: carl, ansible_port: 2222}",
    ]
    fleet.add(host="192.0.2.7")
    assert fleet.file.read_text() == text
    fleet.add(host="bert", memory="2G")
    assert "bert: {ansible_host: 192.0.2.9, ray_on_laptop: true, ray_worker_cpus: 2, ray_worker_memory: 2G}" in (
        fleet.file.read_text()
    )


def test_what_others_wrote_into_the_file_stays(fleet: Fleet) -> None:
    fleet.file.write_text(
        "laptop:\n  vars: {laptop_lid: ignore}\n  hosts:\n    zoe:\n      ansible_host: 192.0.2.9\n"
        "      ansible_become_password: !vault |\n        $ANSIBLE_VAULT;1.1;AES256\n        6162\n"
        "server: {vars: {ray_reserve_cpus: 2}}\n"
    )
    before = yaml.load(fleet.file.read_text(), Loader=laptops._Loader)
    fleet.add(host="192.0.2.7", name="anna")
    after = yaml.load(fleet.file.read_text(), Loader=laptops._Loader)
    assert after["laptop"]["hosts"].pop("anna") == {"ansible_host": "192.0.2.7"}
    assert after == before
    assert '!vault "$ANSIBLE_VAULT;1.1;AES256\\n6162\\n"' in fleet.file.read_text()


@pytest.mark.parametrize("text", ["laptop: [anna]\n", "- anna\n", "laptop: {hosts: [anna]}\n", "laptop: {\n"])
def test_a_file_that_is_none_of_ours_is_left_alone(fleet: Fleet, text: str) -> None:
    hostvars, groups = load_inventory([fleet.folder])
    fleet.file.write_text(text)
    with pytest.raises(MusterError, match=r"laptops\.yml"):
        laptops.add({"host": "192.0.2.7"}, [], KNOWN, hostvars, groups, [str(fleet.folder)])
    assert fleet.file.read_text() == text


NAME = st.from_regex(r"[a-z][a-z0-9-]{0,10}[a-z0-9]", fullmatch=True)
# Text over several lines would take several lines.
TEXT = st.text("abcXYZ 019:#{}[],'\"&*!|>%@`-.~", max_size=20)
VALUE = st.one_of(TEXT, st.integers(), st.booleans(), st.lists(TEXT, max_size=3))


@example({"no": {"port": "on"}, "10": {}})
@settings(max_examples=150)
@given(st.dictionaries(NAME, st.dictionaries(NAME, VALUE, max_size=4), max_size=5))
def test_whatever_is_written_is_read_again_and_written_the_same(hosts: dict[str, dict[str, Any]]) -> None:
    file = Path("laptops.yml")
    text = laptops.written(file, {"laptop": {"hosts": json.loads(json.dumps(hosts))}}, laptops.HEADER)
    data = yaml.load(text, Loader=laptops._Loader)
    assert data == {"laptop": {"hosts": hosts}}
    assert laptops.written(file, data, laptops.HEADER) == text
    assert len([line for line in text.splitlines() if line.startswith("    ")]) == len(hosts)


def test_one_that_leaves_takes_its_line_along(fleet: Fleet) -> None:
    fleet.add(host="192.0.2.7", name="anna")
    fleet.add(host="192.0.2.8", name="bert", ray="true")
    gone = fleet.remove(host="192.0.2.8")
    assert (gone["name"], gone["known"], gone["ray"], gone["lost"]) == ("bert", True, True, False)
    assert "bert" not in fleet.file.read_text() and "anna" in fleet.file.read_text()
    again = fleet.remove(host="bert", lost="true")
    assert (again["known"], again["lost"]) == (False, True)
    assert not fleet.remove(host="192.0.2.8")["known"]
    assert fleet.remove(host="anna")["ray"] is False
    assert fleet.lines() == ["laptop:", "  hosts: {}"]
    load_inventory([fleet.folder])


@pytest.mark.parametrize(
    ("given", "problem", "fix"),
    [
        ({}, "no host is given", "remove-laptop.yml -e host=laptop1"),
        ({"host": "server1"}, "server1 is a server in this inventory", "site.yml"),
        ({"host": "192.0.2.10"}, "192.0.2.10 is head, and head is a server", "site.yml"),
        ({"host": "head", "lost": "true"}, "head is a server", "site.yml"),
        ({"host": "laptop1"}, "laptop1 is in the inventory, but not in laptops.yml", "move its line to"),
        ({"host": "anna", "lost": "gone"}, "lost is 'gone'", "lost=true or lost=false"),
        ({"host": "anna", "forced": "yes"}, "the argument forced is unknown", "there are host, name, lost"),
    ],
)
def test_who_cannot_leave_stays(fleet: Fleet, given: Mapping[str, str], problem: str, fix: str) -> None:
    fleet.add(host="192.0.2.7", name="anna")
    before = fleet.file.read_text()
    with pytest.raises(MusterError) as caught:
        fleet.remove(**given)
    assert problem in str(caught.value) and fix in str(caught.value).partition(" Fix: ")[2]
    assert fleet.file.read_text() == before
