"""Continuous batching: a thread that works on a batch of requests, which join and leave it between two tokens.

An answer depends on nothing but the request: chance is drawn anew for each token from the request's seed, so that
another engine goes on with what was said so far as this one would have.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_jobs.llm.decoders import Decoder

# Below it the most likely token has all the chance there is.
COLD = 1e-4
# What a tokenizer writes for a character whose bytes have not all come.
HALF = "\ufffd"


@dataclass(frozen=True)
class Piece:
    """What came since the last one. `finish`: stop, length, or timeout where its time was over before its turn."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    finish: str | None = None
    error: str | None = None

    def __add__(self, later: Piece) -> Piece:
        return Piece(self.text + later.text, self.tokens + later.tokens, later.finish, later.error)


class Writer:
    """Tokens become text that can be shown: whole characters, and nothing that may be the begin of a stop word."""

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, stop
        self._tokens: list[int] = []
        # What a token looks like depends on the one before it: text is read from `_begin`, it is known up to `_read`.
        self._begin = self._read = 0
        self.text = ""
        self.stopped = False

    def add(self, token: int, last: bool = False) -> None:
        self._tokens.append(token)
        known = len(self._decode(self._tokens[self._begin : self._read]))
        text = self._decode(self._tokens[self._begin :])
        if text.endswith(HALF) and not last:
            return
        before = len(self.text)
        self.text += text[known:]
        self._begin, self._read = self._read, len(self._tokens)
        found = [place for word in self._stop if (place := self.text.find(word, max(0, before - len(word)))) >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.stopped = True

    def sure(self) -> int:
        """How many characters nothing will take back."""
        if self.stopped:
            return len(self.text)
        begun = (n for word in self._stop for n in range(1, len(word)) if self.text.endswith(word[:n]))
        return len(self.text) - max(begun, default=0)


@dataclass(eq=False)
class Request:
    """What somebody wants, and how far it is. `done` and `shown` come from an engine that did not end it."""

    prompt: list[int]
    writer: Writer
    tell: Callable[[Piece], object]
    most: int = 16
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    # On the clock of time.monotonic.
    until: float = float("inf")
    done: list[int] = field(default_factory=list)
    shown: int = 0
    # Nobody listens any more: its place is free after the token that is being made.
    left: bool = False

    def __post_init__(self) -> None:
        for token in self.done:
            self.writer.add(token)

    def take(self, token: int, ends: frozenset[int], now: float) -> bool:
        """One more token, told; whether there is more to come."""
        finish = None
        tokens: tuple[int, ...] = ()
        if token in ends:
            finish = "stop"
        else:
            tokens = (token,)
            self.done.append(token)
            over = len(self.done) >= self.most or now > self.until
            self.writer.add(token, last=over)
            finish = "stop" if self.writer.stopped else "length" if over else None
        sure = len(self.writer.text) if finish else self.writer.sure()
        self.tell(Piece(self.writer.text[self.shown : sure], tokens, finish))
        self.shown = max(self.shown, sure)
        return finish is None


def pick(logits: Any, requests: Sequence[Request]) -> list[int]:
    """Each request's next token."""
    import torch

    tokens: list[int] = logits.argmax(-1).tolist()
    for row, request in enumerate(requests):
        if request.temperature < COLD:
            continue
        chance = torch.Generator().manual_seed((request.seed * 1_000_003 + len(request.done)) % 2**63)
        odds, order = torch.softmax(logits[row] / request.temperature, -1).sort(descending=True)
        # The token that reaches top_p is the last that may come.
        odds[odds.cumsum(0) - odds >= request.top_p] = 0
        tokens[row] = int(order[torch.multinomial(odds, 1, generator=chance)])
    return tokens


class Engine:
    """A batch and those who wait for a place in it."""

    def __init__(self, decoder: Decoder, ends: Sequence[int], batch: int) -> None:
        self.decoder, self.ends, self.batch = decoder, frozenset(ends), batch
        self.tokens = 0
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._work = threading.Condition()
        threading.Thread(target=self._forever, name="engine", daemon=True).start()

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, request: Request) -> None:
        with self._work:
            self._waiting.append(request)
            self._work.notify()

    def _forever(self) -> None:
        import torch

        while True:
            with self._work:
                self._work.wait_for(lambda: self._waiting or self._running)
                fresh = self._admit()
            try:
                with torch.inference_mode():
                    self._turn(fresh)
            except Exception as error:
                # As when memory is short. Their rows are of no use any more; who comes next may be smaller.
                for request in dict.fromkeys([*self._running, *fresh]):
                    request.tell(Piece(error=f"{type(error).__name__}: {error}"[:500]))
                self._running = []
                self.decoder.keep([])

    def _admit(self) -> list[Request]:
        """Those who wait and find a place now; who waited too long is told."""
        now, waiting, fresh = time.monotonic(), deque[Request](), list[Request]()
        for request in self._waiting:
            if request.left:
                continue
            if now > request.until:
                request.tell(Piece(finish="timeout"))
            elif len(self._running) + len(fresh) < self.batch:
                fresh.append(request)
            else:
                waiting.append(request)
        self._waiting = waiting
        return fresh

    def _turn(self, fresh: list[Request]) -> None:
        """One token for everybody."""
        import torch

        logits = []
        if self._running:
            logits.append(self.decoder.step([request.done[-1] for request in self._running]))
        if fresh:
            logits.append(self.decoder.join([(request.prompt, request.done) for request in fresh]))
            self._running = [*self._running, *fresh]
        if not logits:
            return
        tokens, now = pick(torch.cat(logits), self._running), time.monotonic()
        self.tokens += len(tokens)
        stay = [
            row
            for row, (request, token) in enumerate(zip(self._running, tokens, strict=True))
            if request.take(token, self.ends, now) and not request.left
        ]
        if len(stay) < len(self._running):
            self.decoder.keep(stay)
            self._running = [self._running[row] for row in stay]
