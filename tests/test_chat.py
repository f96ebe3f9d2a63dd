"""`muster chat` against a gateway of this test's, which answers as the cluster's language models do."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from muster import chat, cli, llm_api

from .conftest import ROOT

WORKER = {"node": "server1/worker-1", "replica": "k3v9"}
SERVED = {
    "models": {
        "tiny": {"replicas": [WORKER], "running": 1, "waiting": 2, "tokens": 345},
        "gpt2": {"replicas": [], "running": 0, "waiting": 0, "tokens": 0},
    }
}
NODES: list[dict[str, Any]] = [
    {"node_id": "n1", "node_name": "10.0.0.81", "state": "ALIVE", "labels": {"host": "server1", "node": "worker-1"},
     "resources_total": {"CPU": 4.0, "memory": 2.0 * 2**30, "object_store_memory": 2.0**30}},
    {"node_id": "n0", "node_name": "10.0.0.80", "state": "ALIVE", "labels": {}, "resources_total": {}},
    {"node_id": "n2", "node_name": "10.0.0.82", "state": "DEAD", "labels": {}, "resources_total": {}},
]  # fmt: skip
ACTORS: list[dict[str, Any]] = [
    {"actor_id": "a1", "class_name": "ServeReplica:llm:tiny", "name": "SERVE_REPLICA::llm#tiny#k3v9", "state": "ALIVE",
     "pid": 77, "node_id": "n1"},
    {"actor_id": "a2", "class_name": "ServeReplica:llm:tiny", "name": "SERVE_REPLICA::llm#tiny#old", "state": "DEAD",
     "pid": 76, "node_id": "n1"},
    {"actor_id": "a3", "class_name": "ServeReplica:model:Forest", "name": "x#y#z", "state": "ALIVE", "pid": 78,
     "node_id": "n1"},
]  # fmt: skip


@dataclass
class Reply:
    """How the server answers one question."""

    words: list[str] = field(default_factory=lambda: ["one ", "two"])
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    # Where the connection ends without a last word; what is sent before the rest waits for `go`.
    cut: bool = False
    error: str = ""
    hold: bool = False


@dataclass
class Gateway:
    """The models' API and Ray's, and what they were asked."""

    url: str = ""
    replies: list[Reply] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    models: list[str] = field(default_factory=lambda: ["tiny", "gpt2"])
    most: int = 100
    page: tuple[int, str] | None = None
    status: bool = True
    go: threading.Event = field(default_factory=threading.Event)


def wrong(code: str, message: str) -> str:
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": code, "param": None}})


class Handler(BaseHTTPRequestHandler):
    gateway: Gateway
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if self.headers["Authorization"] != "Bearer secret":
            self.say(401, "this token is of nobody\n")
        elif self.gateway.page:
            self.say(*self.gateway.page)
        elif parts.path == "/llm/v1/models":
            self.say(200, json.dumps({"object": "list", "data": [{"id": name} for name in self.gateway.models]}))
        elif parts.path == "/llm/status" and self.gateway.status:
            self.say(200, json.dumps(SERVED))
        elif parts.path in ("/api/v0/nodes", "/api/v0/actors"):
            found, query = NODES if parts.path.endswith("nodes") else ACTORS, parse_qs(parts.query)
            if unwanted := query.get("filter_values"):
                assert (query["filter_keys"], query["filter_predicates"]) == (["state"], ["!="])
                found = [one for one in found if one["state"] not in unwanted]
            self.say(200, json.dumps({"result": True, "data": {"result": {"result": found}}}))
        elif parts.path == "/api/v0/logs/file":
            query = parse_qs(parts.query)
            assert query["suffix"] == ["err"]
            if self.gateway.status:
                self.say(200, f"log of {query['actor_id'][0]}\x1b[2J\n")
            else:
                self.say(500, "it has no worker yet\n")
        else:
            self.say(404, "Path not found\n")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/llm/v1/chat/completions" and self.headers["Authorization"] == "Bearer secret"
        assert body["stream"] is True and body["stream_options"] == {"include_usage": True}
        self.gateway.asked.append(body)
        reply = self.gateway.replies.pop(0) if self.gateway.replies else Reply()
        if reply.status != 200:
            self.say(reply.status, reply.body, reply.headers)
        elif len(body["messages"]) > self.gateway.most:
            self.say(400, wrong("context_length_exceeded", "the conversation is longer than 64 tokens"))
        else:
            self.stream(body["model"], reply)

    def stream(self, model: str, reply: Reply) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for word in reply.words:
                self.event({"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}, model)
            if reply.hold:
                self.gateway.go.wait(60)
            if reply.error:
                self.event({"error": {"message": reply.error, "type": "server_error"}}, model)
            if reply.cut:
                self.close_connection = True
                return
            self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, model)
            self.event({"choices": [], "usage": {"completion_tokens": len(reply.words)}}, model)
            self.chunk(b"data: [DONE]\n\n")
            self.chunk(b"")

    def event(self, told: dict[str, Any], model: str) -> None:
        whole = {"object": "chat.completion.chunk", "model": model, "muster": WORKER, **told}
        self.chunk(f"data: {json.dumps(whole)}\n\n".encode())

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def say(self, status: int, text: str, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(text.encode())), **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    found = Gateway()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"gateway": found}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", found.url)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    yield found
    found.go.set()
    server.shutdown()
    server.server_close()


def test_one_message_is_answered_as_text_and_as_json(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["chat", "--once", "hello", "--system", "be short", "--max-tokens", "9", "--temperature", "0"]
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert said.out == "one two\n"
    assert re.fullmatch(
        r"server1/worker-1, replica k3v9, first token after \d\.\d\d s, 2 tokens in \d\.\d\d s, [\d.]+ tokens/s\n",
        said.err,
    )
    (asked,) = gateway.asked
    assert (asked["model"], asked["max_tokens"], asked["temperature"]) == ("tiny", 9, 0)
    assert asked["messages"] == [
        {"role": "system", "content": "be short"}, {"role": "user", "content": "hello"},
    ]  # fmt: skip
    assert cli.main(["chat", "gpt2", "--once", "hello", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {key: told[key] for key in ("model", "text", "tokens", "finish", *WORKER)} == {
        "model": "gpt2", "text": "one two", "tokens": 2, "finish": "stop", **WORKER,
    }  # fmt: skip
    assert 0 < told["first_seconds"] <= told["seconds"]
    assert "temperature" not in gateway.asked[1]


def test_each_line_of_a_pipe_is_a_message(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("first\n\nstatus\n/say /etc\n/models\n/quit\nnever sent\n"))
    assert cli.main(["chat"]) == 0
    assert capsys.readouterr().out.splitlines() == ["one two", "one two", "one two", "* tiny", "  gpt2"]
    assert [message["content"] for message in gateway.asked[-1]["messages"]] == [
        "first", "one two", "status", "one two", "/etc",
    ]  # fmt: skip


def test_a_busy_model_is_asked_again_when_it_says(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.replies = [Reply(status=429, headers={"Retry-After": "0.2"}, body=wrong("busy", "16 wait for tiny"))]
    assert cli.main(["chat", "--once", "hello"]) == 0
    said = capsys.readouterr()
    assert said.out == "one two\n" and said.err.startswith("16 wait for tiny: asking again in 0.2 s\n")


def test_a_model_that_stays_busy_is_given_up(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(llm_api, "PATIENCE", 0.3)
    gateway.replies = [Reply(status=429, headers={"Retry-After": "0.2"})] * 5
    assert cli.main(["chat", "--once", "hello"]) == 1
    assert "the model is busy. Fix: try again later" in capsys.readouterr().err
    assert len(gateway.asked) == 2


def test_a_long_conversation_loses_its_beginning(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.most = 4
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\nb\nc\n"))
    assert cli.main(["chat", "--system", "be short"]) == 0
    assert "64 tokens: the oldest question and its answer are left out" in capsys.readouterr().err
    assert [message["content"] for message in gateway.asked[-1]["messages"]] == ["be short", "b", "one two", "c"]
    gateway.most = 1
    assert cli.main(["chat", "--system", "be short", "--once", "a"]) == 1
    assert "64 tokens. Fix: say less" in capsys.readouterr().err


@pytest.mark.parametrize("lost", [Reply(["one "], cut=True), Reply(["one "], error="the replica died")])
def test_an_answer_that_is_cut_off(gateway: Gateway, lost: Reply, capsys: pytest.CaptureFixture[str]) -> None:
    """Asked again where nobody sees its beginning twice."""
    gateway.replies = [lost]
    assert cli.main(["chat", "--once", "hello", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["text"] == "one two" and ": asking again\n" in said.err
    gateway.replies = [lost]
    assert cli.main(["chat", "--once", "hello"]) == 1
    said = capsys.readouterr()
    assert said.out == "one \n" and re.search(r"the answer (was cut off|broke off: the replica died).*Fix:", said.err)
    gateway.replies = [Reply([], cut=True)]
    assert cli.main(["chat", "--once", "hello"]) == 0
    assert capsys.readouterr().out == "one two\n"
    gateway.replies = [Reply([], cut=True)] * 2
    assert cli.main(["chat", "--once", "hello"]) == 1


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ((404, "Path '/llm' not found"), "serves no language model now (404). Fix: serve one with"),
        ((503, wrong("loading", "tiny is loading")), "serves no language model now (503: tiny is loading). Fix:"),
        ((502, ""), "serves no language model now (502). Fix:"),
        ((401, "this token is of nobody"), "does not know this token (401). Fix: see docs/connect.md"),
        ((200, "<html>a page"), "/llm/v1/models is no JSON: '<html>a page'. Fix:"),
        ((200, '{"data": []}'), "no language model is served. Fix: serve one with"),
    ],
)
def test_what_is_not_there_is_one_line(
    gateway: Gateway, page: tuple[int, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.page = page
    assert cli.main(["chat", "--once", "hello"]) == 1
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and said.out == ""


def test_mistakes_are_one_line(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, message in (
        (["big", "--once", "x"], "there is no model 'big'. Fix: choose one of tiny, gpt2."),
        (["--once", "/stauts"], "there is no command /stauts. Fix: type /help"),
    ):
        assert cli.main(["chat", *words]) == 1
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
    assert not gateway.asked
    for status, body, message in (
        (404, wrong("model_not_found", "no model tiny"), "serves no model 'tiny'. Fix: `models` shows"),
        (400, wrong("", "max_tokens must be 1 or more"), "answers 400: max_tokens must be 1 or more. Fix:"),
    ):
        gateway.replies = [Reply(status=status, body=body)]
        assert cli.main(["chat", "--once", "x"]) == 1
        assert message in capsys.readouterr().err
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    assert cli.main(["chat", "--once", "x"]) == 1
    assert "http://127.0.0.1:1 does not answer: " in capsys.readouterr().err


def test_what_the_commands_show(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(command: str) -> list[list[str]]:
        assert cli.main(["chat", "--once", command]) == 0
        return [line.split() for line in capsys.readouterr().out.splitlines()]

    status = shown("/status")
    assert ["tiny", "1", "1", "2", "345", "server1/worker-1"] in status
    assert ["gpt2", "0", "0", "0", "0", "none", "yet"] in status
    assert ["server1/worker-1", "4", "0", "2.0G", "1.0G"] in status
    assert not [line for line in status if line and line[0] == "10.0.0.82"]
    assert shown("/actors")[1:] == [["k3v9", "llm:tiny", "alive", "server1/worker-1", "77", "a1"]]
    assert shown("/logs") == [["k3v9", "on", "server1/worker-1:"], ["log", "of", "a1[2J"]]
    assert [line[:2] for line in shown("/test")[1:]] == [["ok", "tiny"], ["ok", "gpt2"]]
    assert [asked["model"] for asked in gateway.asked] == ["tiny", "gpt2"]
    assert shown("/help")
    assert cli.main(["chat", "--once", "/status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == SERVED["models"]
    gateway.status = False
    assert "has no worker yet. Fix:" in " ".join(shown("/logs")[1])
    assert cli.main(["chat", "--once", "/status"]) == 1
    said = capsys.readouterr()
    assert "server1/worker-1" in said.out and "serves no language model now (404). Fix:" in said.err


def test_a_model_that_fails_its_test(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.replies = [Reply(status=500, body=wrong("", "out of memory"))]
    assert cli.main(["chat", "--once", "/test"]) == 1
    said = capsys.readouterr()
    _, tiny, gpt2 = said.out.splitlines()
    assert "out of memory" in tiny and gpt2.split()[:2] == ["ok", "gpt2"]
    assert "no good answer from tiny. Fix:" in said.err


def test_a_model_does_not_steer_the_terminal() -> None:
    assert (
        chat.harmless("a\x1b]0;x\x07b\r\n\tc\u009b \U0001f469\u200d\U0001f4bb")
        == "a]0;xb\n\tc \U0001f469\u200d\U0001f4bb"
    )


def seated() -> None:
    """The terminal is this session's, so that Ctrl-C typed there reaches who is started."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.close(os.open(os.ttyname(0), os.O_RDWR))


class Terminal:
    """A person at `muster chat`."""

    def __init__(self, *words: str) -> None:
        self.master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm"}
        # As the runner of all tests sets it.
        environment.pop("NO_COLOR", None)
        self.child = subprocess.Popen(
            [sys.executable, "-m", "muster.cli", "chat", *words],
            cwd=ROOT, env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=seated,
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def shows(self, text: str, seconds: float) -> bool:
        """Whether this text comes."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            if not select.select([self.master], [], [], max(deadline - time.monotonic(), 0))[0]:
                return False
            try:
                self.seen += os.read(self.master, 4096).decode(errors="replace")
            except OSError:
                raise AssertionError(f"no {text!r} in {self.seen!r}") from None
        return True

    def until(self, text: str) -> str:
        """What is shown up to and with this text."""
        assert self.shows(text, 60), f"no {text!r} for a minute after {self.seen!r}; {self.state()}"
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def state(self) -> str:
        """What it waits for, and which signals wait for it: a Ctrl-C was lost once in hundreds of runs."""
        about = Path(f"/proc/{self.child.pid}")
        lines = (about / "status").read_text().splitlines()
        signals = [line for line in lines if line.startswith(("State", "Sig", "Shd", "Threads"))]
        return f"{signals}; {(about / 'wchan').read_text()}; terminal's modes {termios.tcgetattr(self.master)[:4]}"

    def interrupt(self, text: str) -> None:
        """Ctrl-C, and what is shown then. One that comes right before Python waits it does not notice: then again."""
        for _ in range(5):
            self.type("\x03")
            if self.shows(text, 10):
                break
        self.until(text)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


def test_at_a_terminal(gateway: Gateway) -> None:
    terminal = Terminal()
    try:
        terminal.until("Ctrl-D ends.")
        terminal.until("> ")
        gateway.replies = [Reply(["one ", "two "], hold=True)]
        terminal.type("hello\n")
        # Its words are there before its end.
        terminal.until("one two ")
        terminal.interrupt("stopped")
        terminal.until("> ")
        gateway.go.set()
        terminal.type("status\n")
        assert "server1/worker-1" in terminal.until("> ")
        assert len(gateway.asked) == 1
        terminal.type("/say status\n")
        assert "\x1b[2mserver1/worker-1, replica k3v9, first token after" in terminal.until("tokens/s")
        assert [message["content"] for message in gateway.asked[-1]["messages"]] == ["hello", "one two ", "status"]
        terminal.until("> ")
        gateway.replies = [Reply(["one "], cut=True)]
        terminal.type("more\n")
        terminal.until("asking again")
        assert "one two" in terminal.until("tokens/s")
        terminal.until("> ")
        gateway.replies = [Reply(status=503)]
        terminal.type("again\n")
        terminal.until("serves no language model now (503)")
        terminal.until("> ")
        terminal.interrupt("Ctrl-D ends")
        terminal.until("> ")
        terminal.type("\x04")
        assert terminal.child.wait(30) == 0
    finally:
        terminal.child.kill()
        terminal.child.wait()
        os.close(terminal.master)


def test_ctrl_c_ends_what_nobody_sits_at(gateway: Gateway, tmp_path: Path) -> None:
    gateway.replies = [Reply(hold=True)]
    child = subprocess.Popen(
        [sys.executable, "-m", "muster.cli", "chat", "--once", "hello"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert child.stdout
    assert os.read(child.stdout.fileno(), 3) == b"one"
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=30)
    assert child.returncode == 130 and b"Traceback" not in said


def test_commands_are_told_of_in_the_documents() -> None:
    told = (ROOT / "docs/cli.md").read_text()
    for line in chat.HELP.splitlines()[:-1]:
        assert f"`{line.split()[0]}" in told
