"""The shared folder: who is served, as whom, and what is left after the worst. The kernel here mounts no NFS: clients
are programs (libnfs), and of the hosts' own mounts the units are tried, and how they fail.
"""

from __future__ import annotations

import json
import socket
import sys
import uuid
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
from ray_lab import Lab, until

HEAD = "172.30.103.10"
GANESHA = "storage_server-ganesha-1"
MOUNT = "/var/lib/muster/srv/muster"
UNIT = "var-lib-muster-srv-muster"
LAB = Lab("storage")
# nfs-cp writes over nothing.
MARK = uuid.uuid4().hex[:8]


@pytest.fixture(scope="module")
def image() -> str:
    """The infra image that runs."""
    return LAB.on("head", "docker", "inspect", "-f", "{{.Config.Image}}", GANESHA).strip()


@pytest.fixture(scope="module", autouse=True)
def ports_of_root() -> None:
    """Low ports are root's, as on any host; Docker opens them to all in its containers, which these hosts are."""
    for host in ("head", "server1"):
        LAB.on(host, "sysctl", "-qw", "net.ipv4.ip_unprivileged_port_start=1024")


def client(host: str, image: str, script: str, user: int = 0, address: str = HEAD) -> str:
    """What a shell with libnfs's tools says on a host, errors too; $share is the address of the folder."""
    share = f"share=nfs://{address}/muster; end=?version=4; "
    return LAB.on(
        host, "docker", "run", "--rm", "--network", "host", "--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE",
        "--user", f"{user}:{user}", "--entrypoint", "timeout", image, "20", "sh", "-c", share + script, check=False,
    ).strip()  # fmt: skip


def listing(host: str, image: str, **options: object) -> str:
    return client(host, image, 'nfs-ls "$share$end"', **options)  # type: ignore[arg-type]


def put(host: str, image: str, name: str, text: str) -> str:
    return client(host, image, f'echo {text} >/tmp/a && nfs-cp /tmp/a "$share/{name}$end"')


def get(host: str, image: str, name: str) -> str:
    return client(host, image, f'nfs-cat "$share/{name}$end"')


def healthy() -> bool:
    return LAB.on("head", "docker", "inspect", "-f", "{{.State.Health.Status}}", GANESHA).strip() == "healthy"


def test_a_server_of_the_cluster_writes_and_reads_as_the_containers_user(image: str) -> None:
    # Whoever had files open before a restart comes first.
    until(60, "it takes a file", lambda: "copied" in put("server1", image, f"datasets/{MARK}", "hello"))
    assert get("server1", image, f"datasets/{MARK}") == "hello"
    assert LAB.on("head", "cat", f"/srv/muster/datasets/{MARK}").strip() == "hello"
    assert LAB.on("head", "stat", "-c", "%u:%g", f"/srv/muster/datasets/{MARK}").strip() == "10077:10077"
    for folder in ("datasets", "models", "results"):
        assert folder in listing("server1", image)


def test_the_firewall_lets_in_nobody_else() -> None:
    with pytest.raises(OSError):
        socket.create_connection((HEAD, 2049), timeout=3).close()


def test_who_is_no_client_is_refused_also_behind_the_firewall(image: str) -> None:
    assert "datasets" in listing("head", image, address="127.0.0.1")
    # Its own address is none of those that are served.
    refused = listing("head", image)
    assert "datasets" not in refused and "NFS4ERR" in refused, refused


def test_nobody_but_root_of_a_server_says_who_he_is(image: str) -> None:
    assert "datasets" in listing("server1", image)
    refused = listing("server1", image, user=10077)
    assert "datasets" not in refused and "Failed to mount" in refused, refused


def test_killed_it_is_back_with_all_that_it_had(image: str) -> None:
    until(60, "it takes a file", lambda: "copied" in put("server1", image, f"models/kept-{MARK}", "kept"))
    LAB.kill_hard("head", GANESHA)
    until(60, "it is back", healthy)
    # For half a minute it waits for those who had files open.
    until(60, "the file is there", lambda: get("server1", image, f"models/kept-{MARK}") == "kept")
    until(60, "it takes another", lambda: "copied" in put("server1", image, f"models/new-{MARK}", "new"))


def test_a_server_that_leaves_is_served_no_more_and_the_others_notice_nothing(image: str) -> None:
    started = LAB.on("head", "docker", "inspect", "-f", "{{.State.StartedAt}}", GANESHA)
    without = json.dumps({"__storage_server_clients": ["127.0.0.1"]})
    left = LAB.play("playbooks/storage.yml", "--limit", "head", "-e", without)
    try:
        assert left.returncode == 0, left.stdout[-3000:]
        until(10, "it is refused", lambda: "NFS4ERR" in listing("server1", image))
    finally:
        back = LAB.play("playbooks/storage.yml", "--limit", "head")
    assert back.returncode == 0, back.stdout[-3000:]
    until(10, "it is served", lambda: "datasets" in listing("server1", image))
    assert LAB.on("head", "docker", "inspect", "-f", "{{.State.StartedAt}}", GANESHA) == started


def test_a_container_that_starts_before_the_mount_sees_it(image: str) -> None:
    LAB.on("head", "systemctl", "stop", f"{UNIT}.mount")
    name = LAB.on(
        "head", "docker", "run", "--rm", "--detach", "--user", "10077:10077", "--cap-drop", "ALL",
        "--volume", f"{Path(MOUNT).parent}:/srv:rslave", "--entrypoint", "sleep", image, "300",
    ).strip()  # fmt: skip
    try:
        state = LAB.on("head", "systemctl", "is-active", f"{UNIT}.mount", check=False)
        assert "inactive" in state, "to start a container asked for it"
        LAB.inside("head", name, "sh", "-c", "echo seen >/srv/muster/results/seen")
        assert LAB.on("head", "cat", "/srv/files/storage/results/seen").strip() == "seen"
        LAB.on("head", "systemctl", "stop", f"{UNIT}.mount")
        assert LAB.inside("head", name, "cat", "/srv/muster/results/seen").strip() == "seen", "mounted anew"
    finally:
        LAB.on("head", "docker", "rm", "--force", name)


@pytest.mark.parametrize("host", ["head", "server1"])
def test_the_units_are_on_and_systemd_has_nothing_to_say_about_them(host: str) -> None:
    assert LAB.on(host, "systemctl", "is-enabled", f"{UNIT}.automount").strip() == "enabled"
    assert LAB.on(host, "systemctl", "is-active", f"{UNIT}.automount").strip() == "active"
    said = LAB.on(host, "sh", "-c", f"systemd-analyze verify /etc/systemd/system/{UNIT}.*mount 2>&1")
    assert UNIT not in said, said
    assert LAB.on(host, "readlink", "/srv/muster").strip() == MOUNT


def test_what_cannot_be_mounted_is_an_error_each_time_and_no_end() -> None:
    for _ in range(7):  # systemd gives up after five, unless told otherwise
        seen = LAB.on("server1", "timeout", "60", "ls", "/srv/muster/", check=False)
        # A kernel that has NFS mounts it.
        assert "No such device" in seen or "datasets" in seen, seen
    assert LAB.on("server1", "systemctl", "is-active", f"{UNIT}.automount").strip() == "active"


def test_without_a_server_units_and_link_go() -> None:
    play = ("playbooks/storage.yml", "--limit", "server1", "-e", json.dumps({"__storage_server": ""}))
    try:
        gone, again = LAB.play(*play), LAB.play(*play)
        assert "failed=0" in gone.stdout and "changed=0" not in gone.stdout, gone.stdout[-3000:]
        assert "changed=0" in again.stdout, again.stdout[-3000:]
        assert not LAB.on(
            "server1", "sh", "-c", "ls -d /srv/muster /etc/systemd/system/*muster*mount 2>/dev/null || true"
        )
        assert UNIT not in LAB.on("server1", "systemctl", "list-units", "--all", "--plain", "--no-legend")
    finally:
        back = LAB.play("playbooks/storage.yml", "--limit", "server1")
    assert back.returncode == 0, back.stdout[-3000:]
    assert LAB.on("server1", "systemctl", "is-active", f"{UNIT}.automount").strip() == "active"


def test_nothing_else_listens_because_of_it() -> None:
    for host in ("head", "server1"):
        listening = {line.split()[4].rsplit(":", 1)[1] for line in LAB.on(host, "ss", "-Hltun").splitlines()}
        assert "111" not in listening
        assert ("2049" in listening) == (host == "head")


def test_the_container_has_limits_and_few_privileges() -> None:
    config = json.loads(LAB.on("head", "docker", "inspect", "-f", "{{json .HostConfig}}", GANESHA))
    assert config["Memory"] == 512 * 2**20 and config["NanoCpus"] and config["PidsLimit"] and config["ReadonlyRootfs"]
    assert config["CapDrop"] == ["ALL"] and not config["Privileged"] and "SYS_ADMIN" not in str(config["CapAdd"])
    form = "{{.Name}} {{.MemUsage}}"
    print(LAB.on("head", "docker", "stats", "--no-stream", "--format", form))
