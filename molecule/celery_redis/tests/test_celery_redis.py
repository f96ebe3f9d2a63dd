"""The broker: who may do what, and what is left after the worst."""

from __future__ import annotations

import json
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
from celery_lab import REDIS, ROOT, Broker, secret
from ray_lab import Lab, until

ADDRESS = "172.30.88.10"
LAB = Lab("celery_redis")
BROKER = Broker(LAB)
ask = BROKER.ask

EVERYWHERE = (("get", "task"), ("set", "task", "x"), ("lpush", "default", "x"), ("info",), ("eval", "return 1", "0"))
CONTROL = (
    ("flushall",), ("flushdb",), ("keys", "*"), ("config", "get", "*"), ("config", "set", "maxmemory", "0"),
    ("client", "list"), ("client", "kill", "type", "normal"), ("acl", "list"), ("acl", "setuser", "x", "on"),
    ("debug", "sleep", "0"), ("shutdown", "nosave"), ("monitor",), ("save",), ("bgrewriteaof",), ("script", "flush"),
    ("function", "flush"), ("replicaof", "192.0.2.1", "6379"), ("migrate", "192.0.2.1", "6379", "task", "0", "1"),
    ("swapdb", "0", "1"), ("module", "list"), ("slowlog", "get"), ("restore", "x", "0", "x"), ("sort", "default"),
)  # fmt: skip
SWITCHED_OFF = "ERR DEBUG command not allowed"
READING = (
    *EVERYWHERE[:3], ("scan", "0"), ("dbsize",), ("randomkey",), ("type", "task"), ("exists", "task"),
    ("lrange", "default", "0", "-1"), ("hgetall", "unacked"), ("dump", "task"), ("object", "freq", "task"),
    ("memory", "usage", "task"), ("subscribe", "x"), ("publish", "x", "y"), ("del", "task"), ("eval", "return 1", "0"),
    ("xadd", "x", "*", "a", "b"), ("multi",), ("command", "list"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def a_task() -> Iterator[None]:
    """Something that nobody may read, change or remove who should not."""
    assert ask("app", "set", "task", "secret") == "OK"
    yield
    assert ask("app", "get", "task") == "secret"


@pytest.mark.parametrize("command", [("ping",), *EVERYWHERE, *CONTROL], ids=" ".join)
def test_without_a_login_there_is_nothing(command: tuple[str, ...]) -> None:
    assert ask("", *command).startswith(("NOAUTH", SWITCHED_OFF))


@pytest.mark.parametrize("user", ["default", "app", "exporter", "operator", "nobody"])
@pytest.mark.parametrize("password", ["wrong", "muster"])
def test_a_wrong_password_is_refused(user: str, password: str) -> None:
    said = ask(user, "ping", password=password)
    assert "WRONGPASS" in said and "PONG" not in said


@pytest.mark.parametrize("command", [*READING, *CONTROL], ids=" ".join)
def test_metrics_may_not_read_or_change_anything(command: tuple[str, ...]) -> None:
    assert ask("exporter", *command).startswith(("NOPERM", SWITCHED_OFF))


@pytest.mark.parametrize("command", CONTROL, ids=" ".join)
def test_applications_have_no_power_over_the_broker(command: tuple[str, ...]) -> None:
    assert ask("app", *command).startswith(("NOPERM", SWITCHED_OFF))


def permitted(user: str) -> set[str]:
    """Every command that Redis knows and would run for a user."""
    listed = json.loads(ask("operator", "--json", "command"))
    arity = {}
    for name, count, *_, subcommands in listed:
        entries = subcommands or [[name, count]]
        arity.update({entry[0]: abs(entry[1]) for entry in entries})
    calls = [[*name.split("|"), *["1"] * (count - 1 - name.count("|"))] for name, count in arity.items()]
    answers = ask("operator", stdin="".join(f"acl dryrun {user} {' '.join(call)}\n" for call in calls)).splitlines()
    answers = [line for line in answers if line]
    assert len(answers) == len(arity), "a command was not judged"
    return {name for name, answer in zip(arity, answers, strict=True) if "no permissions" not in answer}


# What anybody may say who has not said yet who he is.
ANYBODY = {"auth", "hello", "quit", "reset"}


def test_of_all_commands_metrics_has_those_for_figures_only() -> None:
    assert permitted("exporter") - ANYBODY == {
        "ping", "info", "client|setname", "client|setinfo", "latency|latest", "latency|histogram", "slowlog|len"
    }  # fmt: skip


def test_of_all_dangerous_commands_applications_have_info_only() -> None:
    dangerous = {*ask("operator", "acl", "cat", "dangerous").split(), *ask("operator", "acl", "cat", "admin").split()}
    mine = permitted("app")
    assert {"set", "brpop", "evalsha", "subscribe", "multi", "time"} <= mine
    assert mine & dangerous == {"info"}
    assert permitted("operator") >= dangerous


def test_what_applications_do_works() -> None:
    assert ask("app", "lpush", "queue", "1", "2") == "2"
    assert ask("app", "eval", "return redis.call('rpop', KEYS[1])", "1", "queue") == "1"
    assert ask("app", "del", "queue") == "1"
    assert "uptime_in_seconds" in ask("app", "info", "server")


def test_it_speaks_tls_only_and_on_its_own_addresses() -> None:
    plain = ask("operator", "ping", options=())
    assert "PONG" not in plain and ("reset" in plain or "closed" in plain), plain
    stranger = ask("operator", "ping", options=("--tls", "--cacert", "/etc/ssl/certs/ca-certificates.crt"))
    assert "PONG" not in stranger and "certificate verify failed" in stranger
    listening = LAB.on("head", "ss", "-Hltn").splitlines()
    addresses = {line.split()[3].rsplit(":", 1)[0] for line in listening if line.split()[3].endswith(":6380")}
    assert addresses == {ADDRESS, "127.0.0.1", "[::1]"}
    assert not any(line.split()[3].endswith(":6379") for line in listening)


def connects() -> bool:
    """Whether the controller, which is not in the cluster, gets through."""
    try:
        socket.create_connection((ADDRESS, 6380), timeout=3).close()
    except OSError:
        return False
    return True


def test_who_is_outside_cannot_connect_unless_the_inventory_names_it() -> None:
    assert not connects()
    opened = LAB.play("playbooks/ufw.yml", "-e", json.dumps({"celery_client_networks": ["172.30.0.1"]}))
    assert opened.returncode == 0, opened.stdout[-3000:]
    try:
        context = ssl.create_default_context(cafile=str(ROOT / ".secrets/lab/pki/ca.crt"))
        raw = socket.create_connection((ADDRESS, 6380), timeout=5)
        with context.wrap_socket(raw, server_hostname=ADDRESS) as connection:
            connection.sendall(f"AUTH app {secret('celery_app_password')}\r\nGET task\r\n".encode())
            said = b""
            while b"secret" not in said:
                said += connection.recv(100)
    finally:
        closed = LAB.play("playbooks/ufw.yml")
    assert closed.returncode == 0, closed.stdout[-3000:]
    assert not connects()


def test_killed_it_has_all_that_it_confirmed() -> None:
    # Redis reads its log under its own rules, and transactions and scripts under others than plain commands.
    script = "redis.call('incr', KEYS[2]); return redis.call('rpush', KEYS[1], ARGV[1])"
    forms = ("rpush survivors {}\n", "multi\nrpush survivors {}\nincr counted\nexec\n",
             f'eval "{script}" 2 survivors counted {{}}\n')  # fmt: skip
    ask("app", stdin="".join(forms[number % 3].format(number) for number in range(3000)))
    assert (ask("app", "llen", "survivors"), ask("app", "get", "counted")) == ("3000", "2000")
    LAB.kill_hard("head", REDIS)
    until(60, "it is back", BROKER.healthy)
    assert ask("app", "llen", "survivors") == "3000"
    assert ask("app", "lindex", "survivors", "-1") == "2999"
    assert ask("app", "get", "counted") == "2000"
    ask("app", "del", "survivors", "counted")


def test_a_container_that_is_removed_leaves_its_data() -> None:
    LAB.on("head", "docker", "rm", "-f", REDIS)
    again = LAB.play("molecule/celery_redis/converge.yml", "--tags", "all", "--limit", "head")
    assert again.returncode == 0, again.stdout[-3000:]
    assert BROKER.healthy()  # a_task looks for the data


def test_a_full_broker_refuses_what_is_new_and_keeps_what_it_has() -> None:
    blob = "x" * 100_000
    try:
        said = ask("app", stdin="".join(f"set blob{number} {blob}\n" for number in range(400))).splitlines()
        said = [line for line in said if line]
        assert said[0] == "OK" and said[-1].startswith("OOM"), said[-1]
        kept = said.count("OK")
        assert ask("app", stdin="".join(f"exists blob{n}\n" for n in range(kept))).split().count("1") == kept
        assert BROKER.healthy()
    finally:
        ask("app", stdin="".join(f"unlink blob{number}\n" for number in range(400)))
    assert ask("app", "set", "new", "1") == "OK"


def test_the_health_check_sees_a_redis_that_does_not_answer() -> None:
    assert BROKER.healthy()
    LAB.on("head", "sh", "-c", "kill -STOP $(pgrep -x redis-server)")
    try:
        assert not BROKER.healthy()
    finally:
        LAB.on("head", "sh", "-c", "kill -CONT $(pgrep -x redis-server)")


def test_settings_that_redis_refuses_change_nothing() -> None:
    before = LAB.on("head", "cat", "/opt/muster/celery_redis/redis.conf"), LAB.containers("head", "celery_redis")
    bad = json.dumps({"celery_redis_options": {"maxmemory-policy": "sometimes"}})
    run = LAB.play("molecule/celery_redis/converge.yml", "-e", bad, "--limit", "head")
    assert run.returncode != 0
    assert "its files were not written: sh refuses them" in " ".join(run.stdout.split())
    assert "maxmemory-policy" in run.stdout
    after = LAB.on("head", "cat", "/opt/muster/celery_redis/redis.conf"), LAB.containers("head", "celery_redis")
    assert after == before


def test_no_password_lies_open() -> None:
    folder = "/opt/muster/celery_redis"
    for name in ("live/users.acl", "exporter_password"):
        refused = LAB.on("head", "runuser", "-u", "nobody", "--", "cat", f"{folder}/{name}", check=False)
        assert "Permission denied" in refused
    everything = LAB.on("head", "sh", "-c", f"cat {folder}/compose.yml {folder}/live/users.acl {folder}/redis.conf")
    everything += LAB.on("head", "docker", "inspect", REDIS)
    for user in ("app", "exporter", "operator"):
        assert secret(f"celery_{user}_password") not in everything


def test_the_container_has_limits_and_no_privileges() -> None:
    config = json.loads(LAB.on("head", "docker", "inspect", "-f", "{{json .HostConfig}}", REDIS))
    assert config["Memory"] == 2 * 24 * 2**20 + 64 * 2**20 and config["NanoCpus"] and config["PidsLimit"]
    assert config["CapDrop"] == ["ALL"] and config["ReadonlyRootfs"]
    assert LAB.inside("head", REDIS, "id", "-u").strip() == "10077"
    print(LAB.on("head", "docker", "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}"))
