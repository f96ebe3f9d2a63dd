"""Messages about what is wrong, by every way there is, from a real Alertmanager to servers that really listen."""

from __future__ import annotations

import json
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiosmtpd.smtp import LoginPassword

from tests.delivery.alertmanager import Alertmanager, alertmanager, settings_of
from tests.delivery.conftest import free_port, infra_image, until
from tests.delivery.test_notify import Mailbox, mail_server, receiver

Render = Callable[..., str]
FIX = "docker compose logs in /opt/muster/<service> & look"


def text_of(mail: EmailMessage) -> str:
    part = mail.get_body()
    assert part is not None and part.get_content_type() == "text/plain"
    return str(part.get_content())


@dataclass
class Team:
    """Who is told, and what they got."""

    alertmanager: Alertmanager
    hook: list[tuple[str, str, str, bytes]]
    chat: list[tuple[str, str, str, bytes]]
    box: Mailbox

    def hooked(self, host: str) -> list[dict[str, Any]]:
        found = [json.loads(body) for *_, body in self.hook]
        return [one for one in found if one["groupLabels"].get("host") == host]

    def chatted(self, host: str) -> list[dict[str, Any]]:
        found = [json.loads(body)["attachments"][0] for *_, body in self.chat]
        return [one for one in found if f"on {host} " in one["title"]]

    def mailed(self, host: str) -> list[tuple[str, str]]:
        return [(one["Subject"], text_of(one)) for one in self.box.mails if f"on {host} " in one["Subject"]]

    def all_got(self, host: str, number: int) -> bool:
        return {len(self.hooked(host)), len(self.chatted(host)), len(self.mailed(host))} == {number}

    def told_of(self, host: str, state: str = "firing") -> list[set[str]]:
        """The names of the alerts that each message to the webhook is about."""
        return [
            {alert["labels"]["alertname"] for alert in one["alerts"] if alert["status"] == state}
            for one in self.hooked(host)
        ]

    def first(self, host: str, mark: str) -> list[set[str]]:
        """What the first messages about a host are about, until one about another that is sent off afterwards."""
        until(lambda: self.hooked(host), f"a message about {host} comes", 20)
        self.alertmanager.tell({"alertname": "DiskFull", "host": mark})
        until(lambda: self.hooked(mark), f"a message about {mark} comes", 20)
        return self.told_of(host)


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, render: Render) -> Iterator[Team]:
    hook, chat, mail = free_port(), free_port(), free_port()
    settings: dict[str, Any] = {
        "alertmanager_webhooks": [f"http://127.0.0.1:{hook}/hook"],
        "alertmanager_slack_webhooks": [f"http://127.0.0.1:{chat}/services/x"],
        "alertmanager_mail_to": ["ops@example.org"],
        "celery_smtp_url": f"smtp://127.0.0.1:{mail}",
        "celery_smtp_from": "muster@example.org",
        "gateway_public_name": "cluster.example.org",
    }
    with (
        receiver(hook) as hooked,
        receiver(chat, said=b"ok") as chatted,
        mail_server(mail) as box,
        alertmanager(tmp_path_factory.mktemp("alertmanager"), render, **settings) as started,
    ):
        yield Team(started, hooked, chatted, box)


def test_each_way_says_what_where_since_when_and_what_to_do_and_when_it_is_over(team: Team) -> None:
    alert = {"alertname": "DiskFull", "host": "server1"}
    team.alertmanager.tell(alert, fix=FIX)
    until(lambda: team.all_got("server1", 1), "each way brings a message", 20)
    since = f"DiskFull on server1 since {team.alertmanager.since(**alert)}"
    lines = ["critical: DiskFull it is", since]

    (hooked,) = team.hooked("server1")
    assert hooked["status"] == "firing"
    (one,) = hooked["alerts"]
    assert one["labels"] == {**alert, "severity": "critical", "cluster": "mine"}
    assert one["annotations"] == {"summary": "DiskFull it is", "fix": FIX}
    assert one["startsAt"][:16] == team.alertmanager.began[json.dumps(alert)].isoformat()[:16]

    ((subject, text),) = team.mailed("server1")
    assert subject == "critical: DiskFull on server1 [mine]"
    assert [line for line in text.splitlines() if line] == [
        *lines,
        f"What to do: {FIX}",
        "https://cluster.example.org/",
    ]
    assert (team.box.mails[-1]["From"], team.box.mails[-1]["To"]) == ("muster@example.org", "ops@example.org")

    (chatted,) = team.chatted("server1")
    # In Slack a bare < begins a link.
    slack = "What to do: docker compose logs in /opt/muster/&lt;service&gt; &amp; look"
    assert [line for line in chatted["text"].splitlines() if line] == [*lines, slack]
    assert chatted["title"] == chatted["fallback"] == subject
    assert (chatted["title_link"], chatted["color"]) == ("https://cluster.example.org/", "danger")

    team.alertmanager.tell(alert, over=True, fix=FIX)
    until(lambda: team.all_got("server1", 2), "each way says that it is over", 20)
    assert team.hooked("server1")[1]["status"] == "resolved"
    subject, text = team.mailed("server1")[1]
    assert subject == "resolved: DiskFull on server1 [mine]" and "resolved: DiskFull it is" in text
    assert f"{since} until " in text and "What to do" not in text
    chatted = team.chatted("server1")[1]
    assert (chatted["title"], chatted["color"]) == (subject, "good")
    assert f"{since} until " in chatted["text"] and "What to do" not in chatted["text"]


def test_several_alerts_of_a_host_are_one_message_and_other_hosts_have_their_own(team: Team) -> None:
    names = ("DiskFull", "BrokerDown", "BeatSilent")
    other = {"alertname": "DiskFull", "host": "server3"}
    team.alertmanager.tell(*({"alertname": name, "host": "server2"} for name in names), other)
    until(lambda: team.all_got("server2", 1) and team.all_got("server3", 1), "each host has its message", 20)
    assert team.told_of("server2") == [set(names)]
    ((subject, text),) = team.mailed("server2")
    assert subject == "critical: 3 alerts on server2 [mine]"
    assert all(f"critical: {name} it is" in text for name in names) and text.count("What to do: mend it") == 3


def test_a_host_that_is_gone_says_enough(team: Team) -> None:
    gone = [
        {"alertname": "HostDown", "host": "server4"},
        {"alertname": "TargetDown", "host": "server4", "job": "docker"},
    ]
    small = {"alertname": "WorkerSilent", "host": "server4", "severity": "warning", "job": "celery_metrics"}
    team.alertmanager.tell(*gone, small)
    assert team.first("server4", "mark1") == [{"HostDown"}]
    # It is back, and its worker is not.
    team.alertmanager.tell(*gone, over=True)
    until(lambda: team.told_of("server4")[-1] == {"WorkerSilent"}, "what was muted is told", 20)


def test_one_thing_that_is_gone_does_not_hide_others(team: Team) -> None:
    team.alertmanager.tell(
        {"alertname": "TargetDown", "host": "server5", "job": "node_exporter"},
        {"alertname": "BrokerDown", "host": "server5", "job": "celery_metrics"},
    )
    assert team.first("server5", "mark2") == [{"TargetDown", "BrokerDown"}]


def test_rays_head_says_enough_about_ray(team: Team) -> None:
    def node(name: str, host: str, severity: str = "critical") -> dict[str, str]:
        return {"alertname": name, "host": host, "job": "ray_node", "severity": severity}

    team.alertmanager.tell(
        node("RayHeadDown", "server6"),
        node("TargetDown", "server6"),
        node("RayWorkerMissing", "server7", "warning"),
        {"alertname": "DiskFillsUp", "host": "server8", "severity": "warning", "job": "node_exporter"},
    )
    assert team.first("server6", "mark3") == [{"RayHeadDown"}]
    assert team.told_of("server7") == []
    assert team.told_of("server8") == [{"DiskFillsUp"}]


def test_warnings_wait_until_what_is_critical_there_is_mended(team: Team) -> None:
    critical = {"alertname": "DiskFull", "host": "server9"}
    names = ("DiskFillsUp", "MemoryShort")
    team.alertmanager.tell(critical, *({"alertname": name, "host": "server9", "severity": "warning"} for name in names))
    assert team.first("server9", "mark4") == [{"DiskFull"}]
    team.alertmanager.tell(critical, over=True)
    until(lambda: team.told_of("server9")[-1] == set(names), "the warnings are told", 20)
    until(lambda: len(team.mailed("server9")) == 2, "by mail, too", 20)
    subject, text = team.mailed("server9")[1]
    assert subject == "warning: 2 alerts on server9 [mine]" and "resolved: DiskFull it is" in text


def test_what_is_wrong_with_no_host_mutes_nothing(team: Team) -> None:
    team.alertmanager.tell({"alertname": "A"}, {"alertname": "B", "severity": "warning"})
    title = "critical: 2 alerts [mine]"
    until(lambda: title in [one["Subject"] for one in team.box.mails], "both are told", 20)


def test_with_nobody_to_tell_it_starts_and_knows_the_alerts(tmp_path: Path, render: Render) -> None:
    with alertmanager(tmp_path, render) as started:
        started.tell({"alertname": "DiskFull", "host": "server1"})
        until(lambda: started.muted() == {"DiskFull": False}, "the alert is there", 20)


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_password_goes_to_a_mail_server_that_is_known(tmp_path: Path, render: Render, known: bool) -> None:
    port, hook, authority = free_port(), free_port(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    (authority if known else trustme.CA()).cert_pem.write_to_path(tmp_path / "ca.crt")
    settings: dict[str, Any] = {
        "alertmanager_mail_to": ["a@example.org"],
        "alertmanager_smtp_url": f"smtp://me:p%40ss@127.0.0.1:{port}",
        "alertmanager_webhooks": [f"http://127.0.0.1:{hook}/"],
    }
    (tmp_path / "live").mkdir()
    # The mail server of the tests asks for LOGIN's name in words that only itself knows.
    options = {"tls_context": context, "auth_required": True, "auth_exclude_mechanism": ["LOGIN"]}
    with (
        receiver(hook) as hooked,
        mail_server(port, **options) as box,
        alertmanager(tmp_path / "live", render, tmp_path / "ca.crt", **settings) as started,
    ):
        started.tell({"alertname": "DiskFull", "host": "server1"})
        until(lambda: box.mails or started.failed("email"), "it was tried", 20)
        # Others are told all the same.
        until(lambda: hooked, "the webhook is told", 20)
    assert box.logins == ([LoginPassword(b"me", b"p@ss")] if known else [])
    assert len(box.mails) == int(known)


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({}, ""),
        (
            {
                "celery_smtp_url": "smtps://me:secret@[2001:db8::7]",
                "alertmanager_mail_to": ["Ops <a@example.org>", "b@x"],
            },
            "",
        ),
        ({"celery_smtp_url": "smtp://me@mail", "alertmanager_mail_to": ["a@example.org"]}, ""),
        ({"alertmanager_repeat_hours": 0}, "repeat_interval cannot be zero"),
    ],
    ids=["nobody", "smtps", "smtp", "never"],
)
def test_amtool_judges_what_is_written(tmp_path: Path, render: Render, settings: dict[str, Any], refused: str) -> None:
    settings_of(tmp_path, render, **settings)
    done = subprocess.run(
        [
            *("docker", "run", "--rm", "--network", "none", "--user", "0:0", "-v", f"{tmp_path}:/etc/muster/live:ro"),
            *(infra_image(), "amtool", "check-config", "/etc/muster/live/alertmanager.yml"),
        ],
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == (refused == "") and refused in done.stdout + done.stderr, done.stdout + done.stderr


def test_the_page_is_named_as_far_as_there_is_one(tmp_path: Path, render: Render) -> None:
    chat = {"alertmanager_slack_webhooks": ["https://hooks.example.org/x"]}
    for more, page in (
        ({}, "https://10.0.0.84/"),
        ({"muster_ports_extra": {"gateway": {"port": 8443}}}, "https://10.0.0.84:8443/"),
        ({"muster_address": "2001:db8::7"}, "https://[2001:db8::7]/"),
        ({"__alertmanager_gateway": ""}, ""),
    ):
        (slack,) = settings_of(tmp_path, render, **chat, **more)["receivers"][0]["slack_configs"]
        assert slack["title_link"] == page, more


def test_smtps_is_tls_without_starttls_and_ports_are_those_of_celery(tmp_path: Path, render: Render) -> None:
    to = {"alertmanager_mail_to": ["a@example.org"]}
    for url, place, starttls in (
        ("smtps://me:x@mail", "mail:465", False),
        ("smtp://me:x@mail", "mail:25", True),
        ("smtp://mail:2525", "mail:2525", False),
        ("smtp://me:x@[2001:db8::7]:587", "[2001:db8::7]:587", True),
    ):
        (mail,) = settings_of(tmp_path, render, celery_smtp_url=url, **to)["receivers"][0]["email_configs"]
        assert (mail["smarthost"], mail["require_tls"]) == (place, starttls), url
