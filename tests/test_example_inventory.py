"""The example inventory is what the old deployment was, and has no mistake. Its hosts are never contacted."""

import pytest

from muster import inventory, preflight
from muster.checks import worker_sizes
from muster.load import load_inventory
from muster.sizing import human

from .conftest import ROOT, Groups, Vars

EXAMPLE = ROOT / "inventory" / "example"
# server: workers, CPUs and memory of each, as they were given to deploy-multi-workers.sh
OLD = {"server84": (3, 3, "8.0G"), "server80": (4, 2, "6.0G"), "server81": (2, 2, "6.0G"), "server82": (1, 2, "6.0G")}


@pytest.fixture(scope="module")
def example() -> tuple[Vars, Groups]:
    return load_inventory([EXAMPLE])


def test_it_has_no_problem(example: tuple[Vars, Groups]) -> None:
    assert preflight.inventory_problems(*example) == []


def test_the_fleet_is_the_old_one(example: tuple[Vars, Groups]) -> None:
    hostvars, groups = example
    assert groups["ray_head"] == ["server84"]
    assert {name: hostvars[name]["muster_address"] for name in groups["cluster"]} == {
        "server84": "10.0.0.84",
        "server80": "10.0.0.80",
        "server81": "10.0.0.81",
        "server82": "10.0.0.82",
        "laptop1": "10.0.0.85",
        "laptop2": "10.0.0.86",
    }
    for name, (number, cpus, memory) in OLD.items():
        sizes = worker_sizes(name, hostvars[name], groups, {"cpus": 16, "memory_mb": 64_000})
        assert [(one["cpus"], human(one["memory"])) for one in sizes] == [(cpus, memory)] * number


def test_every_worker_has_its_ports_and_laptops_run_no_ray(example: tuple[Vars, Groups]) -> None:
    hostvars, groups = example
    plan = inventory.port_plan(hostvars, groups, hostvars["server84"]["muster_ports"])
    nodes = {name: [node["name"] for node in host["ray_nodes"]] for name, host in plan.items()}
    assert nodes["server84"] == ["head", "worker-1", "worker-2", "worker-3"]
    assert [len(nodes[name]) for name in ("server80", "server81", "server82", "laptop1", "laptop2")] == [4, 2, 1, 0, 0]
    assert plan["server84"]["services"]["ray_gcs"] == 6379


def test_each_machine_is_one_line() -> None:
    lines = (EXAMPLE / "hosts.yml").read_text().splitlines()
    for name in (*OLD, "laptop1", "laptop2"):
        assert any(line.strip().startswith(f"{name}: {{ansible_host: 10.0.0.") for line in lines)


def test_its_groups_are_those_of_the_lab() -> None:
    _, lab = load_inventory([ROOT / "inventory/lab/groups.yml"])
    _, example = load_inventory([EXAMPLE])
    assert set(example) == set(lab)
