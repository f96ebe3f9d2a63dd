"""Bad inventories: each mistake is one line that names the host, the value and the fix."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from muster import preflight

from .conftest import HOSTS, ROOT, Inventories

TWO_HEADS = HOSTS.replace(
    "    ray_head:\n      hosts:\n        head:\n", "    ray_head:\n      hosts:\n        head:\n        server1:\n"
)
NO_HEAD = HOSTS.replace("    ray_head:\n      hosts:\n        head:\n", "")
NO_BUILDER = HOSTS.replace("    builder:\n      hosts:\n        head:\n", "")
HEAD_IS_LAPTOP = HOSTS.replace(
    "    ray_head:\n      hosts:\n        head:\n", "    ray_head:\n      hosts:\n        laptop1:\n"
)
BOTH = HOSTS.replace("        laptop1: {", "        server1:\n        laptop1: {")


def serving(*hosts: str) -> str:
    """The usual hosts, and some of them serve the shared storage."""
    return HOSTS + "    storage_server:\n      hosts:\n" + "".join(f"        {host}:\n" for host in hosts)


Problems = Callable[..., list[str]]


@pytest.fixture
def problems(inventories: Inventories, monkeypatch: pytest.MonkeyPatch) -> Problems:
    """Problems of an inventory; extra={...} is what -e would bring."""

    def run(
        hosts: str = HOSTS,
        own: Sequence[str] = (),
        limit: Sequence[str] = (),
        extra: Mapping[str, Any] | None = None,
        **changes: Mapping[str, Any],
    ) -> list[str]:
        from muster.load import load_inventory

        monkeypatch.setattr(preflight, "extra_names", lambda: sorted(extra or {}))
        hostvars, groups = load_inventory([inventories.write(hosts, **changes)], extra)
        return preflight.inventory_problems(hostvars, groups, own, limit)

    return run


def test_a_good_inventory_has_none(problems: Problems) -> None:
    assert problems() == []


@pytest.mark.parametrize(
    ("hosts", "line"),
    [
        (TWO_HEADS, "inventory: ray_head has 2 hosts: head, server1. Fix: leave one of them in ray_head."),
        (NO_HEAD, "inventory: the group ray_head is empty. Fix: put exactly one server into ray_head."),
        (NO_BUILDER, "inventory: the group builder is empty and muster_registry is not set"),
        (HEAD_IS_LAPTOP, "laptop1: is Ray's head and a laptop. Fix: make a host the head that is always on."),
        (
            serving("head", "server1"),
            "inventory: storage_server has 2 hosts: head, server1. Fix: leave one of them in storage_server.",
        ),
        (
            serving("laptop1"),
            "laptop1: is in storage_server, but no server. Fix: put a host of the group server there.",
        ),
        (BOTH, "server1: is a server and a laptop. Fix: take it out of one of the groups server and laptop."),
    ],
)
def test_groups(problems: Problems, hosts: str, line: str) -> None:
    found = problems(hosts)
    assert len(found) == 1 and found[0].startswith(line), found


def test_a_registry_of_ones_own_needs_no_builder(problems: Problems) -> None:
    assert problems(NO_BUILDER, all={"muster_registry": "registry.example.org:5000"}) == []


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"ray_wrokers": 3}, "server1: the variable ray_wrokers is unknown. Fix: write ray_workers, or name it in"),
        (
            {"ansible_hots": "x"},
            "server1: the variable ansible_hots is unknown. Fix: write ansible_host, or name it in",
        ),
        ({"my_thing": 3}, "server1: the variable my_thing is unknown. Fix: remove it, or name it in"),
        ({"ansible_host": "192.0.2.10"}, "server1: has the address 192.0.2.10, which is head's. Fix: give every host"),
        (
            {"ansible_host": "server1.lan"},
            "server1: muster_address is 'server1.lan', which is not an IP address. Fix: set",
        ),
        ({"ray_workers": "many"}, "server1: ray_workers is 'many', which is not a whole number. Fix: write it like 4."),
        ({"ray_workers": [{"cpu": 2}]}, "server1: ray_workers entry 1 has the unknown key cpu. Fix: use cpus, memory"),
        ({"ray_workers": 500}, "server1: 500 Ray workers need ports up to"),
        ({"ray_worker_ports": 8000, "ray_workers": 2}, "server1: 2 Ray workers need ports up to"),
        (
            {"ufw_ssh_networks": []},
            "server1: ufw_ssh_networks is empty, which would shut out SSH. Fix: name the networks",
        ),
        (
            {"ufw_ssh_networks": ["10.0.0.0/33"]},
            "server1: ufw_ssh_networks has '10.0.0.0/33', which is no network and no group. Fix:",
        ),
        (
            {"ray_client_networks": ["ray_haed"]},
            "server1: ray_client_networks has 'ray_haed', which is no network and no group. Fix: write ray_head.",
        ),
        (
            {"ufw_extra_rules": [{"port": 80, "from": ["10.0.0.0/24", "servr"], "why": "mine"}]},
            "server1: ufw_extra_rules has 'servr', which is no network and no group. Fix: write server.",
        ),
        (
            {"pki_renew_before_days": 900},
            "server1: pki_renew_before_days 900 is not less than pki_host_days 825: every run would renew. Fix: lower",
        ),
        ({"ufw_extra_rules": "none"}, "server1: ufw_extra_rules 'none' is not valid: "),
        (
            {"preflight_clock_skew": "soon"},
            "server1: preflight_clock_skew 'soon' is not valid: it cannot be read as float",
        ),
        (
            {"ray_tls": "maybe"},
            "server1: ray_tls 'maybe' is not valid: it cannot be read as bool. Fix: give a value of type",
        ),
        (
            {"ray_token": "changeme-changeme-changeme"},
            "server1: ray_token is weak: a known default, or shorter than 16",
        ),
        (
            {"ray_token": "x7Kq2"},
            "server1: ray_token is weak: a known default, or shorter than 16 characters. Fix: remove it",
        ),
        (
            {"muster_ports_extra": {"ray_client": {"port": 6379}, "ray_gcs": {"at": ["ray_head", "server"]}}},
            "server1: port 6379 is planned for both",
        ),
        (
            {"muster_ports_extra": {"mine": {"port": 24300, "at": ["server"]}}},
            "server1: port 24300 is planned for both Ray node worker-1 and mine. Fix: give one of them another port",
        ),
        (
            {
                "muster_cpus": 4,
                "muster_memory": "8G",
                "ray_workers": 2,
                "ray_worker_cpus": 2,
                "ray_worker_memory": "6G",
            },
            "server1: 2 workers ask for 12.0G of memory, the host has 8.0G and keeps 2.1G for itself and Celery. Fix:",
        ),
        (
            {"muster_cpus": 4, "muster_memory": "64G", "ray_workers": 3, "ray_worker_cpus": 2},
            "server1: 3 workers ask for 6 CPUs, the host has 4. Fix: lower ray_workers or ray_worker_cpus.",
        ),
        ({"storage_path": "srv/a"}, "server1: storage_path is 'srv/a'. Fix: give the whole path of a folder"),
        (
            {"storage_path": "s3://bucket/a"},
            "server1: storage_path is 's3://bucket/a'; runs and models are kept in a folder, not at an address. Fix:",
        ),
        ({"storage_path": "/srv/a:b"}, "server1: storage_path is '/srv/a:b'. Fix: give the whole path of a folder"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_variables(problems: Problems, variables: dict[str, Any], line: str) -> None:
    if "ray_client" in variables.get("muster_ports_extra", {}):
        variables["muster_ports_extra"]["ray_client"]["at"] = ["server"]
    found = problems(server1=variables)
    assert len(found) == 1 and found[0].startswith(line), found


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"backup_repository": "nas/backup"}, "head: backup_repository is 'nas/backup'. Fix: give the whole path of a"),
        ({"backup_repository": "sftp:nas"}, "head: backup_repository is 'sftp:nas'. Fix: give the whole path of a"),
        ({"backup_repository": "sftp:safe@nas:muster"}, "head: backup_known_host is empty, so nobody knows whether"),
        ({"backup_repository": "s3:https://s3.example.org/muster"}, ""),
        ({"backup_repository": "sftp:safe@nas:muster", "backup_known_host": "nas ssh-ed25519 AAAA"}, ""),
    ],
)
def test_backups_go_somewhere(problems: Problems, variables: dict[str, Any], line: str) -> None:
    found = problems(HOSTS + "    backup:\n      hosts:\n        head:\n", all=variables)
    assert [each.startswith(line) for each in found] == ([True] if line else []), found


def test_one_shared_storage_and_not_two(problems: Problems) -> None:
    assert problems(serving("head"), all={"storage_server_path": "/srv/files"}) == []
    (line,) = problems(serving("head"), server1={"storage_path": "/srv/share"})
    assert line.startswith(
        "server1: storage_path is '/srv/share', and head is in storage_server. Fix: keep one of them"
    )
    (line,) = problems(serving("head"), head={"storage_server_path": "files"})
    assert line.startswith("head: storage_server_path is 'files'. Fix: give the whole path of a folder")


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        ({"ray_wrokers": "5"}, "-e: the variable ray_wrokers is unknown. Fix: write ray_workers, or name it in"),
        (
            {"ray_tls": "maybe"},
            "-e: ray_tls 'maybe' is not valid: it cannot be read as bool. Fix: give a value of type bool.",
        ),
        (
            {"ray_token": "short"},
            "-e: ray_token is weak: a known default, or shorter than 16 characters. Fix: remove it",
        ),
    ],
)
def test_command_line(problems: Problems, extra: dict[str, str], line: str) -> None:
    found = problems(extra=extra)
    assert len(found) == 1 and found[0].startswith(line), found


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        (
            {"alertmanager_webhooks": ["https://ok.example.org/x", "ok.example.org/secret"]},
            "alertmanager_webhooks: entry 2 is no web address. Fix: write it like https://hooks.example.org/services/x.",
        ),
        (
            {"alertmanager_slack_webhooks": ["https:///services/secret"]},
            "alertmanager_slack_webhooks: entry 1 is no web address. Fix: write it like https://hooks.example.org/",
        ),
        (
            {"alertmanager_slack_webhooks": ["https://a:port/"]},
            "alertmanager_slack_webhooks: entry 1 is no web address.",
        ),
        (
            {"alertmanager_mail_to": ["ops"], "celery_smtp_url": "smtp://mail.example.org"},
            "alertmanager_mail_to has 'ops', which is no mail address. Fix: write it like ops@example.org.",
        ),
        (
            {"alertmanager_mail_to": "ops@example.org", "celery_smtp_url": "smtp://mail.example.org"},
            "alertmanager_mail_to is no list. Fix: write it like alertmanager_mail_to: [...].",
        ),
        (
            {"alertmanager_mail_to": ["ops@example.org"]},
            "alertmanager_mail_to names somebody, and there is no mail server. Fix: set celery_smtp_url, or",
        ),
        (
            {"celery_smtp_url": "mail.example.org:587"},
            "celery_smtp_url is no address of a mail server. Fix: write it like smtp://user:password@mail.example.org:587",
        ),
        ({"celery_smtp_url": "http://me:secret@mail"}, "celery_smtp_url is no address of a mail server. Fix: write"),
        ({"alertmanager_smtp_url": "mail"}, "alertmanager_smtp_url is no address of a mail server. Fix: write"),
        (
            {"alertmanager_mail_to": ["ops@example.org"], "celery_smtp_url": "smtps://mail.example.org:587"},
            "Alertmanager speaks smtps at port 465 only. Fix: set alertmanager_smtp_url to that port, or to smtp://",
        ),
    ],
)
def test_messages(problems: Problems, variables: dict[str, Any], line: str) -> None:
    found = problems(head=variables)
    assert len(found) == 1 and found[0].startswith(f"head: {line}") and "secret" not in found[0], found


@pytest.mark.parametrize(
    ("profile", "models", "line"),
    [
        (
            "ml",
            [{"name": "a", "hub": "b/a", "replica": 2}],
            "llm_models: models.0.replica: Extra inputs are not permitted",
        ),
        ("ml", [{"name": "a"}], "llm_models: models.0: a: give either path, a folder, or hub, an id"),
        ("ml", "a", "llm_models: models: Input should be a valid list"),
        (
            "core",
            [{"name": "a", "hub": "b/a"}],
            "llm_models needs more than the core image has. Fix: set node_image_profile",
        ),
    ],
)
def test_language_models(problems: Problems, profile: str, models: Any, line: str) -> None:
    found = problems(head={"node_image_profile": profile, "llm_models": models})
    assert len(found) == 1 and found[0].startswith(f"head: {line}"), found


def test_language_models_that_are_right(problems: Problems) -> None:
    models = [
        {"name": "a", "hub": "b/a", "replicas": {"min": 1, "max": 4}},
        {"name": "c", "path": "/srv/muster/models/c"},
    ]
    assert problems(head={"node_image_profile": "ml", "llm_models": models}) == []


def test_messages_may_go_everywhere_or_nowhere(problems: Problems) -> None:
    everywhere = {
        "alertmanager_mail_to": ["ops@example.org", "Ops <ops@example.org>"],
        "alertmanager_webhooks": ["http://10.0.0.9:8080/hook"],
        "alertmanager_slack_webhooks": ["https://hooks.example.org/services/x"],
        "celery_smtp_url": "smtps://me:p%40ss@mail.example.org",
    }
    assert problems(all=everywhere) == []
    assert problems(all={**dict.fromkeys(everywhere), "celery_smtp_url": ""}) == []


def test_numbers_and_booleans_from_the_command_line_are_fine(problems: Problems) -> None:
    assert problems(extra={"ray_workers": "2", "ray_tls": "false", "ray_worker_memory": "2G"}) == []


def test_a_weak_secret_is_not_repeated(problems: Problems) -> None:
    assert "hunter2" not in "\n".join(problems(server1={"ray_token": "hunter2"}))


def test_looking_makes_no_secrets(problems: Problems) -> None:
    problems()
    assert not (ROOT / ".secrets" / "inventory").exists()


def test_variables_of_ones_own_can_be_named(problems: Problems) -> None:
    assert problems(own=["my_thing"], server1={"my_thing": 1}) == []


def test_the_same_mistake_on_many_hosts_is_one_line(problems: Problems) -> None:
    (line,) = problems(all={"ray_wrokers": 3})
    assert line.startswith("head, server1, laptop1: the variable ray_wrokers is unknown")


def test_a_group_in_the_table_that_does_not_exist(problems: Problems) -> None:
    (line,) = problems(all={"muster_ports_extra": {"registry": {"from": ["clutser"]}}})
    assert (
        line == "inventory: muster_ports: registry names the group clutser, which does not exist. Fix: write cluster."
    )


def test_all_problems_are_told_at_once(problems: Problems) -> None:
    found = problems(TWO_HEADS, server1={"ray_wrokers": 3, "ansible_host": "192.0.2.10"}, laptop1={"ray_tls": "maybe"})
    assert len(found) == 4, found


def test_what_is_made_of_facts_is_not_judged_yet(problems: Problems) -> None:
    assert problems(server1={"ray_keep_sessions": "{{ ansible_facts['processor_vcpus'] }}"}) == []


def test_what_is_said_with_a_limit_is_meant_for_those_hosts_only(problems: Problems) -> None:
    small, large = {"muster_cpus": 4, "muster_memory": "8G"}, {"muster_cpus": 64, "muster_memory": "256G"}
    extra = {"ray_workers": "5", "ray_worker_memory": "6G", "ray_worker_cpus": "2"}
    assert problems(extra=extra, limit=["server1"], head=small, server1=large) == []
    (line,) = problems(extra=extra, limit=["head"], head=small, server1=large)
    assert line.startswith("head: ")


def test_the_gateway_is_where_rays_pages_are(problems: Problems) -> None:
    moved = HOSTS + "    gateway:\n      hosts:\n        server1:\n"
    (line,) = problems(moved)
    assert line.startswith("server1: is the gateway and not Ray's head"), line
    (line,) = problems(all={"gateway_users": ["Anna"]})
    assert line.startswith("head: gateway_users has the name 'Anna'. Fix: use small letters"), line
