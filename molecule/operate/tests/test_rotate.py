"""Everything secret is made anew while tasks come in: nothing is lost, and what was good before opens nothing more."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
from celery_lab import REDIS, TLS, Broker, secret
from history_lab import BEAT, History, events_of
from ray_lab import ROOT, Lab, until

from tests.history.checker import EFFECT

LAB = Lab(os.environ.get("MOLECULE_SCENARIO_NAME", "operate"))
BROKER = Broker(LAB)
SECRETS = LAB.secrets
HEAD = "ray_head-head-1"
APP, LAPTOP = "celery_app_password", "celery_laptop_laptop1_password"
PLAYBOOK = "playbooks/rotate.yml"
# The registry of this machine serves all labs: its certificate is not ours to change, and it does not know another
# authority. With a registry of one's own it would be the same.
NO_BUILDER = ("--limit", "all:!builder")
# What a client of Ray's control service (HTTP/2) and one of Redis say first.
FIRST_WORDS = {6379: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 6380: b"PING\r\n"}
# An application: sends tasks until it is told to stop. When the broker does not let it in it begins anew, which reads
# password and certificates again; the task that it was sending keeps its id.
SENDER = """
import os, sys, time, uuid
code, again = os.environ["CODE"], sys.argv[1:]
try:
    from celery_app import app
    from drill import line
    while not os.path.exists("/drill/stop"):
        task = again[0] if again else str(uuid.uuid4())
        if not again:
            print(line("enqueued", task), end="", flush=True)
        again = [task]
        app.send_task("drill.step", [0.4], task_id=task, queue="default", retry=False)
        again = []
        time.sleep(0.4)
except Exception as error:
    print(f"again: {error}", file=sys.stderr, flush=True)
    time.sleep(0.5)
    os.execv(sys.executable, [sys.executable, "-c", code, *again])
"""


def rotate(*arguments: str) -> str:
    """Run it, and what it says; how long it took is printed."""
    start = time.monotonic()
    run = LAB.play(PLAYBOOK, *[part for one in arguments for part in (("-e", one) if "=" in one else (one,))])
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    print(f"rotate {' '.join(arguments)}: {time.monotonic() - start:.0f} s")
    return " ".join(run.stdout.split())


def refused(*arguments: str) -> str:
    run = LAB.play(PLAYBOOK, *[part for one in arguments for part in (("-e", one) if "=" in one else (one,))])
    assert run.returncode != 0
    (message,) = set(re.findall(r"msg: (?:[>|]-? )?'?(.*?) Nothing was changed\.", " ".join(run.stdout.split())))
    return message.replace("''", "'")


def secrets() -> dict[str, str]:
    """Everything that is secret, and whatever lies beside it."""
    return {str(path.relative_to(SECRETS)): path.read_text() for path in SECRETS.rglob("*") if path.is_file()}


def containers() -> dict[str, str]:
    return {host: LAB.on(host, "docker", "ps", "--format", "{{.Names}} {{.ID}}") for host in hosts()}


def hosts() -> list[str]:
    """The lab's hosts."""
    named = f"label=muster.lab={LAB.name}"
    done = subprocess.run(
        ["docker", "ps", "--filter", named, "--format", "{{.Names}}"], capture_output=True, text=True, check=True
    )
    return sorted(name.removeprefix(f"{LAB.name}-") for name in done.stdout.split())


def workers() -> list[str]:
    return [host for host in hosts() if "celery_worker" in LAB.on(host, "docker", "ps", "--format", "{{.Names}}")]


def let_in(user: str, password: str) -> bool:
    said = BROKER.ask(user, "ping", password=password)
    assert said == "PONG" or "WRONGPASS" in said, said
    return said == "PONG"


def status(*options: str) -> str:
    """What the gateway answers."""
    words = ("curl", "-sk", "-m", "20", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code}")
    return LAB.on("head", *words, *options, check=False)


def jobs_api(token: str) -> str:
    return status("-H", f"Authorization: Bearer {token}", "https://127.0.0.1/api/jobs/")


def log_in(password: str) -> str:
    """The cookie of a session; nothing when the password is wrong."""
    form = ("--data-urlencode", "user=admin", "--data-urlencode", f"password={password}")
    said = LAB.on("head", "curl", "-sk", "-i", "--noproxy", "*", *form, "https://127.0.0.1/gate/login", check=False)
    found = re.search(r"set-cookie: (\S+);", said, re.IGNORECASE)
    return found.group(1) if found else ""


def certificate(host: str) -> str:
    """Its serial number."""
    words = ("openssl", "x509", "-noout", "-serial")
    return LAB.on(host, "sh", "-c", f"cat /etc/muster/pki/host.crt | {' '.join(words)}").strip()


def shown(port: int) -> str:
    """The serial number of what a service of the head shows."""
    ask = f"openssl s_client -connect 127.0.0.1:{port} </dev/null 2>/dev/null | openssl x509 -noout -serial"
    return LAB.on("head", "sh", "-c", ask).strip()


def greets(port: int, mine: str, trust: str = "") -> bool:
    """Whether a service of the head and who has the certificate in this folder take each other for whom they are."""
    code = f"""
import socket, ssl
context = ssl.create_default_context(cafile="{trust or mine}/ca.crt")
context.load_cert_chain("{mine}/host.crt", "{mine}/host.key")
context.check_hostname = False
context.set_alpn_protocols(["h2"] if {port} == 6379 else [])
with socket.create_connection((ADDRESS, {port}), timeout=10) as plain, context.wrap_socket(plain) as tls:
    tls.settimeout(10)
    # With TLS 1.3 a refusal comes after the handshake only, by a word or by an end.
    try:
        tls.sendall({FIRST_WORDS[port]!r})
        print("answer", tls.recv(10))
    except OSError as error:
        print("refused after SSL's handshake:", error)
"""
    address = next(one for one in LAB.on("head", "hostname", "-I").split() if one.startswith("172.30."))
    said = LAB.on("head", "python3", "-", stdin=code.replace("ADDRESS", repr(address)), check=False)
    assert "answer" in said or "SSL" in said, said
    return "answer b''" not in said and "answer" in said


def ray_takes(token: str) -> bool:
    """Whether Ray's own door obeys somebody with this token."""
    said = LAB.inside(
        "head", HEAD, "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--noproxy", "*",
        "-H", f"Authorization: Bearer {token}", "http://127.0.0.1:8265/api/jobs/",
    )  # fmt: skip
    assert said in ("200", "401", "403"), said
    return said == "200"


class Load:
    """Tasks come in, from an application that runs on the head beside our containers; others look on."""

    def __init__(self) -> None:
        self.history = History(LAB, BROKER, workers())
        self.lines: list[str] = []
        self.away, self.seconds = 0.0, 0.0
        self.over = threading.Event()

    def __enter__(self) -> Load:
        until(120, "all nodes are there", lambda: len(LAB.nodes()) == self.planned())
        self.history.forget()
        LAB.on("head", "rm", "-f", "/var/lib/drill/stop")
        image = LAB.on("head", "docker", "inspect", "-f", "{{.Config.Image}}", BEAT).strip()
        names = "MUSTER_|PYTHON"
        given = json.loads(LAB.on("head", "docker", "inspect", "-f", "{{json .Config.Env}}", BEAT))
        environment = [part for one in given if re.match(names, one) for part in ("-e", one)]
        volumes = ("/opt/muster/celery_beat:/app:ro", "/etc/muster/pki:/etc/muster/pki:ro",
                   "/opt/muster/code:/opt/muster/code:ro", "/var/lib/drill:/drill")  # fmt: skip
        self.sender = subprocess.Popen(
            ["docker", "exec", f"{LAB.name}-head", "docker", "run", "--rm", "--name", "sender", "--network", "host",
             "--user", "10077:10077", *environment, "-e", "MUSTER_REDIS_PASSWORD_FILE=/app/celery_password",
             "-e", f"CODE={SENDER}", *[part for volume in volumes for part in ("-v", volume)],
             "--entrypoint", "python3", image, "-c", SENDER],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.threads = [threading.Thread(target=self.read), threading.Thread(target=self.watch)]
        for thread in self.threads:
            thread.start()
        until(60, "tasks come in", lambda: len(self.lines) > 10)
        self.start = time.monotonic()
        return self

    def __exit__(self, *problem: object) -> None:
        self.seconds = time.monotonic() - self.start
        self.over.set()
        LAB.on("head", "touch", "/var/lib/drill/stop")
        until(60, "no more tasks come in", lambda: self.sender.poll() is not None)
        for thread in self.threads:
            thread.join()
        LAB.on("head", "rm", "-f", "/var/lib/drill/stop")
        self.errors = self.sender.stderr.read() if self.sender.stderr else ""

    @staticmethod
    def planned() -> int:
        return 1 + sum(len(LAB.containers(host, "ray_worker")) for host in hosts())

    def read(self) -> None:
        self.lines.extend(self.sender.stdout or ())

    def watch(self) -> None:
        """The longest time for which some Ray node was not there."""
        whole = set(LAB.nodes())
        since = time.monotonic()
        while not self.over.wait(1):
            with contextlib.suppress(AssertionError, ValueError):
                if set(LAB.nodes()) >= whole:
                    since = time.monotonic()
            self.away = max(self.away, time.monotonic() - since)

    def judge(self) -> None:
        """Nothing was lost, nothing done twice; and how long nothing was done."""
        self.history.wait(len(self.lines))
        verdict = self.history.judged(events_of(self.lines))
        moments = sorted(event.at for event in self.history.all() if event.kind == EFFECT)
        idle = max((later - earlier for earlier, later in pairwise(moments)), default=0.0)
        print(
            f"{verdict}; {self.seconds:.0f} s; no task was done for {idle:.0f} s, a Ray node was away for "
            f"{self.away:.0f} s; the sender began {self.errors.count('again:')} times anew"
        )
        assert verdict.enqueued > 50
        assert not (verdict.lost or verdict.double or verdict.overlapping or verdict.unknown), self.errors[-3000:]


def ended(said: str) -> str:
    """What became of a job; nothing while it runs."""
    return next((word for word in ("failed", "stopped", "succeeded") if word in said.lower()), "")


@contextlib.contextmanager
def asleep(host: str) -> Iterator[None]:
    LAB.freeze(host)
    try:
        yield
    finally:
        LAB.thaw(host)


@pytest.fixture(autouse=True, scope="module")
def own_secrets() -> None:
    """Those of the lab are those of every lab on this machine."""
    assert SECRETS.name == LAB.name
    assert LAB.on("head", "cat", "/opt/muster/celery_beat/celery_password").strip() == secret(APP, SECRETS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "nothing is named. Fix: add -e what=...; there are ray_token, redis, gateway, flower, certificates, "
             "authority (several by comma), and all."),
        (("what=redis", "--limit", "server1"), "--limit leaves out head"),
        (("what=redis", "--tags", "celery"), "parts are not chosen by tags here."),
        (("what=ray_token", "ray_token=" + "of-a-vault" * 5), "ray_token: set in your inventory or Vault"),
    ],
    ids=str,
)  # fmt: skip
def test_a_mistake_is_one_line_and_changes_nothing(given: tuple[str, ...], message: str) -> None:
    before = secrets()
    said = refused(*given)
    assert said.startswith(message.rstrip(".")), said
    assert secrets() == before


def test_a_check_changes_nothing() -> None:
    before = secrets(), containers()
    said = rotate("what=all", "muster_registry=172.30.0.1:5000", "--check")
    assert "ray_token, redis, gateway, flower, authority" in said
    assert (secrets(), containers()) == before


def test_under_load_all_is_made_anew_and_what_was_good_opens_nothing() -> None:
    old = secrets()
    password, token = old["gateway_admin_password"].strip(), old["gateway_admin_token"].strip()
    session = log_in(password)
    assert session and status("-b", session, "https://127.0.0.1/") == "200"
    serials = {host: certificate(host) for host in hosts() if host in workers()}
    job = LAB.inside(
        "head", HEAD, "ray", "job", "submit", "--no-wait", "--submission-id", f"rotated-{time.time():.0f}",
        "--entrypoint-num-cpus", "0.1", "--", "sleep", "600",
    )  # fmt: skip
    (name,) = set(re.findall(r"rotated-\d+", job))
    until(60, "the job runs", lambda: "RUNNING" in LAB.inside("head", HEAD, "ray", "job", "status", name, check=False))
    with Load() as load:
        rotate("what=ray_token,redis,gateway,flower,certificates", *NO_BUILDER)
    load.judge()
    new = secrets()
    assert new.keys() == old.keys(), "nothing former is kept"
    # Certificates are compared on the hosts, below. The salt is no secret; who keeps the backups knows theirs.
    same = {file for file in old if old[file] == new[file] and not file.startswith(("pki/", "backup_"))}
    assert same == {"gateway_salt"}
    for user, file in (("app", APP), ("operator", "celery_operator_password"), ("laptop-laptop1", LAPTOP)):
        assert let_in(user, new[file].strip()) and not let_in(user, old[file].strip()), user
    assert not let_in("exporter", old["celery_exporter_password"].strip())
    assert ray_takes(new["ray_token"].strip()) and not ray_takes(old["ray_token"].strip())
    assert jobs_api(new["gateway_admin_token"].strip()) == "200" and jobs_api(token) == "401"
    assert status("-b", session, "https://127.0.0.1/") == "401"
    session = log_in(new["gateway_admin_password"].strip())
    assert session and not log_in(password)
    assert status("-b", session, "https://127.0.0.1/flower/") == "200"
    for host, serial in serials.items():
        assert certificate(host) != serial
    assert shown(6380) == shown(443) == certificate("head")
    ask = ("ray", "job", "status", name)
    state = until(60, "the job has ended", lambda: ended(LAB.inside("head", HEAD, *ask, check=False)))
    print(f"a Ray job that ran meanwhile: {state}")


def test_one_that_was_cut_goes_on_and_a_laptop_that_slept_comes_later() -> None:
    old = secrets()
    cut = subprocess.Popen(
        ["ansible-playbook", *LAB.inventory, PLAYBOOK, "-e", "what=redis"],
        cwd=ROOT, env=LAB.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    former = SECRETS / f"{APP}.old"
    until(60, "there is a new password", lambda: former.exists() and (SECRETS / APP).exists())
    until(60, "the broker knows it", lambda: let_in("app", secret(APP, SECRETS)))
    cut.kill()
    cut.wait()
    new = secrets()
    assert let_in("app", old[APP].strip()), "clients that were not reached are let in"
    with asleep("laptop1"):
        said = rotate("what=redis", "keep_old=true")
        assert "laptop1: not reached" in said and "celery_app_password.old is good beside" in said
        for password in (old, new):
            assert let_in("app", password[APP].strip()) and let_in("laptop-laptop1", password[LAPTOP].strip())
        assert not let_in("operator", old["celery_operator_password"].strip())
    assert secrets()[APP] == new[APP] != old[APP], "no third one was made"
    broker = LAB.containers("head", "celery_redis")
    # Who came with the former password is there already.
    listener = subprocess.Popen(
        ["docker", "exec", "-i", f"{LAB.name}-head", "docker", "exec", "-i",
         "-e", f"REDISCLI_AUTH={old[APP].strip()}", REDIS, "redis-cli", "-h", "127.0.0.1", "-p", "6380",
         *TLS, "--user", "app", "blpop", "drill:never", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    until(20, "he listens", lambda: "cmd=blpop" in BROKER.ask("operator", "client", "list"))
    rotate("what=redis")
    assert LAB.containers("head", "celery_redis") == broker, "the broker was not restarted for a login"
    said, _ = listener.communicate(timeout=10)
    assert "WRONGPASS" in said or "NOAUTH" in said or "closed" in said, said
    after = secrets()
    assert after[APP] == new[APP] and after[LAPTOP] == new[LAPTOP]
    assert not [file for file in after if file.endswith((".old", ".out"))]
    for user, file in (("app", APP), ("laptop-laptop1", LAPTOP)):
        assert let_in(user, after[file].strip()) and not let_in(user, old[file].strip())


def test_one_person_and_one_host_are_renewed_alone() -> None:
    before, old = containers(), secrets()
    rotate("what=gateway", "user=admin")
    assert containers() == before, "nothing was restarted for a login"
    changed = {file for file, text in secrets().items() if old.get(file) != text}
    assert changed == {"gateway_admin_password", "gateway_admin_token"}
    serial = certificate("server1")
    rotate("what=certificates", "host=server1")
    assert certificate("server1") != serial
    after = containers()
    assert {host for host in after if after[host] != before[host]} == {"server1"}


def test_the_authority_is_replaced_under_load_and_the_former_one_knows_nobody() -> None:
    """And back to the one that the lab's registry knows, as one goes on that was cut."""
    pki = SECRETS / "pki"
    lab = {end: (pki / f"ca.{end}").read_bytes() for end in ("key", "csr", "crt")}
    lost = {name: LAB.on("server1", "cat", f"/etc/muster/pki/{name}") for name in ("ca.crt", "host.crt", "host.key")}
    with Load() as load:
        rotate("what=authority", "muster_registry=172.30.0.1:5000")
    load.judge()
    assert (pki / "ca.crt").read_bytes() != lab["crt"]
    for host in workers():
        assert LAB.on(host, "cat", "/etc/muster/pki/ca.crt") == (pki / "ca.crt").read_text()
    for name, text in lost.items():
        LAB.on("head", "sh", "-c", f"mkdir -p /root/lost && cat >/root/lost/{name}", stdin=text)
    assert greets(6380, "/etc/muster/pki") and greets(6379, "/etc/muster/pki")
    for port in (6379, 6380):
        assert not greets(port, "/root/lost", trust="/etc/muster/pki"), "a former certificate is refused"
        assert not greets(port, "/etc/muster/pki", trust="/root/lost"), "who trusts the former authority is not fooled"
    LAB.on("head", "rm", "-r", "/root/lost")
    for end, content in lab.items():
        (pki / f"ca.{end}").rename(pki / f"ca.{end}.old")
        (pki / f"ca.{end}").write_bytes(content)
    rotate("what=authority", "muster_registry=172.30.0.1:5000")
    assert (pki / "ca.crt").read_bytes() == lab["crt"]
    image = LAB.on("head", "docker", "inspect", "-f", "{{.Config.Image}}", BEAT).strip()
    LAB.on("head", "docker", "pull", image)


def test_the_next_run_of_all_changes_nothing() -> None:
    run = LAB.play("site.yml" if LAB.name == "operate" else f"molecule/{LAB.name}/converge.yml")
    assert run.returncode == 0, run.stdout[-6000:]
    assert set(re.findall(r"changed=(\d+)", run.stdout)) == {"0"}
