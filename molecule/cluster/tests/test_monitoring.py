"""What is seen: every target answers, every expression has data, and what breaks becomes an alert that clears again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
from celery_lab import secret
from ray_lab import Lab, until
from watch_lab import Fault, Watch, drill

from muster.expressions import every, selectors

LAB = Lab("cluster")
HEAD = "172.30.90.10"
HOSTS = ("head", "laptop1", "server1", "server2")
WATCH = Watch(LAB, HEAD)
# What a healthy lab has no series of, and why.
ABSENT = {
    "muster_host_backup_seconds": "there is no backup role yet",
    "ray_memory_manager_worker_eviction_total": "Ray counts from the first task on that it stops for memory",
    "muster_laptop_battery_percent": "the lab's laptops have no battery",
    "muster_laptop_plugged": "the lab's laptops have no battery",
    "ray_muster_job_": "no run is there at this moment; their names are tried in tests/jobs",
    "ray_serve_": "nothing is served",
}


def curl(host: str, url: str, *options: str) -> str:
    """The status that a host gets."""
    words = ("curl", "-sk", "-m", "20", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code}")
    return LAB.on(host, *words, *options, url, check=False)


def stopped(alert: str, label: str, host: str, project: str, service: str) -> Fault:
    name = f"{project}-{service}-1"
    return Fault(
        alert, label,
        lambda: LAB.on(host, "docker", "stop", "-t", "5", name),
        lambda: LAB.on(host, "docker", "start", name),
    )  # fmt: skip


def full_disk(host: str) -> Fault:
    fill = (
        "mkdir -p /mnt/full && mount -t tmpfs -o size=1m full /mnt/full && dd if=/dev/zero of=/mnt/full/x bs=1k || true"
    )
    return Fault(
        "DiskFull", host,
        lambda: LAB.on(host, "sh", "-c", fill),
        lambda: LAB.on(host, "sh", "-c", "umount /mnt/full && rmdir /mnt/full"),
    )  # fmt: skip


def mended_by_site(alert: str, host: str, *breaks: str) -> Fault:
    """What the alert says to do is done."""

    def mend() -> None:
        run = LAB.play("site.yml", "--tags", "ufw", "--limit", host)
        assert run.returncode == 0, run.stdout[-3000:]

    return Fault(alert, host, lambda: LAB.on(host, *breaks), mend)


def short_certificate(host: str) -> Fault:
    file = "/etc/muster/pki/host.crt"
    make = f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=short -days 5 -keyout /dev/null -out {file}"
    return Fault(
        "CertificateExpires", host,
        lambda: LAB.on(host, "sh", "-ec", f"cp -p {file} {file}.kept; {make}"),
        lambda: LAB.on(host, "mv", f"{file}.kept", file),
    )  # fmt: skip


def old_backup(host: str) -> Fault:
    folder = "/var/lib/muster/backup"
    return Fault(
        "BackupTooOld", host,
        lambda: LAB.on(host, "sh", "-ec", f"mkdir {folder}; touch -d '2 days ago' {folder}/last"),
        lambda: LAB.on(host, "rm", "-r", folder),
    )  # fmt: skip


def stuffed_queue() -> list[Fault]:
    """More comes into a queue than one worker gets done: it grows, and what is in it waits."""
    beat, enough = "celery_beat-beat-1", "/tmp/enough"
    stuff = f"""
import os, time
from celery_app import app
for number in range(1000):
    app.send_task("drill.step", [20], queue="ml")
    if number > 150: time.sleep(5)
    if os.path.exists("{enough}"): break
"""

    def make() -> None:
        # Of an earlier run.
        LAB.inside("head", beat, "rm", "-f", enough)
        LAB.on("head", "docker", "exec", "-d", beat, "python3", "-c", stuff)

    def mend() -> None:
        LAB.inside("head", beat, "touch", enough)
        LAB.inside("head", beat, "python3", "-c", "from celery_app import app; app.control.purge()")

    # The second is made and mended with the first; a task has to be as old as the alert says before it waits too long.
    return [Fault("TasksWaitTooLong", "", make, mend, takes=900), Fault("QueueGrows", "", lambda: None, lambda: None)]


def hoarder(alert: str, host: str, work: str) -> Fault:
    """An actor on a host that uses its object store."""
    make = f"""
import numpy, time
@ray.remote(num_cpus=0.1, label_selector={{"host": "{host}"}}, max_concurrency=2)
class Hoarder:
    def size(self):
        node = ray.get_runtime_context().get_node_id()
        return next(n["Resources"]["object_store_memory"] for n in ray.nodes() if n["NodeID"] == node)
    def work(self):
        part, self.kept = int(self.size() // 50), []
        {work}
actor = Hoarder.options(name="hoarder-{host}", lifetime="detached").remote()
actor.work.remote()
ray.get(actor.size.remote())
"""
    stop = f"ray.kill(ray.get_actor('hoarder-{host}'))"
    return Fault(alert, host, lambda: LAB.driver(make), lambda: LAB.driver(stop))


@pytest.mark.quiet
def test_every_target_answers() -> None:
    """The laptop of another test has left."""
    until(90, "all targets answer", lambda: set(WATCH.targets().values()) == {"up"} or not print(WATCH.targets()))
    found = WATCH.targets()
    assert {(host, "") for host in HOSTS} == {(host, node) for job, host, node in found if job == "node_exporter"}
    nodes = {("head", "head"), ("server1", "worker-1"), ("server1", "worker-2"), ("server2", "worker-1")}
    assert nodes == {(host, node) for job, host, node in found if job == "ray_node"}
    assert {job for job, _, _ in found} >= {
        "celery_metrics",
        "redis_exporter",
        "gateway_figures",
        "prometheus",
        "alertmanager",
    }


@pytest.mark.quiet
def test_every_expression_has_data() -> None:
    """Of alerts what they are made of: the whole has data only when something is wrong."""
    # A task that fails is counted, too.
    LAB.driver("f = ray.remote(max_retries=0)(lambda: 1 / 0)\nray.wait([f.remote()])")
    asked = {}
    for one in every():
        for part in selectors(one.text) if one.is_alert else [one.text]:
            if not any(name in part for name in ABSENT):
                asked.setdefault(f"last_over_time({part}[1h])" if one.is_alert else part, f"{one.file}, {one.place}")
    assert len(asked) > 100
    missing = set(asked)

    def all_there() -> bool:
        missing.difference_update([part for part in missing if WATCH.query(part)])
        assert not missing, "\n".join(f"{asked[part]}: {part}" for part in missing)
        return True

    # The rules of long times are evaluated every five minutes.
    until(420, "every expression has data", all_there)


def nothing_but(known: set[tuple[str, str]]) -> bool:
    """Whether no other alert fires."""
    others = WATCH.firing() - known
    assert not others, others
    return True


@pytest.mark.quiet
def test_faults_become_alerts_and_clear_and_a_sleeping_laptop_is_none() -> None:
    faults = [
        stopped("RayHeadDown", "head", "head", "ray_head", "head"),
        stopped("BrokerDown", "head", "head", "celery_redis", "redis"),
        full_disk("server1"),
        mended_by_site("DockerGuardMissing", "server1", "iptables", "-F", "DOCKER-USER"),
        mended_by_site("FirewallOpen", "server2", "ufw", "disable"),
        short_certificate("server2"),
        old_backup("head"),
    ]
    before = WATCH.firing()
    LAB.freeze("laptop1")
    try:
        for said in drill(WATCH, faults):
            print(said)
        until(120, "its figures are missed", lambda: WATCH.targets()["node_exporter", "laptop1", ""] == "down")
        until(
            120, "it counts as away", lambda: not WATCH.query('muster_host_state{host="laptop1", state="ready"} == 1')
        )
        # Not even one that waits for its time.
        until(60, "no alert is about it", lambda: not WATCH.query('ALERTS{host="laptop1"}'))
        # These look back a quarter of an hour, at what other tests killed, and at the kernel, which all hosts share.
        old = {(name, host) for name in ("ContainerRestarts", "ContainerOutOfMemory") for host in HOSTS}
        until(120, "nothing else is wrong", lambda: nothing_but(before | old))
    finally:
        LAB.thaw("laptop1")


@pytest.mark.skipif("SOAK" not in os.environ, reason="takes twenty minutes: make soak")
@pytest.mark.quiet
def test_what_goes_wrong_slowly_becomes_an_alert_and_clears() -> None:
    faults = [
        *stuffed_queue(),
        # What a process looks at cannot be written to disk: it fills the store.
        hoarder(
            "ObjectStoreNearlyFull", "server1",
            "while len(self.kept) < 47: self.kept.append(ray.get(ray.put(numpy.ones(part, 'u1'))))",
        ),
        # Twice what fits, again and again.
        hoarder(
            "ObjectStoreSpills", "server2",
            "while time.sleep(0.2) is None: self.kept = [*self.kept[-100:], ray.put(numpy.ones(part, 'u1'))]",
        ),
    ]  # fmt: skip
    for said in drill(WATCH, faults):
        print(said)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_nothing_is_open_without_a_login(method: str) -> None:
    """The door in front of the real services: Ray's API without a login, its pages, and everybody else's."""
    for path in (
        "/", "/site.json", "/ray/", "/ray/api/jobs/", "/ray/api/actors/kill", "/ray/api/serve/applications/",
        "/ray/nodes", "/ray/logical/actors", "/ray/api/cluster_status", "/api/jobs/", "/api/version", "/api/packages/x",
        "/flower/", "/flower/api/workers", "/flower/api/task/apply/x", "/flower/metrics", "/prometheus/metrics",
        "/prometheus/api/v1/query?query=up", "/prometheus/-/reload", "/prometheus/-/quit",
        "/alertmanager/api/v2/silences", "/alertmanager/metrics", "/metrics", "/config/", "/debug/pprof/",
        "/grafana/", "/nothing",
    ):  # fmt: skip
        assert curl("stranger", f"https://{HEAD}{path}", "-X", method, "-d", "{}") == "401", (method, path)


def test_jobs_are_submitted_through_the_gateway_with_a_personal_token() -> None:
    submit = ["timeout", "120", "ray", "job", "submit", "--verify", "/etc/muster/pki/ca.crt",
              "--entrypoint-num-cpus", "0.1", "--", "python", "-c", "print('through the ' + 'door')"]  # fmt: skip
    said = {}
    for token in (secret("gateway_admin_token"), secret("ray_token"), "wrong" * 10):
        env = {"RAY_API_SERVER_ADDRESS": f"https://{HEAD}", "RAY_AUTH_TOKEN": token}
        said[token] = LAB.inside("head", "ray_head-head-1", *submit, env=env, check=False)
    mine, *others = said.values()
    # Its log comes by a websocket.
    assert "through the door" in mine and "succeeded" in mine, mine
    assert all("through the door" not in other for other in others), others
