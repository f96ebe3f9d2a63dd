"""The cluster's language models over HTTP, as OpenAI's API tells of them; for `muster chat`."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from muster.errors import MusterError
from ray_jobs.jobs_api import JobsClient

# Seconds without a word after which an answer counts as cut off, and for which a busy model is asked again.
SILENCE = 120.0
PATIENCE = 120.0
TOO_LONG = "context_length_exceeded"
# vLLM has no code for it.
TOO_LONG_OF_VLLM = "maximum context length"

SERVE = "serve one with `muster run llm_serve -p model=NAME`, or wait while it loads; see docs/jobs.md"

Messages = list[dict[str, str]]


class ChatError(MusterError):
    """A message that got no answer, said in one line too."""

    code = 1


class TooLongError(ChatError):
    """The conversation is longer than the model can read."""


class BusyError(ChatError):
    """All places are taken; `wait` is how long the server says that it takes."""

    wait = 1.0


class CutOffError(ChatError):
    """The answer ended in the middle."""


@dataclass
class Answer:
    """What a model said, who did the work, and how long it took."""

    model: str
    text: str = ""
    node: str = ""
    replica: str = ""
    finish: str = ""
    tokens: int | None = None
    first_seconds: float | None = None
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        return None if self.tokens is None or not self.seconds else round(self.tokens / self.seconds, 2)

    def facts(self) -> dict[str, Any]:
        return {**asdict(self), "tokens_per_second": self.tokens_per_second}

    def line(self) -> str:
        """Who and how long, for people."""
        first = "no token came" if self.first_seconds is None else f"first token after {self.first_seconds:.2f} s"
        parts = [f"{self.node or 'unknown node'}, replica {self.replica or 'unknown'}", first]
        parts.append(
            f"{self.seconds:.2f} s" if self.tokens is None else f"{self.tokens} tokens in {self.seconds:.2f} s"
        )
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:.1f} tokens/s")
        return ", ".join([*parts, *(["cut at --max-tokens"] if self.finish == "length" else [])])


class LanguageModels:
    """What is served under /llm of the gateway. Every question may raise a ChatError."""

    def __init__(self, gateway: JobsClient, say: Callable[[str], None]) -> None:
        self.gateway = gateway
        self.say = say

    def page(self, path: str) -> str:
        """A page of text."""
        with self._open("GET", path) as answer:
            try:
                return answer.read().decode(errors="replace")
            except (OSError, http.client.HTTPException) as error:
                raise ChatError(f"{self.gateway.url} broke off: {error!r}", fix="try again") from None

    def get(self, path: str) -> Any:
        """A page of JSON."""
        text = self.page(path)
        try:
            return json.loads(text)
        except ValueError:
            raise ChatError(f"{self.gateway.url}{path} is no JSON: {text[:80]!r}", fix="look at the address") from None

    def names(self) -> list[str]:
        """The models that are served."""
        return [str(model["id"]) for model in self.get("/llm/v1/models")["data"]]

    def stream(self, answer: Answer, messages: Messages, options: Mapping[str, Any]) -> Generator[str]:
        """The answer's text as it comes; the rest of it is written into `answer`."""
        body = {
            "model": answer.model, "messages": messages, **options,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        answer.text, answer.tokens, answer.first_seconds, answer.finish = "", None, None, ""
        started, opened = self._when_free(body)
        with opened as response:
            try:
                for event in self._events(response):
                    worker = event.get("muster") or {}
                    answer.node, answer.replica = worker.get("node", answer.node), worker.get("replica", answer.replica)
                    answer.tokens = (event.get("usage") or {}).get("completion_tokens", answer.tokens)
                    for choice in event.get("choices", []):
                        answer.finish = choice.get("finish_reason") or answer.finish
                        if text := (choice.get("delta") or {}).get("content"):
                            if answer.first_seconds is None:
                                answer.first_seconds = round(time.monotonic() - started, 4)
                            answer.text += text
                            yield text
            finally:
                answer.seconds = round(time.monotonic() - started, 4)
        if not answer.finish:
            raise CutOffError("the answer was cut off", fix="ask again")

    def _events(self, response: http.client.HTTPResponse) -> Iterator[Any]:
        """What the server sends, one thing at a time."""
        try:
            for line in response:
                # Everything else of the format (comments, names of events) is of no use here.
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                event = json.loads(data)
                if error := event.get("error"):
                    raise CutOffError(f"the answer broke off: {error.get('message', error)}", fix="ask again")
                yield event
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise CutOffError(f"the answer was cut off: {error or type(error).__name__}", fix="ask again") from None

    def _when_free(self, body: Mapping[str, Any]) -> tuple[float, http.client.HTTPResponse]:
        """Ask, and while all is busy ask again; when that was, and the answer."""
        end = time.monotonic() + PATIENCE
        while True:
            started = time.monotonic()
            try:
                return started, self._open("POST", "/llm/v1/chat/completions", body, SILENCE)
            except BusyError as busy:
                if time.monotonic() + busy.wait > end:
                    raise
                self.say(f"{busy.problem}: asking again in {busy.wait:g} s")
                time.sleep(busy.wait)

    def _open(self, method: str, path: str, body: Any = None, timeout: float | None = None) -> http.client.HTTPResponse:
        url = self.gateway.url
        try:
            return self.gateway.open(method, path, body, timeout)
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(url, path, error, error.read(), (body or {}).get("model", "")) from None
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "reason", error)
            raise ChatError(f"{url} does not answer: {why}", fix="look at `muster status`, then try again") from None


def _refusal(url: str, path: str, error: urllib.error.HTTPError, body: bytes, model: str) -> ChatError:
    """Why there is no answer, and what to do about it."""
    message, code = _said(body)
    if error.code in (401, 403):
        return ChatError(
            f"{url} does not know this token ({error.code})", fix="see docs/connect.md for a token of yours"
        )
    if error.code == 429:
        busy = BusyError(message or "the model is busy", fix="try again later, or raise the model's replicas")
        after = error.headers.get("Retry-After") or ""
        busy.wait = max(float(after), 0.1) if after.replace(".", "", 1).isdecimal() else 1.0
        return busy
    if code == TOO_LONG or TOO_LONG_OF_VLLM in message:
        return TooLongError(message, fix="say less, or begin a new conversation")
    if error.code == 404 and message and model:
        return ChatError(f"{url} serves no model {model!r}", fix="`models` shows those that there are")
    if error.code in (404, 502, 503, 504) and path.startswith("/llm/"):
        told = f": {message}" if message else ""
        return ChatError(f"{url} serves no language model now ({error.code}{told})", fix=SERVE)
    told = message or body[:200].decode(errors="replace").strip()
    return ChatError(f"{url} answers {error.code}: {told}", fix="ask otherwise" if error.code < 500 else "see its logs")


def _said(body: bytes) -> tuple[str, str]:
    """Message and code of an error in OpenAI's shape; empty when it is somebody else's page."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"]), str(error.get("code") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", ""


def without_oldest(messages: Sequence[dict[str, str]]) -> Messages | None:
    """The conversation without its first question and answer; None when only the last question is left."""
    kept = [message for message in messages if message["role"] == "system"]
    rest = [message for message in messages if message["role"] != "system"]
    later = next((at for at, message in enumerate(rest) if at and message["role"] == "user"), 0)
    return kept + rest[later:] if later else None
