"""`muster chat`: a conversation with the cluster's language models, through the gateway."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
import unicodedata
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any

from muster import jobs
from muster.errors import MusterError
from muster.llm_api import (
    SERVE,
    Answer,
    ChatError,
    CutOffError,
    LanguageModels,
    Messages,
    TooLongError,
    without_oldest,
)
from muster.status import size
from muster.tables import Screen, show
from ray_jobs.jobs_api import JobsClient

# Who serves them, as Serve names the actors of the app `llm`.
REPLICA = "ServeReplica:llm:"
LOG_LINES = 20
TEST = "Count from one to five."
TEST_TOKENS = 16
HELP = """\
status   the models and their replicas, the nodes and what they have
actors   the replicas as Ray knows them
models   the models; the one you talk to has a star
logs     the last lines of every replica's log
test     asks each model the same short question
quit     ends it, as Ctrl-D does; Ctrl-C stops an answer
/say X   sends X, also where X is one of these words
All of them work with a slash before them, too. Everything else is a message."""


def chat(inventory: Sequence[str], options: argparse.Namespace) -> int:
    """Talk: at a terminal, with one message, or with each line of a pipe."""
    gateway = jobs.client(inventory)
    api = LanguageModels(gateway, aside)
    names = api.names()
    if not names:
        raise ChatError("no language model is served", fix=SERVE)
    if options.model and options.model not in names:
        raise ChatError(f"there is no model {options.model!r}", fix=f"choose one of {', '.join(names)}")
    talk = Talk(api, gateway, options.model or names[0], options)
    if options.once is not None:
        return talk.all([options.once])
    return talk.at_terminal() if sys.stdin.isatty() else talk.all(sys.stdin)


def aside(text: str) -> None:
    """What is not the answer: dim, and not on stdout."""
    plain = os.environ.get("NO_COLOR") or not sys.stderr.isatty()
    sys.stdout.flush()
    print(text if plain else f"\x1b[2m{text}\x1b[0m", file=sys.stderr, flush=True)


def harmless(text: str) -> str:
    """What a model or a log says may not steer the terminal."""
    return "".join(letter for letter in text if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cs"))


class Talk:
    """One conversation, and what can be asked about the cluster meanwhile."""

    def __init__(self, api: LanguageModels, gateway: JobsClient, model: str, options: argparse.Namespace) -> None:
        self.api = api
        self.gateway = gateway
        self.model = model
        self.json = options.json
        wanted = {"max_tokens": options.max_tokens, "temperature": options.temperature}
        self.options = {name: value for name, value in wanted.items() if value is not None}
        self.messages: Messages = [{"role": "system", "content": options.system}] if options.system else []
        self.commands: dict[str, Callable[[], None]] = {
            "status": self.status, "actors": self.actors, "models": self.models, "logs": self.logs, "test": self.test,
            "help": lambda: print(HELP), "quit": self.quit,
        }  # fmt: skip

    def all(self, lines: Sequence[str] | Any) -> int:
        """Without anybody there: each line a message or a /command, until one has no answer."""
        try:
            for line in lines:
                self.take(line, bare=False)
        except EOFError:
            pass
        except KeyboardInterrupt:
            return 130
        return 0

    def at_terminal(self) -> int:
        """Until Ctrl-D."""
        # Lines that were typed come back with the arrow keys.
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
        aside(f"{self.model} at {self.gateway.url}. `help` lists the commands; Ctrl-D ends.")
        while True:
            try:
                self.take(input("> "), bare=True)
            except KeyboardInterrupt:
                aside("\nstopped. Ctrl-D ends")
            except EOFError:
                print()
                return 0
            except MusterError as error:
                # One question failed; the conversation goes on.
                print(f"muster: {error}", file=sys.stderr)

    def take(self, line: str, *, bare: bool) -> None:
        """A line: a command, or a message."""
        text = line.strip()
        word, _, rest = text.removeprefix("/").partition(" ")
        if text.startswith("/"):
            if word == "say":
                return self.ask(rest.strip())
            if rest or word not in self.commands:
                raise ChatError(f"there is no command /{word}{' ' if rest else ''}{rest}",
                                fix="type /help, or send it as a message: /say /...")  # fmt: skip
            return self.commands[word]()
        if bare and text in self.commands:
            return self.commands[text]()
        return self.ask(text)

    def ask(self, text: str) -> None:
        """Send a message, show the answer as it comes, remember both."""
        if not text:
            return
        before, answer = self.messages, Answer(self.model)
        self.messages = [*before, {"role": "user", "content": text}]
        try:
            self.complete(answer)
        except BaseException:
            # What was seen of an answer belongs to the conversation; a question without any is forgotten.
            self.messages = [*self.messages, said(answer)] if answer.text else before
            raise
        self.messages = [*self.messages, said(answer)]
        if self.json:
            print(json.dumps(answer.facts()), flush=True)
        else:
            aside(answer.line())

    def complete(self, answer: Answer) -> None:
        """The whole answer; what stands in its way and can be helped is."""
        again = True
        while True:
            try:
                return self.once(answer)
            except TooLongError as error:
                shorter = without_oldest(self.messages)
                if shorter is None:
                    raise
                aside(f"{error.problem}: the oldest question and its answer are left out")
                self.messages = shorter
            except CutOffError as error:
                # Its replica may have gone; another does it. Who reads a pipe would get the beginning twice.
                if not again or (answer.text and not self.json and not sys.stdout.isatty()):
                    raise
                again = False
                aside(f"{error.problem}: asking again")

    def once(self, answer: Answer) -> None:
        """One attempt at an answer."""
        shown = False
        try:
            with contextlib.closing(self.api.stream(answer, self.messages, self.options)) as stream:
                for text in stream:
                    if not self.json:
                        print(harmless(text), end="", flush=True)
                        shown = True
        finally:
            if shown:
                print(flush=True)

    def quit(self) -> None:
        raise EOFError

    def tell(self, facts: Any, screen: Screen) -> None:
        """What a command found."""
        if self.json:
            print(json.dumps(facts), flush=True)
        else:
            show(screen)

    def state(self, path: str, **query: str) -> list[dict[str, Any]]:
        """A list of Ray's state API."""
        words = urllib.parse.urlencode({"detail": "true", "limit": "1000", **query})
        found: list[dict[str, Any]] = self.api.get(f"/api/v0/{path}?{words}")["data"]["result"]["result"]
        return found

    def replicas(self) -> list[dict[str, Any]]:
        """The actors that serve language models now."""
        names = {node["node_id"]: name_of(node) for node in self.state("nodes")}
        return [
            {"replica": (actor["name"] or "").rpartition("#")[2], "state": actor["state"].lower(), "pid": actor["pid"],
             "class": actor["class_name"].removeprefix("ServeReplica:"), "actor": actor["actor_id"],
             "node": names.get(actor["node_id"], actor["node_id"] or "")}
            for actor in self.state("actors", filter_keys="state", filter_predicates="!=", filter_values="DEAD")
            if actor["class_name"].startswith(REPLICA)
        ]  # fmt: skip

    def status(self) -> None:
        nodes = {name_of(node): node["resources_total"] for node in self.state("nodes") if node["state"] == "ALIVE"}
        try:
            models, problem = self.api.get("/llm/status")["models"], None
        except ChatError as error:
            # The nodes are worth a look then, too.
            models, problem = {}, error
        served: list[tuple[str, ...]] = [("model", "replicas", "running", "waiting", "tokens", "nodes")]
        for name, model in models.items():
            where = ", ".join(sorted({replica["node"] for replica in model["replicas"]}))
            figures = (str(model[key]) for key in ("running", "waiting", "tokens"))
            served.append((name, str(len(model["replicas"])), *figures, where or "none yet"))
        has: list[tuple[str, ...]] = [("node", "cpus", "gpus", "memory", "objects")]
        for name, total in sorted(nodes.items()):
            amounts = (f"{total.get(key, 0):g}" for key in ("CPU", "GPU"))
            has.append((name, *amounts, *(size(total.get(key, 0)) for key in ("memory", "object_store_memory"))))
        self.tell({"models": models, "nodes": nodes}, [served, has] if models else [has])
        if problem:
            raise problem

    def actors(self) -> None:
        found = self.replicas()
        keys = ("replica", "class", "state", "node", "pid", "actor")
        rows = [keys, *(tuple(str(actor[key]) for key in keys) for actor in found)]
        self.tell(found, [rows] if found else ["Ray has no replica of a language model now."])

    def models(self) -> None:
        names = self.api.names()
        self.tell(names, [f"{'*' if name == self.model else ' '} {name}" for name in names])

    def logs(self) -> None:
        found = self.replicas()
        for actor in found:
            words = {"actor_id": actor["actor"], "suffix": "err", "lines": str(LOG_LINES)}
            try:
                actor["log"] = harmless(self.api.page(f"/api/v0/logs/file?{urllib.parse.urlencode(words)}"))
            except ChatError as error:
                # One that is only starting has none yet.
                actor["log"] = str(error)
        blocks = [
            line
            for actor in found
            for line in ("", f"{actor['replica']} on {actor['node']}:", *actor["log"].splitlines())
        ]
        self.tell(found, blocks or ["Ray has no replica of a language model now."])

    def test(self) -> None:
        """The same short question to each model; what fails is said and does not stop the rest."""
        results = []
        for name in self.api.names():
            answer = Answer(name)
            start = time.monotonic()
            try:
                for _ in self.api.stream(answer, [{"role": "user", "content": TEST}], {"max_tokens": TEST_TOKENS}):
                    pass
                result, said_of_it = "ok" if answer.tokens or answer.text else "failed", answer.line()
            except ChatError as error:
                result, said_of_it = "failed", f"{error} ({time.monotonic() - start:.1f} s)"
            results.append({**answer.facts(), "result": result, "said": said_of_it})
        keys = ("result", "model", "said")
        self.tell(results, [[keys, *(tuple(each[key] for key in keys) for each in results)]])
        if failed := [each["model"] for each in results if each["result"] == "failed"]:
            raise ChatError(f"no good answer from {', '.join(failed)}", fix="look at `logs`")


def said(answer: Answer) -> dict[str, str]:
    return {"role": "assistant", "content": answer.text}


def name_of(node: dict[str, Any]) -> str:
    """As the inventory and `muster nodes` call it."""
    labels = node.get("labels") or {}
    return f"{labels['host']}/{labels['node']}" if {"host", "node"} <= labels.keys() else str(node["node_name"])
