"""What a host finds out about itself: its certificates, firewall, containers, jobs and backup."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from muster.load import load_inventory

from .conftest import ROOT, Groups, Vars

SCRIPT = ROOT / "roles/node_exporter/files/muster_host_figures.py"
spec = importlib.util.spec_from_file_location("muster_host_figures", SCRIPT)
assert spec and spec.loader
script: Any = importlib.util.module_from_spec(spec)
sys.modules["muster_host_figures"] = script
spec.loader.exec_module(script)

Figures = dict[tuple[str, ...], float]
# As `iptables -S` says it on a host of the lab.
RULES = """
-P INPUT DROP
-P FORWARD DROP
-P OUTPUT ACCEPT
-N DOCKER
-N DOCKER-ISOLATION-STAGE-1
-N DOCKER-USER
-N muster-published
-N ufw-before-input
-N ufw-user-input
-A INPUT -j ufw-before-logging-input
-A INPUT -j ufw-before-input
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -j ufw-before-forward
-A DOCKER-USER -m comment --comment "muster 3fe4c8487e56"
-A DOCKER-USER -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
-A DOCKER-USER -i docker0 -j RETURN
-A DOCKER-USER -j muster-published
-A DOCKER-USER -j RETURN
-A muster-published -m conntrack --ctstate DNAT -j DROP
-A muster-published -o docker0 -j DROP
-A ufw-before-input -j ufw-user-input
-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT
""".strip().splitlines()


def by_labels(figures: list[tuple[str, dict[str, str], float]]) -> Figures:
    return {(name, *labels.values()): value for name, labels, value in figures}


@pytest.fixture
def pem(tmp_path: Path) -> Callable[[int], str]:
    def make(days: int) -> str:
        path = tmp_path / f"{days}.crt"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-subj", "/CN=x", "-days", str(days), "-keyout", os.devnull, "-out", str(path)]
        subprocess.run(command, check=True, capture_output=True)
        return str(path)

    return make


def test_certificates_say_when_they_end(pem: Callable[[int], str]) -> None:
    found = by_labels(script.certificates({"host": pem(9), "ca": pem(400)}))
    for name, days in (("host", 9), ("ca", 400)):
        assert abs(found["certificate_expiry_seconds", name] - time.time() - days * 86_400) < 60


@pytest.mark.parametrize("six", [False, True])
def test_firewall_and_guard_are_asked_of_the_kernel_for_each_family_there_is(tmp_path: Path, six: bool) -> None:
    asked = []

    def run(*command: str) -> str:
        asked.append(command[0])
        rules = RULES if command[0] == "iptables" else [rule.replace("ufw-", "ufw6-") for rule in RULES]
        return "\n".join(rules) + "\n"

    if six:
        (tmp_path / "proc/net").mkdir(parents=True)
        (tmp_path / "proc/net/if_inet6").touch()
    found = by_labels(script.firewall(tmp_path, run))
    assert asked == ["iptables", "ip6tables"][: 1 + six]
    families = ("ipv4", "ipv6")[: 1 + six]
    assert found == {(what, family): 1.0 for what in ("firewall_closed", "docker_guard") for family in families}


@pytest.mark.parametrize(
    ("gone", "there", "closed", "guarded"),
    [
        # `ufw disable`, and a policy that somebody changed.
        (["-P INPUT DROP"], ["-P INPUT ACCEPT"], False, True),
        (["-A INPUT -j ufw-before-input"], [], False, True),
        (["-A ufw-before-input -j ufw-user-input"], [], False, True),
        ([], ["-A INPUT -j ACCEPT"], False, True),
        # `iptables -F DOCKER-USER`, and what Docker makes of it.
        ([rule for rule in RULES if rule.startswith("-A DOCKER-USER")], ["-A DOCKER-USER -j RETURN"], True, False),
        (['-A DOCKER-USER -m comment --comment "muster 3fe4c8487e56"'], [], True, False),
        (["-A DOCKER-USER -j muster-published"], [], True, False),
        ([rule for rule in RULES if rule.startswith("-A muster-published")], [], True, False),
        (["-A FORWARD -j DOCKER-USER"], [], True, False),
        # Docker without its chains forwards nothing: iptables is off in its settings, or it knows no IPv6.
        (["-A FORWARD -j DOCKER-USER", "-N DOCKER"], [], True, True),
    ],
)
def test_what_opens_a_host_is_seen(gone: list[str], there: list[str], closed: bool, guarded: bool) -> None:
    rules = [rule for rule in RULES if rule not in gone] + there
    assert set(gone) <= set(RULES)
    assert (script.is_closed(rules, "ipv4"), script.is_guarded(rules)) == (closed, guarded)


@pytest.mark.parametrize(
    ("rule", "guarded"),
    [("-A DOCKER-USER -j RETURN", False), ("-A DOCKER-USER -j ACCEPT", False), ("-A DOCKER-USER -j f2b-sshd", True)],
)
def test_what_others_put_before_the_guard(rule: str, guarded: bool) -> None:
    at = next(number for number, found in enumerate(RULES) if found.startswith("-A DOCKER-USER"))
    assert script.is_guarded([*RULES[:at], rule, *RULES[at:]]) == guarded
    forward = RULES.index("-A FORWARD -j DOCKER-USER")
    assert not script.is_guarded([*RULES[:forward], "-A FORWARD -o docker0 -j DOCKER", *RULES[forward:]])


def about(project: str, service: str, pid: int, **more: Any) -> dict[str, Any]:
    """A container as Docker tells of it; `state` and `labels` are merged."""
    labels = {"com.docker.compose.project": project, "com.docker.compose.service": service, "muster.revision": "x"}
    state = {"Running": True, "Restarting": False, "Pid": pid, **more.pop("state", {})}
    found = {"RestartCount": 0, "HostConfig": {"ShmSize": 64 * 2**20}, "State": state}
    return {**found, "Config": {"Labels": labels | more.pop("labels", {})}, **more}


def process(root: Path, pid: int, group: str, kills: int, *, version: int = 1) -> None:
    folder = root / "proc" / str(pid)
    (folder / "root/dev/shm").mkdir(parents=True)
    lines = ["3:cpu,cpuacct:/else", f"2:memory:/{group}", "0::/unified"] if version == 1 else [f"0::/{group}"]
    (folder / "cgroup").write_text("\n".join(lines) + "\n")
    place = root / "sys/fs/cgroup" / ("memory" if version == 1 else "") / group
    place.mkdir(parents=True)
    name, text = ("memory.oom_control", "under_oom 0") if version == 1 else ("memory.events", "oom 7")
    (place / name).write_text(f"{text}\noom_kill {kills}\noom_group_kill 9\n")


def answers(*found: dict[str, Any]) -> Callable[[str], Any]:
    def ask(path: str) -> Any:
        if path.startswith("/containers/json?all=1&"):
            return [{"Id": str(number), "Names": [f"/{number}"]} for number in range(len(found))]
        one = found[int(path.split("/")[2])]
        if not one:
            raise RuntimeError("no such container")
        return one

    return ask


@pytest.mark.parametrize("version", [1, 2])
def test_containers_by_project_and_service(tmp_path: Path, version: int) -> None:
    process(tmp_path, 7, "docker/abc", 3, version=version)
    process(tmp_path, 8, "docker/def", 0, version=version)
    found = by_labels(
        script.containers(
            answers(
                about(
                    "ray_worker", "worker-1", 7, HostConfig={"ShmSize": 2**30}, state={"Health": {"Status": "healthy"}}
                ),
                about("flower", "flower", 8, RestartCount=4, state={"Health": {"Status": "unhealthy"}}),
                {},
                about("celery_redis", "redis", 0, state={"Running": False}),
                about("celery_beat", "beat", 0, state={"Restarting": True}, RestartCount=9),
                about("gateway", "caddy", 404, state={"Health": {"Status": "starting"}}),
                about("prometheus", "check", 8, labels={"com.docker.compose.oneoff": "True"}),
            ),
            tmp_path,
        )
    )
    shm = os.statvfs(tmp_path)
    assert found.pop(("container_shm_bytes", "ray_worker", "worker-1")) == shm.f_blocks * shm.f_frsize
    assert found.pop(("container_shm_used_bytes", "ray_worker", "worker-1")) > 0
    assert found == {
        ("docker_up",): 1,
        ("container_running", "ray_worker", "worker-1"): 1,
        ("container_healthy", "ray_worker", "worker-1"): 1,
        ("container_restarts_total", "ray_worker", "worker-1"): 0,
        ("container_oom_kills_total", "ray_worker", "worker-1"): 3,
        ("container_running", "flower", "flower"): 1,
        ("container_healthy", "flower", "flower"): 0,
        ("container_restarts_total", "flower", "flower"): 4,
        ("container_oom_kills_total", "flower", "flower"): 0,
        ("container_running", "celery_redis", "redis"): 0,
        ("container_restarts_total", "celery_redis", "redis"): 0,
        ("container_running", "celery_beat", "beat"): 0,
        ("container_restarts_total", "celery_beat", "beat"): 9,
        # Its process ended while it was asked for, and its check has not said anything yet.
        ("container_running", "gateway", "caddy"): 1,
        ("container_restarts_total", "gateway", "caddy"): 0,
    }


class Answer(BaseHTTPRequestHandler):
    """Says what the test put for a path, to who has the token."""

    pages: dict[str, Any]
    token = ""

    def do_GET(self) -> None:
        good = not self.token or self.headers.get("Authorization") == f"Bearer {self.token}"
        body = json.dumps(self.pages.get(self.path)).encode()
        self.send_response(401 if not good else 200 if self.path in self.pages else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "a test"

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(server: Any) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_docker_is_asked_by_its_socket_and_one_that_is_silent_is_a_figure(tmp_path: Path) -> None:
    path = str(tmp_path / "docker.sock")
    assert script.containers(script.Docker(path).ask, tmp_path) == [("docker_up", {}, 0.0)]
    filters = "%7B%22label%22%3A%20%5B%22com.docker.compose.project%22%2C%20%22muster.revision%22%5D%7D"
    listed = [{"Id": "abc", "Names": ["/x"]}, {"Id": "gone", "Names": ["/y"]}]
    Answer.pages = {
        f"/containers/json?all=1&filters={filters}": listed,
        "/containers/abc/json": about("flower", "flower", 0, state={"Running": False}),
    }
    Answer.token = ""
    with serving(socketserver.ThreadingUnixStreamServer(path, Answer)):
        found = by_labels(script.containers(script.Docker(path).ask, tmp_path))
    assert found["docker_up",] == 1 and found["container_running", "flower", "flower"] == 0
    assert len(found) == 3


def test_rays_jobs_by_state_for_who_has_the_token(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    states = ["SUCCEEDED", "FAILED", "FAILED", "RUNNING"]
    jobs = [{"type": "SUBMISSION", "status": state} for state in states]
    # A driver that somebody started himself: Ray says of it that it succeeded, however it ended.
    Answer.pages, Answer.token = {"/api/jobs/": [*jobs, {"type": "DRIVER", "status": "SUCCEEDED"}]}, "secret"
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer)
    with serving(server):
        url = f"http://127.0.0.1:{server.server_address[1]}"
        found = by_labels(script.ray_jobs(url, str(token)))
        assert found == {("ray_jobs", state): states.count(state) for state in script.JOBS}
        assert found["ray_jobs", "PENDING"] == 0 and found["ray_jobs", "FAILED"] == 2
        token.write_text("wrong")
        with pytest.raises(RuntimeError, match="401"):
            script.ray_jobs(url, str(token))
    with pytest.raises(OSError):
        script.ray_jobs(url, str(token))


def test_a_backups_age_is_known_where_there_is_one_or_should_be(tmp_path: Path) -> None:
    stamp = tmp_path / "last"
    assert script.backup(str(stamp), wanted=False) == []
    assert script.backup(str(stamp), wanted=True) == [("backup_seconds", {}, 0.0)]
    stamp.touch()
    os.utime(stamp, (1000, 2000))
    assert script.backup(str(stamp), wanted=False) == [("backup_seconds", {}, 2000.0)]


def test_a_part_that_fails_says_so_and_hides_no_other(
    tmp_path: Path, pem: Callable[[int], str], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "certificates": {"host": str(tmp_path / "none.crt")},
        "docker": str(tmp_path / "none.sock"),
        "backup": str(tmp_path / "none"),
        "backup_wanted": True,
        "firewall": False,
        "ray_jobs": {},
    }
    failed = by_labels(script.gather(settings, tmp_path))
    assert failed["figures_failed", "certificates"] == 1
    assert "certificates: openssl:" in capsys.readouterr().err
    settings["certificates"] = {"host": pem(9)}
    good = by_labels(script.gather(settings, tmp_path))
    assert good["figures_failed", "certificates"] == 0
    for found in (failed, good):
        assert (found["docker_up",], found["backup_seconds",]) == (0, 0)
        assert found["figures_failed", "containers"] == found["figures_failed", "backup"] == 0
        assert abs(found["figures_seconds",] - time.time()) < 60
        # What the host does not have is no part of it.
        assert ("figures_failed", "firewall") not in found and ("figures_failed", "ray_jobs") not in found


def test_prometheus_reads_all_of_it(tmp_path: Path) -> None:
    figures = [(name, {"project": 'a"b', "service": "x"}, 1.0) for name in script.HELP] + [("docker_up", {}, 0.0)]
    script.write(tmp_path / "muster_host.prom", script.text(figures))
    families = list(text_string_to_metric_families((tmp_path / "muster_host.prom").read_text()))
    samples = [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]
    assert len(samples) == len(figures)
    for name, labels, value in figures:
        assert (f"muster_host_{name}", labels, value) in samples
    for family in families:
        kind, _ = script.HELP.get(family.name.removeprefix("muster_host_"), ("counter", ""))
        assert (family.type, bool(family.documentation)) == (kind, True)


def test_every_figure_it_makes_is_described() -> None:
    # What has no line in HELP would not be written.
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 9))
    made = {
        node.elts[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Tuple) and len(node.elts) == 3 and isinstance(node.elts[0], ast.Constant)
    }
    assert made == set(script.HELP)


def test_it_is_written_in_one_step_for_the_exporter_to_read(tmp_path: Path) -> None:
    path = tmp_path / "muster_host.prom"
    # A former life was killed in between, or somebody waits for root to follow a link.
    (tmp_path / "muster_host.new").symlink_to(tmp_path / "elsewhere")
    script.write(path, "x 1\n")
    script.write(path, "x 2\n")
    assert path.read_text() == "x 2\n" and path.stat().st_mode & 0o777 == 0o644
    assert [one.name for one in tmp_path.iterdir()] == ["muster_host.prom"]


def test_run_as_its_service_runs_it(tmp_path: Path, pem: Callable[[int], str]) -> None:
    path = tmp_path / "muster_host.prom"
    settings = {"file": str(path), "certificates": {"host": pem(9)}, "firewall": False, "ray_jobs": {},
                "docker": str(tmp_path / "none"), "backup": str(tmp_path / "none"), "backup_wanted": False}  # fmt: skip
    (tmp_path / "figures.json").write_text(json.dumps(settings))
    command = [sys.executable, "-S", "-I", str(SCRIPT), str(tmp_path / "figures.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert 'muster_host_certificate_expiry_seconds{file="host"}' in path.read_text()


@pytest.fixture(scope="module")
def example() -> tuple[Vars, Groups]:
    return load_inventory([ROOT / "inventory" / "example"])


@pytest.mark.parametrize(("host", "head"), [("server84", True), ("server80", False), ("laptop1", False)])
def test_a_host_is_asked_about_what_it_has(
    render: Callable[..., str], example: tuple[Vars, Groups], host: str, head: bool
) -> None:
    hostvars, groups = example
    mine = [name for name, members in groups.items() if host in members]

    def settings(**more: Any) -> dict[str, Any]:
        given = {"groups": groups, "inventory_hostname": host, "group_names": mine, **more}
        return dict(json.loads(render("node_exporter", "figures.json.j2", hostvars, host, **given)))

    found = settings()
    assert found["certificates"] == {name: f"/etc/muster/pki/{name}.crt" for name in ("host", "ca")}
    assert (found["firewall"], found["backup_wanted"], bool(found["ray_jobs"])) == (True, head, head)
    if head:
        assert found["ray_jobs"] == {"url": "http://127.0.0.1:8265", "token": "/opt/muster/ray_head/ray_token"}
    assert settings(group_names=[name for name in mine if name != "backup"])["backup_wanted"] is False
    without = settings(group_names=[name for name in mine if name not in ("ufw", "pki")])
    assert (without["firewall"], without["certificates"]) == (False, {})
    # Only the directory of the figures may be written, and it is where the exporter looks.
    unit = render("node_exporter", "muster-host-figures.service.j2", hostvars, host, groups=groups)
    assert f"ReadWritePaths={Path(found['file']).parent} " in unit


def test_it_is_python_of_old_and_nothing_else() -> None:
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 9))
    modules = {
        alias.name.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    modules |= {str(node.module).partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules <= set(sys.stdlib_module_names)
