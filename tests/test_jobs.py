"""`muster run` and its companions against a Jobs API of this test's; the real one is in molecule/cluster."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from muster import cli, jobs
from muster.errors import MusterError
from ray_jobs import library, outcome

from .conftest import ROOT

ANSWER = {"tasks": 3, "iterations": 1, "seconds": 0.5, "tasks_per_second": 6.0, "nodes": {"a/w": 3},
          "versions": {"a/w": "Ray 2"}}  # fmt: skip
RESULT = f"{outcome.RESULT}{json.dumps(ANSWER)}"
STEP = f'{outcome.PROGRESS}{{"done":1,"total":3,"note":"parts"}}'


@dataclass
class Api:
    """What Ray says at one look after the other, and what it was asked for."""

    url: str = ""
    looks: list[tuple[str, list[str]]] = field(default_factory=list)
    submitted: list[dict[str, Any]] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    away: int = 0
    most: int = jobs.WINDOW
    now: int = 0

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if self.away:
            self.away -= 1
            return 503, "the head restarts"
        parts = urlsplit(path)
        if method == "POST" and path == "/api/jobs/":
            self.submitted.append(json.loads(body))
            return 200, {}
        if method == "POST":
            self.stopped.append(parts.path.split("/")[3])
            return 200, {}
        if parts.path == "/api/v0/logs/file":
            lines = self.looks[max(self.now - 1, 0)][1]
            return 200, "\n".join(lines[-min(self.most, int(parse_qs(parts.query)["lines"][0])) :])
        if parts.path == "/api/jobs/":
            ids = [job["submission_id"] for job in self.submitted]
            return 200, [
                {"submission_id": name, "status": "RUNNING", "start_time": 1000 * n} for n, name in enumerate(ids)
            ]
        if parts.path.endswith("/unknown"):
            return 404, ""
        status = self.looks[min(self.now, len(self.looks) - 1)][0]
        self.now = min(self.now + 1, len(self.looks))
        return 200, {"status": status, "driver_node_id": "n", "message": "it broke, last available logs: ...",
                     "start_time": 1}  # fmt: skip


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    found = Api()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, said = found.answer(self.command, self.path, body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write((said if isinstance(said, str) else json.dumps(said)).encode())

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", found.url)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    yield found
    server.shutdown()
    server.server_close()


def test_a_run_is_followed_to_its_answer(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.looks = [("PENDING", []), ("RUNNING", ["one", STEP]), ("SUCCEEDED", ["one", STEP, "two", RESULT])]
    assert cli.main(["run", "hello", "-p", "tasks=3"]) == 0
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert lines[0].endswith("is submitted") and lines[1:] == ["one", "1 of 3 parts", "two"]
    assert said.out.splitlines()[-1] == "3 tasks of 1 iterations in 0.5 s: 6.0 tasks/s"
    (sent,) = api.submitted
    assert shlex.split(sent["entrypoint"]) == ["python", "-m", "ray_jobs.hello", "--params", '{"tasks": 3}']
    # Not on the head, which would take it along when it ends, nor on a laptop.
    assert sent["entrypoint_label_selector"] == {"class": "!laptop", "node": "!head"}
    assert sent["runtime_env"]["env_vars"]["MUSTER_RAY_JOB"] == sent["submission_id"]


def test_what_came_out_is_json_for_scripts(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.looks = [("SUCCEEDED", [RESULT])]
    assert cli.main(["run", "hello", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ANSWER
    assert cli.main(["result", "--json", "hello-1"]) == 0
    assert json.loads(capsys.readouterr().out) == ANSWER


@pytest.mark.parametrize("state", ["FAILED", "STOPPED"])
def test_a_job_that_ended_badly_is_status_1(api: Api, state: str, capsys: pytest.CaptureFixture[str]) -> None:
    api.looks = [(state, ["data: /nowhere is not there"])]
    assert cli.main(["run", "train_forest"]) == 1
    said = capsys.readouterr().err
    assert "data: /nowhere is not there" in said and f"{state.lower()}: it broke\n" in said


def test_a_head_that_restarts_meanwhile_is_waited_for(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.looks = [("RUNNING", ["one"]), ("SUCCEEDED", ["one", RESULT])]
    client = jobs.client([])
    api.away = 2
    assert jobs.follow(client, "hello-1", as_json=True) == 0
    said = capsys.readouterr()
    assert said.err.count("waiting: ") == 1 and said.err.count("one") == 1


def test_a_log_that_is_away_for_a_moment_is_not_shown_twice(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.looks = [("RUNNING", ["one"]), ("RUNNING", []), ("SUCCEEDED", []), ("SUCCEEDED", ["one", RESULT])]
    assert jobs.follow(jobs.client([]), "hello-1", as_json=True) == 0
    said = capsys.readouterr()
    assert said.err.splitlines() == ["one"]
    assert json.loads(said.out) == ANSWER


def test_a_long_log_shows_every_line_once(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    """More lines than a look at its end takes in."""
    lines = [f"line {number}" for number in range(12)]
    api.most = 6
    api.looks = [("RUNNING", lines[:4]), ("RUNNING", lines[:9]), ("SUCCEEDED", [*lines, RESULT])]
    assert jobs.follow(jobs.client([]), "hello-1", as_json=True) == 0
    assert capsys.readouterr().err.splitlines() == lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "hello", "-p", "tasks=0"], "hello: tasks: Input should be greater than or equal to 1. Fix:"),
        (["run", "hello", "-p", "task=3"], "hello: task: Extra inputs are not permitted"),
        (["run", "hello", "--params", "[1]"], "not a JSON object"),
        (["run", "train_forest", "--schedule", "0 3 * *"], "'0 3 * *'"),
        (["run", "nope"], "there is no job 'nope'. Fix: choose one of hello, "),
        (["jobs", "nope"], "there is no job 'nope'"),
        (["stop", "unknown"], "Ray knows no job 'unknown'. Fix:"),
        (["logs", "unknown"], "Ray knows no job 'unknown'"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_sent(
    api: Api, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not api.submitted and not api.stopped


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setattr(jobs, "PATIENCE", 0.5)
    assert cli.main(["run", "hello"]) == 3
    assert "does not answer" in capsys.readouterr().err


def test_a_head_that_is_coming_back_gets_the_job_once(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.away = 2
    assert cli.main(["run", "hello", "--detach"]) == 0
    said = capsys.readouterr()
    assert [job["submission_id"] for job in api.submitted] == [said.out.strip()]
    assert said.err.count("waiting: ") == 1


def test_ctrl_c_with_nobody_to_ask_leaves_the_job_alone(api: Api) -> None:
    api.looks = [("RUNNING", ["one"])]
    # A background job of a shell ignores Ctrl-C, and so would what it starts.
    child = subprocess.Popen(
        [sys.executable, "-m", "muster.cli", "run", "hello"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert child.stderr
    while child.stderr.readline() != "one\n":
        assert child.poll() is None
    child.send_signal(signal.SIGINT)
    assert "goes on. Follow it: muster logs hello-" in child.communicate(timeout=60)[1]
    assert child.returncode == 130
    assert not api.stopped


def test_detached_runs_are_listed_and_stopped(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.looks = [("RUNNING", [])]
    ids = []
    for _ in range(2):
        assert cli.main(["run", "hello", "--detach"]) == 0
        ids.append(capsys.readouterr().out.strip())
    assert ids[0] != ids[1]
    assert cli.main(["runs", "--json"]) == 0
    assert [run["id"] for run in json.loads(capsys.readouterr().out)] == ids[::-1]
    assert cli.main(["stop", ids[0]]) == 0
    assert api.stopped == ids[:1]
    assert cli.main(["result", ids[0]]) == 3


def test_every_job_is_listed_with_its_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["jobs"]) == 0
    listed = capsys.readouterr().out
    told = (ROOT / "docs/jobs.md").read_text()
    for name in library.NAMES:
        job = library.get(name)
        assert job.name == name and job.line in listed
        assert f"\n## {name}\n" in told
        assert cli.main(["jobs", name]) == 0
        said = capsys.readouterr().out
        assert all(parameter in said for parameter in job.model.model_fields)
    modules = {path.stem for path in (ROOT / "ray_jobs").glob("*.py") if "\nJOB = " in path.read_text()}
    assert modules == set(library.NAMES)


def test_a_schedule_entry_is_one_that_the_inventory_takes(capsys: pytest.CaptureFixture[str]) -> None:
    from muster.celery_schedule import schedule_mistakes

    assert cli.main(["run", "hello", "-p", "tasks=3", "--schedule", "0 3 * * *"]) == 0
    entry = json.loads(capsys.readouterr().out.splitlines()[-1].removeprefix("  - "))
    assert entry["args"] == ["hello", {"tasks": 3}]
    assert not list(schedule_mistakes([entry], {"ml"}))


def test_whose_token_is_taken(tmp_path: Path) -> None:
    with pytest.raises(MusterError, match=r"no gateway token\. Fix: run site\.yml"):
        jobs.token_in(tmp_path)
    (tmp_path / "gateway_anna_token").write_text("a\n")
    assert jobs.token_in(tmp_path) == "a"
    (tmp_path / "gateway_bert_token").write_text("b\n")
    with pytest.raises(MusterError, match="2 people have a token"):
        jobs.token_in(tmp_path)
    (tmp_path / "gateway_admin_token").write_text("c\n")
    assert jobs.token_in(tmp_path) == "c"


def test_a_local_run_needs_nobody(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    assert cli.main(["run", "hello", "--local", "-p", "tasks=2", "-p", "iterations=1"]) == 0
    assert f"{os.uname().nodename}/local" in capsys.readouterr().out
