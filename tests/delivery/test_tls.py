"""A broker as the role sets it up: TLS alone, and the logins that its template writes."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme
from celery import Celery
from kombu.exceptions import OperationalError

from celery_app.metrics import Figures
from muster.load import load_inventory
from tests.delivery.conftest import ROOT, RedisServer, Worker, until

Start = Callable[..., Worker]
PASSWORDS = {f"celery_{user}_password": f"password-of-{user}" for user in ("app", "exporter", "operator")}


class TlsRedis(RedisServer):
    """Its client is the operator's."""

    def __init__(self, folder: Path, users: str) -> None:
        self.authority = folder / "ca.crt"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.authority)
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "host.pem")
        self.stranger = folder / "stranger.pem"
        trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(self.stranger)
        (folder / "users.acl").write_text(users)
        super().__init__(folder)

    @property
    def tls(self) -> dict[str, Any]:
        return {"ssl_ca_certs": str(self.authority), "ssl_cert_reqs": ssl.CERT_REQUIRED}

    def login(self, user: str, password: str = "") -> str:
        return f"rediss://{user}:{password or PASSWORDS[f'celery_{user}_password']}@127.0.0.1:{self.port}/0"

    def address(self) -> tuple[str, redis.Redis]:
        return self.login("app"), redis.Redis.from_url(self.login("operator"), decode_responses=True, **self.tls)

    def options(self) -> list[str]:
        return [
            *("--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "optional"),
            *("--tls-ca-cert-file", "/data/ca.crt", "--aclfile", "/data/users.acl"),
            *("--tls-cert-file", "/data/host.pem", "--tls-key-file", "/data/host.pem"),
        ]


@pytest.fixture
def redis_server(tmp_path: Path, render: Callable[..., str]) -> Iterator[TlsRedis]:
    folder = tmp_path / "redis"
    folder.mkdir()
    # Laptops have passwords of their own, made on the way.
    hostvars, _ = load_inventory([ROOT / "inventory" / "example"], {"muster_secrets_dir": str(tmp_path / "secrets")})
    server = TlsRedis(folder, render("celery_redis", "users.acl.j2", hostvars, "server84", **PASSWORDS))
    yield server
    server.remove()


def sender(url: str, tls: dict[str, Any]) -> Celery:
    """A stock client that does not try again."""
    app = Celery("sender", broker=url, backend=f"{url}?ssl_cert_reqs=required", set_as_current=False)
    app.conf.update(
        task_default_queue="default",
        broker_use_ssl=tls or None,
        redis_backend_use_ssl=tls or None,
        broker_transport_options={"max_retries": 0, "socket_connect_timeout": 5},
    )
    return app


def test_app_user_runs_revokes_and_schedules(redis_server: TlsRedis, worker: Start, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(PASSWORDS["celery_app_password"] + "\n")
    one = worker(
        concurrency=1,
        redis_url=f"rediss://app@127.0.0.1:{redis_server.port}/0",
        redis_password_file=tmp_path / "password",
        redis_ca=redis_server.authority,
    )
    app, client = sender(redis_server.url, redis_server.tls), redis_server.client
    assert app.send_task("t.note", ["a"]).get(timeout=60) == "a"
    running = app.send_task("t.gate", ["x"])
    until(lambda: client.llen("began") == 1, "the task began")
    status = [sys.executable, "-m", "celery_app.status"]
    shown = json.loads(subprocess.run(status, cwd=ROOT, env=one.environment, check=True, capture_output=True).stdout)
    assert shown["workers"][one.name]["tasks"] == [{"task": "t.gate", "id": running.id, "queue": "default"}]
    up, *_ = Figures(redis.Redis.from_url(redis_server.url, decode_responses=True, **redis_server.tls)).collect()
    assert (up.name, up.samples[0].value) == ("muster_broker_up", 1)
    app.control.revoke(running.id, terminate=True, signal="SIGKILL")
    until(lambda: running.state == "REVOKED", "it is revoked")
    schedule = tmp_path / "schedule.json"
    schedule.write_text(json.dumps([{"name": "n", "task": "t.note", "args": ["n"], "every": 1}]))
    environment = {**one.environment, "MUSTER_WORKER": "beat", "MUSTER_HEARTBEAT": "", "MUSTER_SCHEDULE": str(schedule)}
    beat = subprocess.Popen([sys.executable, "-m", "celery_app.schedule"], cwd=ROOT, env=environment)
    try:
        until(lambda: int(client.get("effect:n") or 0) >= 2, "beat fires")
    finally:
        beat.terminate()
        assert beat.wait(20) == 0
    assert one.stop() == 0


@pytest.mark.parametrize(
    "who", ["wrong password", "no password", "exporter", "foreign certificate", "foreign server", "no TLS"]
)
def test_others_neither_send_nor_read(redis_server: TlsRedis, who: str) -> None:
    url, tls = redis_server.url, redis_server.tls
    if who == "wrong password":
        url = redis_server.login("app", "guess")
    elif who == "no password":
        url = f"rediss://127.0.0.1:{redis_server.port}/0"
    elif who == "exporter":
        url = redis_server.login("exporter")
    elif who == "foreign certificate":
        tls |= {"ssl_certfile": str(redis_server.stranger), "ssl_keyfile": str(redis_server.stranger)}
    elif who == "foreign server":
        tls |= {"ssl_ca_certs": str(redis_server.stranger)}
    elif who == "no TLS":
        url, tls = url.replace("rediss:", "redis:"), {}
    redis_server.client.rpush("default", "secret")
    client = redis.Redis.from_url(url, **tls)
    for command in (("RPUSH", "default", "x"), ("LRANGE", "default", 0, -1), ("SUBSCRIBE", "x")):
        with pytest.raises(redis.RedisError):
            client.execute_command(*command)
    with pytest.raises((OperationalError, redis.RedisError)):
        sender(url, tls).send_task("t.note", ["a"], retry=False, ignore_result=True)
    assert redis_server.client.lrange("default", 0, -1) == ["secret"]


def test_app_user_has_tasks_not_the_server(redis_server: TlsRedis) -> None:
    client = redis.Redis.from_url(redis_server.url, **redis_server.tls)
    assert client.ping()
    for command in (
        "FLUSHALL", "FLUSHDB", "CONFIG GET *", "CONFIG SET maxmemory 1", "KEYS *", "SHUTDOWN NOSAVE", "DEBUG SLEEP 0",
        "ACL LIST", "ACL SETUSER x", "SCRIPT FLUSH", "FUNCTION FLUSH", "REPLICAOF 127.0.0.1 1", "SAVE", "MONITOR",
        "CLIENT KILL TYPE normal", "MODULE LIST",
    ):  # fmt: skip
        with pytest.raises(redis.ResponseError, match=r"no permissions|not allowed"):
            client.execute_command(*command.split())
