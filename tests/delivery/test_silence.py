"""playbooks/silence.yml against a real Alertmanager: who is silenced, until when, and nobody by mistake."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.conftest import Inventories
from tests.delivery.alertmanager import Alertmanager, alertmanager
from tests.delivery.conftest import until

Silence = Callable[..., str]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, render: Callable[..., str]) -> Iterator[Alertmanager]:
    with alertmanager(tmp_path_factory.mktemp("alertmanager"), render) as found:
        yield found


@pytest.fixture
def silence(
    started: Alertmanager, inventories: Inventories, playbook: Callable[..., subprocess.CompletedProcess[str]]
) -> Silence:
    """Runs it on a cluster whose head is this machine; returns what it says."""
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "muster_address": "127.0.0.1"}
    extra = {"alertmanager": {"port": started.port}}
    folder = inventories.write(head=here, all={"muster_ports_extra": extra})

    def run(*words: str, fails: bool = False) -> str:
        arguments = [part for word in words for part in (("-e", word) if "=" in word else (word,))]
        done = playbook("playbooks/silence.yml", "-i", str(folder), *arguments)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return " ".join((done.stdout + done.stderr).split())

    return run


def active(started: Alertmanager, **labels: str) -> list[dict[str, Any]]:
    """The silences of now that are about these labels."""
    found = [one for one in started.call("/api/v2/silences") if one["status"]["state"] == "active"]
    return [one for one in found if {each["name"]: each["value"] for each in one["matchers"]} == labels]


def hours(one: dict[str, Any]) -> float:
    """How long it lasts from now on."""
    left = datetime.fromisoformat(one["endsAt"]) - datetime.now().astimezone()
    return round(left / timedelta(hours=1), 1)


def test_a_host_is_silent_for_a_time_and_the_same_again_gives_it_a_new_end(
    started: Alertmanager, silence: Silence
) -> None:
    started.tell({"alertname": "DiskFull", "host": "server1"}, {"alertname": "BrokerDown", "host": "head"})
    said = silence("host=server1", "why='new \"disk\"'")
    assert "server1: no messages for 2 h from now on; hours=0 ends that." in said and "changed=1" in said
    (one,) = active(started, host="server1")
    assert (hours(one), one["comment"]) == (2, 'new "disk"')
    until(lambda: started.muted() == {"DiskFull": True, "BrokerDown": False}, "that host's alerts are muted", 20)

    silence("host=server1", "hours=0.5")
    (again,) = active(started, host="server1")
    assert (again["id"], again["startsAt"], hours(again)) == (one["id"], one["startsAt"], 0.5)

    assert "server1: not silenced any more." in silence("host=server1", "hours=0")
    assert active(started, host="server1") == []
    until(lambda: not any(started.muted().values()), "messages are sent again", 20)
    assert "changed=1" not in silence("host=server1", "hours=0")


def test_an_alert_a_laptop_and_both_are_silences_of_their_own(started: Alertmanager, silence: Silence) -> None:
    silence("alert=ClockWrong")
    silence("host=192.0.2.101", "alert=ClockWrong")
    assert "changed=1" not in silence("host=laptop1", "hours=0")
    for labels in ({"alertname": "ClockWrong"}, {"alertname": "ClockWrong", "host": "laptop1"}):
        assert len(active(started, **labels)) == 1


def test_what_somebody_else_made_stays_unless_it_means_the_same(started: Alertmanager, silence: Silence) -> None:
    now = datetime.now().astimezone()

    def made(value: str, **kind: bool) -> None:
        matcher = {"name": "host", "value": value, "isRegex": False, "isEqual": True, **kind}
        times = {"startsAt": now.isoformat(), "endsAt": (now + timedelta(hours=1)).isoformat()}
        started.call("/api/v2/silences", {"matchers": [matcher], **times, "createdBy": "a", "comment": "b"})

    for _ in range(2):
        made("server1")
    made("server1", isRegex=True)
    made("server1", isEqual=False)
    silence("host=server1", "hours=3")
    assert sorted(map(hours, active(started, host="server1"))) == [1, 1, 3]
    silence("host=server1", "hours=0")
    left = [one["matchers"][0] for one in active(started, host="server1")]
    assert sorted((one["isRegex"], one["isEqual"]) for one in left) == [(False, False), (True, True)]


def test_check_mode_and_mistakes_change_nothing(started: Alertmanager, silence: Silence) -> None:
    silence("host=head")
    assert len(active(started, host="head")) == 1
    before = {one["id"]: one["updatedAt"] for one in started.call("/api/v2/silences")}
    silence("--check", "host=head", "alert=DiskFull")
    silence("--check", "host=head", "hours=0")
    for words, line in (
        (["host=servr1"], "the inventory has no host servr1. Fix: write server1. Nothing was changed."),
        (["host=head", "why=new disk"], "-e has a word that belongs to no argument. Fix: quote spaces once more,"),
    ):
        said = silence(*words, fails=True)
        assert f"Action failed: {line}" in said and "Traceback" not in said
    assert {one["id"]: one["updatedAt"] for one in started.call("/api/v2/silences")} == before


def test_where_nobody_sends_messages_it_says_so(
    inventories: Inventories, playbook: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    folder = inventories.write()
    (folder / "groups.yml").write_text((folder / "groups.yml").read_text().replace("        prometheus:\n", ""))
    done = playbook("playbooks/silence.yml", "-i", str(folder), "-e", "host=server1")
    assert done.returncode != 0 and "the group alertmanager is empty. Fix: put a host into" in done.stderr + done.stdout
