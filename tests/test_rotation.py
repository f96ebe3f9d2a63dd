"""What rotate.yml is told, and which files and hosts it is about; molecule/operate does it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.plugins.loader import init_plugin_loader

from muster.errors import MusterError
from muster.known import known
from muster.rotation import Rotation, rotation

from .conftest import ROOT, Inventories

THERE = "there are ray_token, redis, gateway, flower, certificates, authority (several by comma), and all"
SECRETS = (
    "ray_token", "celery_app_password", "celery_exporter_password", "celery_operator_password", "flower_password",
    "celery_laptop_laptop1_password", "gateway_admin_password", "gateway_admin_token", "gateway_key", "pki/ca.crt",
)  # fmt: skip
LAPTOP = "celery_laptop_laptop1_password"
LOGINS = {"celery_app_password", "celery_exporter_password", "celery_operator_password", LAPTOP}
TRIO = ("key", "csr", "crt")


class Cluster:
    """An inventory, and what the first run has made for it."""

    def __init__(self, inventories: Inventories, folder: Path) -> None:
        if "ansible_collections" not in sys.modules:
            init_plugin_loader()
        self.inventories, self.secrets = inventories, folder
        (folder / "pki").mkdir(parents=True)
        for name in SECRETS:
            (folder / name).write_text(f"made-{Path(name).name}\n")

    def told(self, *, limit: Any = (), tags: Any = (), inventory: Any = None, **given: str) -> Rotation:
        variables = {"muster_secrets_dir": str(self.secrets), **(inventory or {})}
        hostvars, groups = self.inventories.load(all=variables)
        hosts = limit or tuple(groups["all"])
        return rotation(given, given, known().names, hostvars, groups, hosts, tags)


@pytest.fixture
def cluster(inventories: Inventories, tmp_path: Path) -> Cluster:
    return Cluster(inventories, tmp_path / "secrets")


@pytest.mark.parametrize(
    ("given", "problem", "fix"),
    [
        ({}, "nothing is named", f"add -e what=...; {THERE}"),
        ({"what": " , "}, "nothing is named", f"add -e what=...; {THERE}"),
        ({"what": "redsi"}, "what is 'redsi'", "write redis"),
        ({"what": "redis,x"}, "what is 'x'", THERE),
        ({"waht": "redis"}, "the argument waht is unknown", "write what; there are what, host, user, keep_old"),
        (
            {"what": "redis", "host": "head"},
            "host is for one host's certificate",
            "write what=certificates, or leave host out",
        ),
        ({"what": "all", "user": "admin"}, "user is for one person's login", "write what=gateway, or leave user out"),
        ({"what": "certificates", "host": "servr1"}, "the inventory has no host servr1", "write server1"),
        (
            {"what": "gateway", "user": "admn"},
            "there is no user admn in gateway_users and gateway_tokens",
            "write admin",
        ),
        ({"what": "redis", "keep_old": "maybe"}, "keep_old is 'maybe'", "write keep_old=true or keep_old=false"),
        (
            {"what": "gateway", "keep_old": "true"},
            "keep_old is for the broker's password and for the authority: of all else there is one at a time",
            "leave keep_old out",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_a_mistake_is_one_line(cluster: Cluster, given: dict[str, str], problem: str, fix: str) -> None:
    with pytest.raises(MusterError) as caught:
        cluster.told(**given)
    assert (caught.value.problem, caught.value.fix) == (problem, fix)


def test_parts_are_not_chosen_by_tags(cluster: Cluster) -> None:
    assert cluster.told(what="redis", tags=("all",))["what"] == ["redis"]
    with pytest.raises(MusterError, match="not chosen by tags"):
        cluster.told(what="redis", tags=("celery",))


def test_nobody_may_be_left_out_but_laptops(cluster: Cluster) -> None:
    with pytest.raises(MusterError, match="--limit leaves out server1, and what is new must get there, too"):
        cluster.told(what="redis", limit=("head", "laptop1"))
    assert cluster.told(what="redis", limit=("head", "server1"))["needed"] == ["head", "server1"]
    found = cluster.told(what="certificates", limit=("server1",))
    assert found["others"] == [f"pki/hosts/server1_192.0.2.11.{end}" for end in TRIO]


def test_what_the_operator_has_set_is_not_ours(cluster: Cluster) -> None:
    with pytest.raises(MusterError) as caught:
        cluster.told(what="ray_token", inventory={"ray_token": "of-a-vault"})
    assert caught.value.problem == "ray_token: set in your inventory or Vault, so it is not ours to make anew"
    found = cluster.told(
        what="all", inventory={"ray_token": "of-a-vault", "gateway_passwords": {"admin": "long-enough"}}
    )
    assert found["theirs"] == ["gateway_passwords.admin", "ray_token"]
    assert not {"ray_token", "gateway_admin_password"} & set(found["others"])
    assert "gateway_admin_token" in found["others"]


def test_all_is_all_and_every_host_has_its_certificate_anew(cluster: Cluster) -> None:
    found = cluster.told(what="all")
    assert found["what"] == ["ray_token", "redis", "gateway", "flower", "authority"]
    assert set(found["logins"]) == LOGINS
    assert found["authority"] == [f"pki/ca.{end}" for end in TRIO]
    certificates = {name for name in found["others"] if name.startswith("pki/")}
    assert len(certificates) == 3 * 3 and set(found["broker_certificate"]) < certificates
    assert {"ray_token", "flower_password", "gateway_key"} <= set(found["others"])
    assert set(found["only"].values()) == {"all", "builder"}


@pytest.mark.parametrize(
    ("what", "parts"),
    [
        ("ray_token", {"ray_anew", "ray", "clients", "gateway"}),
        ("redis", {"both_logins", "clients", "laptop", "broker"}),
        ("gateway", {"gateway"}),
        ("flower", {"clients", "gateway"}),
        ("certificates", {"pki", "ray", "clients", "broker", "registry", "gateway"}),
        (
            "authority",
            {"both_authorities", "switch", "pki", "ray_anew", "ray", "clients", "broker", "registry", "gateway"},
        ),
    ],
)
def test_only_what_has_it_is_touched(cluster: Cluster, what: str, parts: set[str]) -> None:
    assert {name for name, pattern in cluster.told(what=what)["only"].items() if pattern != "ungrouped"} == parts


def test_the_playbook_asks_for_every_part(cluster: Cluster) -> None:
    text = (ROOT / "playbooks/rotate.yml").read_text()
    assert set(re.findall(r"rotation\.only\.(\w+)", text)) == set(cluster.told(what="all")["only"])


def test_one_certificate_touches_one_host(cluster: Cluster) -> None:
    found = cluster.told(what="certificates", host="192.0.2.11")
    assert set(found["only"].values()) == {"server1", "ungrouped"} and found["needed"] == ["server1"]


def test_one_login_is_one_persons(cluster: Cluster) -> None:
    users = {"gateway_users": ["admin", "anna"], "gateway_tokens": ["anna", "ci"]}
    for name in ("anna", "ci"):
        for kind in ("password", "token"):
            (cluster.secrets / f"gateway_{name}_{kind}").write_text("x\n")
    assert cluster.told(what="gateway", user="anna", inventory=users)["others"] == [
        "gateway_anna_password", "gateway_anna_token"
    ]  # fmt: skip
    assert cluster.told(what="gateway", user="ci", inventory=users)["others"] == ["gateway_ci_token"]


def test_one_that_was_begun_is_finished_first(cluster: Cluster) -> None:
    (cluster.secrets / "celery_app_password.old").write_text("former\n")
    assert set(cluster.told(what="redis")["logins"]) == {"celery_app_password"}
    (cluster.secrets / "celery_app_password.old").unlink()
    # A laptop that was not reached holds up nobody.
    (cluster.secrets / f"{LAPTOP}.old").write_text("former\n")
    assert set(cluster.told(what="redis")["logins"]) == LOGINS


def test_the_former_authority_stays_while_it_is_asked_for(cluster: Cluster) -> None:
    found = cluster.told(what="authority", keep_old="true")
    assert found["broker_certificate"] == found["others"] == []
    assert {name for name, pattern in found["only"].items() if pattern != "ungrouped"} == {"both_authorities"}
    (cluster.secrets / "pki/ca.crt.old").write_text("former\n")
    with pytest.raises(MusterError, match="finish that first, with what=authority"):
        cluster.told(what="certificates")


def test_the_builder_of_a_site_with_its_own_registry_has_no_certificate(
    inventories: Inventories, tmp_path: Path
) -> None:
    hosts = """
    all:
      children:
        server: {hosts: {head: {ansible_host: 192.0.2.10}}}
        ray_head: {hosts: {head: }}
        builder: {hosts: {maker: {ansible_host: 192.0.2.9}}}
    """
    cluster = Cluster(inventories, tmp_path / "secrets")
    variables = {"muster_secrets_dir": str(cluster.secrets)}
    for registry, certified in (("", 6), ("registry.example.org", 3)):
        hostvars, groups = inventories.load(hosts, all={**variables, "muster_registry": registry})
        given = {"what": "authority"}
        found = rotation(given, given, known().names, hostvars, groups, groups["all"])
        assert len([name for name in found["others"] if name.startswith("pki/")]) == certified
        assert found["only"]["pki"] == ("pki" if registry else "all")


def module(folder: Path, state: str, *names: str, check: bool = False) -> list[str]:
    """What the module says that it has changed."""
    arguments = {"folder": str(folder), "names": names, "state": state, "_ansible_check_mode": check}
    done = subprocess.run(
        [sys.executable, str(ROOT / "plugins/modules/former_files.py")],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}), capture_output=True, text=True,
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert said["changed"] == bool(said["names"])
    return list(said["names"])


def test_the_names_of_the_files_are_how_far_it_has_come(tmp_path: Path) -> None:
    def there() -> dict[str, str]:
        return {path.name: path.read_text() for path in tmp_path.iterdir()}

    (tmp_path / "a").write_text("1")
    assert module(tmp_path, "former", "a", "b", check=True) == ["a"] and there() == {"a": "1"}
    assert module(tmp_path, "former", "a", "b") == ["a"] and there() == {"a.old": "1"}
    (tmp_path / "a").write_text("2")
    assert module(tmp_path, "former", "a") == [] and there() == {"a": "2", "a.old": "1"}
    assert module(tmp_path, "withdrawn", "a") == ["a"] and there() == {"a": "2", "a.out": "1"}
    assert module(tmp_path, "former", "a") == module(tmp_path, "withdrawn", "a") == []
    assert module(tmp_path, "forgotten", "a") == ["a"] and there() == {"a": "2"}
    assert module(tmp_path, "forgotten", "a") == []
