"""The day it happens: the head is gone with its disks, the controller with its secrets. All of it comes back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
from celery_lab import Broker
from ray_lab import ROOT, Lab, until

LAB = Lab("operate")
BROKER = Broker(LAB)
SECRETS = ROOT / ".secrets/operate"
KEYS = ("backup_password", "backup_secrets_password")
HOSTS = ("head", "server1", "server2", "laptop1")
TASKS = 30
# This machine in the lab's network.
GATEWAY = "172.30.0.1"


def play(*words: str) -> str:
    done = LAB.play(*words)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sums(folder: str) -> str:
    """Names, owners and contents of all files below a folder that servers share."""
    script = 'cd "$1" && find . -type f -exec stat -c "%n %U %a" {} + -exec sha256sum {} + | sort'
    return LAB.on("server1", "sh", "-c", script, "sh", folder)


def ticks() -> int:
    """How many the schedule has sent."""
    found = BROKER.ask("operator", "hgetall", "muster:beat:ticks").split()
    return sum(int(number) for name, number in zip(found[::2], found[1::2], strict=True) if "sent" in name)


def test_a_backup_is_made_now_and_tells_what_it_did() -> None:
    begin = time.monotonic()
    said = play("playbooks/backup.yml")
    print(f"backup of an idle cluster: {time.monotonic() - begin:.0f} s with Ansible")
    report = json.loads(LAB.on("head", "cat", "/var/lib/muster/backup/last"))
    print(f"of which the program: {report['seconds']} s; containers stood still for {report['stood_still']} s")
    assert report["snapshot"] in said
    assert {"celery_redis", "ray_head", "alertmanager"} <= set(report["stood_still"])
    assert not LAB.on("head", "docker", "ps", "--quiet", "--filter", "status=paused")
    # Nothing of it can be read by who has the disk: neither names nor what is in them.
    found = LAB.on("head", "sh", "-c", "grep -rlE 'redis|BEGIN|ray_token' /srv/share/backup || true")
    assert not found


def test_a_second_run_of_its_settings_changes_nothing() -> None:
    assert "changed=0" in play("playbooks/nightly.yml")


def test_a_check_makes_none() -> None:
    last = LAB.on("head", "cat", "/var/lib/muster/backup/last")
    play("playbooks/backup.yml", "--check")
    assert LAB.on("head", "cat", "/var/lib/muster/backup/last") == last


def test_what_is_there_is_not_written_over_by_mistake() -> None:
    done = LAB.play("playbooks/restore.yml")
    assert done.returncode
    assert "backup_replace=true" in done.stdout
    assert "Nothing was changed" in done.stdout


def test_a_repository_with_another_password_is_told_in_a_line() -> None:
    LAB.on("head", "cp", "-a", "/etc/muster/backup/password", "/root/password")
    try:
        LAB.on("head", "sh", "-c", "echo wrong >/etc/muster/backup/password")
        said = LAB.on("head", "/usr/bin/python3", "/usr/local/lib/muster/muster_backup.py", "backup", check=False)
        assert "cannot be opened" in said
        assert "wrong password" in said
        assert "Traceback" not in said
    finally:
        LAB.on("head", "mv", "/root/password", "/etc/muster/backup/password")


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[str]:
    """A real server that speaks S3, on this machine's end of the lab's network."""
    programs, port = tmp_path / "programs", 9494
    for command in (
        [sys.executable, "-m", "venv", str(programs)],
        [str(programs / "bin/pip"), "install", "--quiet", "moto==5.2.5", "flask", "flask-cors"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert not done.returncode, done.stderr[-2000:]
    server = subprocess.Popen(
        [str(programs / "bin/moto_server"), "-H", GATEWAY, "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    where = f"http://{GATEWAY}:{port}/nightly"
    make = ("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-X", "PUT", where)
    try:
        until(60, "there is a bucket", lambda: LAB.on("head", *make, check=False) == "200")
        yield where
    finally:
        server.kill()
        server.wait()


def test_backups_go_to_s3_with_keys_of_its_own(tmp_path: Path, bucket: str) -> None:
    settings = tmp_path / "settings.json"
    keys = {"AWS_ACCESS_KEY_ID": "backups", "AWS_SECRET_ACCESS_KEY": "not-in-sight"}
    settings.write_text(json.dumps({"backup_repository": f"s3:{bucket}/muster", "backup_environment": keys}))
    try:
        play("playbooks/nightly.yml", "-e", f"@{settings}")
        LAB.on("head", "systemctl", "start", "muster-backup")
        assert f"s3:{bucket}/muster" in LAB.on("head", "cat", "/var/lib/muster/backup/last")
        listing = LAB.on("head", "curl", "-sS", f"{bucket}?list-type=2&prefix=muster/snapshots/")
        assert listing.count("<Key>muster/snapshots/") == 1
        assert "not-in-sight" not in LAB.on("head", "journalctl", "-u", "muster-backup", "--no-pager")
    finally:
        play("playbooks/nightly.yml")


def test_backups_go_by_sftp_to_a_server_that_is_known(tmp_path: Path) -> None:
    """The lab's other server plays the one of the backups."""
    server = "172.30.94.12"
    key = LAB.on("server2", "cat", "/etc/ssh/ssh_host_ed25519_key.pub").split()
    settings = tmp_path / "settings.json"
    settings.write_text(
        json.dumps({
            "backup_repository": f"sftp:safe@{server}:muster",
            "backup_known_host": f"{server} {key[0]} {key[1]}",
        })
    )  # fmt: skip
    # Lab hosts know one key for all users.
    own = "Match User safe\nAuthorizedKeysFile .ssh/authorized_keys\n"
    try:
        LAB.on("server2", "sh", "-c", "cat >/etc/ssh/sshd_config.d/safe.conf && systemctl reload ssh", stdin=own)
        play("playbooks/nightly.yml", "-e", f"@{settings}")
        ours = (SECRETS / "backup_ssh_key.pub").read_text()
        LAB.on("server2", "useradd", "--create-home", "safe")
        LAB.on(
            "server2",
            "sh",
            "-c",
            "cd ~safe && mkdir .ssh && cat >.ssh/authorized_keys && chown -R safe .ssh",
            stdin=ours,
        )
        LAB.on("head", "systemctl", "start", "muster-backup")
        assert f"sftp:safe@{server}" in LAB.on("head", "cat", "/var/lib/muster/backup/last")
        assert "config" in LAB.on("server2", "ls", "/home/safe/muster").split()
    finally:
        LAB.on("server2", "userdel", "--force", "--remove", "safe", check=False)
        LAB.on("server2", "sh", "-c", "rm /etc/ssh/sshd_config.d/safe.conf && systemctl reload ssh")
        play("playbooks/nightly.yml")


@pytest.fixture(scope="module")
def lost() -> dict[str, str]:
    """Everything that a cluster may know is there, in a backup, and then nowhere else. What was there."""
    LAB.on(
        "server1",
        "sh",
        "-c",
        """
rm -f /srv/share/models/counter && mkdir -p /srv/share/models/kept/2026-01-01 && cd /srv/share/models/kept/2026-01-01 &&
head -c 3000000 /dev/urandom >model.bin && echo '{}' >run.json && chown -R 10077:10077 /srv/share/models""",
    )
    # It lives on where its node has waited for the head; else it begins anew with what it wrote down.
    LAB.driver("""
@ray.remote(num_cpus=0.1, max_restarts=-1)
class Counter:
    def __init__(self):
        from pathlib import Path
        self.file = Path("/srv/muster/models/counter")
        self.count = int(self.file.read_text()) if self.file.exists() else 0
    def add(self):
        self.count += 1
        self.file.write_text(str(self.count))
        return self.count
counter = Counter.options(name="counter", namespace="operate", lifetime="detached", get_if_exists=True).remote()
for _ in range(3): ray.get(counter.add.remote())
""")
    play("playbooks/silence.yml", "-e", "host=server1", "-e", "hours=5", "-e", "why=restored")
    before = {
        "models": sums("/srv/share/models"),
        "certificate": LAB.on("head", "cat", "/etc/muster/pki/host.crt"),
        "ticks": str(until(60, "the schedule has fired", ticks)),
    }
    for host in HOSTS:
        LAB.on(host, "docker", "compose", "--project-directory", "/opt/muster/celery_worker", "stop")
    BROKER.ask("operator", "del", "drill:effects")
    written = ("grep", "--text", "--count", "restored", "/var/lib/muster/alertmanager/silences")
    until(60, "the silence is written down", lambda: LAB.on("head", *written, check=False).strip() == "1")
    LAB.inside("head", "celery_beat-beat-1", "python3", "-m", "drill", str(TASKS), "0.1", "100")
    play("playbooks/backup.yml")
    secrets = tree(SECRETS)
    # The disaster.
    subprocess.run(["docker", "rm", "--force", "--volumes", "operate-head"], check=True, capture_output=True)
    LAB.on("server1", "rm", "-rf", "/srv/share/models")
    kept = {name: (SECRETS / name).read_text() for name in KEYS}
    shutil.rmtree(SECRETS)
    # A new machine, and what its operator has.
    play("molecule/shared/create.yml", "--limit", "localhost,head")
    play("molecule/shared/prepare.yml", "--limit", "head")
    LAB.on("head", "install", "-d", "-o", "10077", "/var/lib/drill")
    done = LAB.play("playbooks/restore.yml")
    assert done.returncode
    assert f"put your copy of it at {SECRETS}/backup_password" in done.stdout
    SECRETS.mkdir(mode=0o700)
    for name, text in kept.items():
        (SECRETS / name).write_text(text)
    begin = time.monotonic()
    play("playbooks/restore.yml")
    print(f"restored on a new host in {time.monotonic() - begin:.0f} s")
    assert tree(SECRETS) == secrets
    return before


def test_queued_tasks_run_once_each(lost: dict[str, str]) -> None:
    def done() -> list[str]:
        said = BROKER.ask("operator", "lrange", "drill:effects", "0", "-1").split()
        return said if len(said) >= TASKS else []

    effects = until(120, f"{TASKS} tasks are done", done)
    assert len(effects) == len(set(effects)) == TASKS


def test_the_schedule_goes_on(lost: dict[str, str]) -> None:
    until(60, "it fires", lambda: ticks() > int(lost["ticks"]))


def test_certificates_and_models_are_the_same(lost: dict[str, str]) -> None:
    assert LAB.on("head", "cat", "/etc/muster/pki/host.crt") == lost["certificate"]
    assert sums("/srv/share/models") == lost["models"]


def test_rays_nodes_and_actors_are_those_of_before(lost: dict[str, str]) -> None:
    until(60, "all nodes are back", lambda: len(LAB.nodes()) == 4)
    said = LAB.driver("print(ray.get(ray.get_actor('counter', namespace='operate').add.remote()))")
    assert said.split() == ["4"]
    LAB.driver("ray.kill(ray.get_actor('counter', namespace='operate'))")


def test_silences_are_kept(lost: dict[str, str]) -> None:
    assert "restored" in LAB.on("head", "curl", "-s", "http://172.30.94.10:9093/alertmanager/api/v2/silences")
    play("playbooks/silence.yml", "-e", "host=server1", "-e", "hours=0")
