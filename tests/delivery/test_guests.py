"""What runs on a laptop's Ray node, with a real Ray: what says that it bears repetition, and nothing else."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader

from .test_bridge import Site, docker, eventually

ROOT = Path(__file__).resolve().parents[2]
DRIVER = """
import json, sys, time
import ray
from ray_jobs import guests
from collections import Counter
ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
def where(seconds=0.2, mark=""):
    import ray, time
    if mark:
        print(mark, flush=True)
    time.sleep(seconds)
    return ray.get_runtime_context().get_node_labels()["class"]
remote = ray.remote(where)
def many(**options):
    return Counter(ray.get([remote.options(**options).remote() for _ in range(12)]))
def say(**found):
    print(json.dumps(found))
"""


def offered(group: str) -> dict[str, Any]:
    """The node that the role makes of a host that would have 2 CPUs."""
    from ansible.template import Templar, trust_as_template

    init_plugin_loader()
    known = DataLoader().load_from_file(str(ROOT / "roles/ray_worker/vars/main.yml"))
    nodes = Templar(
        loader=DataLoader(),
        variables={
            "__ray_worker_sizes": [{"name": "worker-1", "cpus": 2, "labels": {"class": "mine"}, "resources": {"x": 1}}],
            "__ray_worker_ports": [{"name": "worker-1"}],
            "__ray_worker_gcs": 6379,
            "ansible_facts": {"processor_vcpus": 4},
            "group_names": [group],
        },
    ).template(trust_as_template(known["__ray_worker_nodes"]))
    (node,) = nodes
    return dict(node)


def laptop_offer() -> str:
    """Options of `ray start`."""
    node = offered("laptop")
    labels = ",".join(f"{key}={value}" for key, value in node["labels"].items())
    return f"--num-cpus={node['offered_cpus']} --resources='{json.dumps(node['resources'])}' --labels=host=l,{labels}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(f"guests-{uuid.uuid4().hex[:8]}", tmp_path_factory.mktemp("site"))
    try:
        made.up()
        (made.folder / "laptop").mkdir()
        (made.folder / "laptop").chmod(0o777)
        made.run("laptop", "node", *made.code, *made.ray, "--volume", f"{made.folder}/laptop:/var/lib/node",
                 f"exec ray start --block --address={made.address}:6399 --node-ip-address={made.address}"
                 f" {laptop_offer()} --memory=500000000 --object-store-memory=100000000"
                 " --dashboard-agent-listen-port=52499 --temp-dir=/var/lib/node/ray --disable-usage-stats")  # fmt: skip
        eventually(lambda: made.alive() == 3, 120, "for the laptop's node")
        yield made
    finally:
        made.down()


def drive(site: Site, code: str) -> dict[str, Any]:
    """What a driver beside a server's node says last."""
    said = site.inside("worker", DRIVER + code)
    return dict(json.loads(said.splitlines()[-1]))


def test_a_laptop_offers_its_cpus_under_another_name() -> None:
    keys = ("cpus", "offered_cpus", "resources", "labels")
    assert {key: offered("laptop")[key] for key in keys} == {
        "cpus": 2, "offered_cpus": 0, "resources": {"x": 1, "laptop": 2},
        "labels": {"class": "laptop", "node": "worker-1"},
    }  # fmt: skip
    assert {key: offered("server")[key] for key in keys} == {
        "cpus": 2, "offered_cpus": 2, "resources": {"x": 1}, "labels": {"class": "mine", "node": "worker-1"},
    }  # fmt: skip


def test_nothing_lands_on_a_laptop_that_does_not_ask_for_it(site: Site) -> None:
    found = drive(
        site,
        """
@ray.remote
class Actor:
    def where(self):
        return where(0)
actors = [Actor.remote() for _ in range(4)]
# It could run on the laptop alone, and waits rather than that.
barred = remote.options(**guests.at_home(num_cpus=0, resources={"laptop": 1})).remote(0)
say(
    tasks=many(),
    retried=many(max_retries=5),
    spread=many(scheduling_strategy="SPREAD"),
    actors=Counter(ray.get([actor.where.remote() for actor in actors])),
    ours=many(**guests.at_home(num_cpus=0, scheduling_strategy="SPREAD")),
    marked=many(**guests.on_laptop()),
    barred=len(ray.wait([barred], timeout=5)[0]),
)
""",
    )
    assert found.pop("marked") == {"laptop": 12}
    assert found.pop("barred") == 0
    assert set(found) == {"tasks", "retried", "spread", "actors", "ours"}
    for what, where in found.items():
        assert set(where) == {"server"}, (what, where)


def test_the_screens_and_the_smoke_test_see_its_cpus(site: Site) -> None:
    code = "from ray_jobs import nodes; import json; print(json.dumps({n.name: n.cpus for n in nodes.listing()}))"
    assert json.loads(site.inside("head", code)) == {"h/head": 0, "h/worker-1": 2, "l/worker-1": 2}


@pytest.fixture
def beside(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The app, and a Celery worker in a container beside the server's node."""
    from tests.delivery import bridge_app

    settings = [part for key, value in site.environment().items() if key != "RAY_AUTH_TOKEN"
                for part in ("--env", f"{key}={value}")]  # fmt: skip
    name = site.run("celery", "node", *site.code, *site.ray, *settings, "--tmpfs", "/tmp:mode=1777",
                    "--volume", f"{site.folder}/worker:/var/lib/node", "--workdir", "/code",
                    "exec celery --app=tests.delivery.bridge_app:app worker -c 1 --loglevel=INFO")  # fmt: skip
    bridge_app.app.conf.update(broker_url=site.redis, result_backend=site.redis)
    yield bridge_app
    print(docker("logs", "--tail", "60", name, check=False))
    docker("rm", "--force", name)


def test_a_laptop_leaves_in_the_middle_and_nothing_is_missing(site: Site, beside: Any) -> None:
    def call(**options: Any) -> Any:
        return beside.on_ray.delay("where", [], {"timeout": 90, **options}).get(timeout=120)

    asked = {"retryable": True, "label_selector": {"class": "laptop"}}
    assert call(**asked) == "laptop"
    assert call(num_cpus=0) == "server"
    # That could run on the laptop alone, and nobody said that it bears repetition.
    for selector in ({}, {"retryable": True}):
        with pytest.raises(Exception, match="longer than 4 s"):
            call(num_cpus=0, resources={"laptop": 1}, timeout=4, **selector)
    assert call(retryable=True) == "server"
    # Ten parts on two places each; the laptop is gone while it has two.
    code = """
import threading
out = {}
def work():
    out["found"] = guests.each(where, [(4, f"part {n}") for n in range(10)], done=lambda n: counts.append(n))
counts = []
work()
say(found=Counter(out["found"]), counts=counts)
"""
    log = "grep -rhs 'part ' /var/lib/node/ray/session_latest/logs/ | sort -u | wc -l"
    import threading

    result: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: result.update(drive(site, code)))
    thread.start()
    eventually(lambda: int(docker("exec", f"{site.name}-laptop", "sh", "-c", log, check=False) or 0) >= 2, 60, "parts")
    docker("kill", f"{site.name}-laptop")
    thread.join(240)
    assert result, "the driver did not end"
    assert sum(result["found"].values()) == 10
    assert result["counts"] == list(range(1, 11))
    assert result["found"]["server"] >= 8
    eventually(lambda: site.alive() == 2, 120, "for Ray to notice")
    # A call that may go to a laptop needs none.
    assert call(**asked) == "server"
