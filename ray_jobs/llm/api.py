"""The deployments of the application `llm`: a model each, and one that speaks OpenAI's language in front of them.

Declaratively: `import_path: ray_jobs.llm.api:build`, `args: {models: [...]}` to Ray's REST API. Otherwise the job
`llm_serve` does it. Both are servers' work: whatever asks for a CPU stays off the head, which has none.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import ray
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from ray import serve
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.util import metrics

from ray_jobs import afar
from ray_jobs.command import mistakes_of
from ray_jobs.llm import config, wire
from ray_jobs.llm.config import Model
from ray_jobs.llm.engine import Engine, Piece, Writer
from ray_jobs.llm.engine import Request as Row
from ray_jobs.llm.weights import AskedError, load
from ray_jobs.llm.wire import Answer, RefusedError, Usage

# What a replica may take longer to say that its time is over.
GRACE = 5.0
# What is heard of a replica that is gone.
DIED = (RayActorError, NodeDiedError, ObjectLostError)
# A dead replica is known to be dead after moments; then requests go elsewhere, or wait for the next one.
AGAIN = 0.2
# How long replicas may take to say how they are.
PATIENCE = 5.0


def whoami() -> dict[str, str]:
    """The node and the replica that this code runs in."""
    return {"node": afar.here(), "replica": serve.get_replica_context().replica_id.unique_id}


class Generator:
    """One replica of a model. What it takes and gives are plain dicts: they cross processes."""

    def __init__(self, values: dict[str, Any]) -> None:
        model = Model.model_validate(values)
        self._model = model
        self._loaded = load(model)
        self._engine = Engine(self._loaded.decoder, self._loaded.ends, model.batch)
        self._who = whoami()
        self._tokens = metrics.Counter(
            "muster_llm_tokens", description="tokens that a model was given or wrote", tag_keys=("model", "kind")
        )

    async def stream(self, asked: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The pieces of an answer as they come. Where it is cut off, its place becomes free."""
        loop = asyncio.get_running_loop()
        pieces = asyncio.Queue[Piece]()
        try:
            prompt = self._loaded.prompt(asked["asked"])
        except AskedError as error:
            yield {"refused": str(error)}
            return
        request = Row(
            prompt=prompt,
            writer=Writer(self._loaded.decode, asked["stop"]),
            tell=lambda piece: loop.call_soon_threadsafe(pieces.put_nowait, piece),
            most=self._loaded.room(prompt, asked["most"]),
            temperature=asked["temperature"],
            top_p=asked["top_p"],
            seed=asked["seed"],
            until=time.monotonic() + asked["seconds"],
            done=list(asked["done"]),
            shown=asked["shown"],
        )
        if not asked["done"]:
            self._tokens.inc(len(prompt), {"model": self._model.name, "kind": "prompt"})
        self._engine.submit(request)
        try:
            finished = False
            while not finished:
                piece = await pieces.get()
                # Where who reads is slower than who writes, pieces become larger instead of more.
                while not pieces.empty():
                    piece += pieces.get_nowait()
                if piece.tokens:
                    self._tokens.inc(len(piece.tokens), {"model": self._model.name, "kind": "answer"})
                finished = bool(piece.finish or piece.error)
                yield {
                    "text": piece.text, "tokens": list(piece.tokens), "finish": piece.finish, "error": piece.error,
                    "prompt": len(prompt), "who": self._who,
                }  # fmt: skip
        finally:
            request.left = True

    async def whole(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The answer as one piece: most of what streaming costs is in the number of its messages."""
        last: dict[str, Any] = {}
        async for piece in self.stream(asked):
            if last:
                piece = {**piece, "text": last["text"] + piece["text"], "tokens": last["tokens"] + piece["tokens"]}
            last = piece
        return last

    async def state(self) -> dict[str, Any]:
        """How it is."""
        engine = self._engine
        return {
            **self._who, "pid": os.getpid(), "running": engine.running, "waiting": engine.waiting,
            "tokens": engine.tokens,
        }  # fmt: skip


app = FastAPI(title="Muster llm")


@app.exception_handler(RequestValidationError)
async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    # `body` is the first word of every place, and of no use.
    said = [{**item, "loc": item["loc"][1:]} for item in error.errors()]
    return answer_of(RefusedError(400, mistakes_of(said), "invalid_request"))


@app.exception_handler(RefusedError)
async def refused(_: Request, error: RefusedError) -> JSONResponse:
    return answer_of(error)


def answer_of(error: RefusedError) -> JSONResponse:
    headers = {"Retry-After": "1"} if error.status == 429 else None
    return JSONResponse({**error.body(), "muster": whoami()}, error.status, headers)


def event(body: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(body, separators=(',', ':'))}\n\n"


class OpenAI:
    """Speaks OpenAI's language with clients, and plain dicts with the models."""

    def __init__(self, models: dict[str, tuple[dict[str, Any], DeploymentHandle]]) -> None:
        self._models = {name: (Model.model_validate(values), handle) for name, (values, handle) in models.items()}
        self._since = int(time.time())
        # Requests that are there, and tokens that were sent, by model.
        self._there = Counter[str]()
        self._sent = Counter[str]()

    @app.get("/v1/models")
    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._about(name) for name in self._models], "muster": whoami()}

    @app.get("/v1/models/{name:path}")
    async def model(self, name: str) -> dict[str, Any]:
        self._find(name)
        return {**self._about(name), "muster": whoami()}

    def _about(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._since, "owned_by": "muster"}

    def _find(self, name: str) -> tuple[Model, DeploymentHandle]:
        if name not in self._models:
            known = ", ".join(self._models)
            raise RefusedError(404, f"model: there is no {name}; there are {known}", "model_not_found")
        return self._models[name]

    @app.post("/v1/completions")
    async def completions(self, body: wire.Completion) -> Any:
        return await self._answer(body, chat=False)

    @app.post("/v1/chat/completions")
    async def chat(self, body: wire.Chat) -> Any:
        return await self._answer(body, chat=True)

    async def _replicas(self, name: str) -> list[dict[str, Any]]:
        """What the replicas of a model say of themselves; who does not answer is not there."""
        try:
            said = (
                await self._models[name][1].broadcast("state").results_async(timeout_s=PATIENCE, return_exceptions=True)
            )
        except (RayServeException, ray.exceptions.RayError, TimeoutError):
            return []
        return sorted((each for each in said if isinstance(each, dict)), key=lambda each: str(each["replica"]))

    @app.get("/status")
    async def status(self) -> dict[str, Any]:
        found = await asyncio.gather(*map(self._replicas, self._models))
        models = {}
        for (name, (model, _)), replicas in zip(self._models.items(), found, strict=True):
            running = sum(each["running"] for each in replicas)
            models[name] = {
                "replicas": replicas,
                "wanted": model.replicas.model_dump(),
                "running": running,
                "waiting": max(0, self._there[name] - running),
                "tokens": self._sent[name],
            }
        return {"models": models, "muster": whoami()}

    @app.get("/health")
    async def health(self) -> JSONResponse:
        found = dict(zip(self._models, await asyncio.gather(*map(self._replicas, self._models)), strict=True))
        missing = [name for name, replicas in found.items() if not replicas]
        body = {"status": "degraded" if missing else "ok", "missing": missing, "muster": whoami()}
        return JSONResponse(body, 503 if missing else 200)

    async def _answer(self, body: wire.Asked, chat: bool) -> Any:
        model, handle = self._find(body.model)
        most = body.most()
        if most is not None and most > model.max_tokens:
            raise RefusedError(400, f"max_tokens: {most} are wanted, {model.name} gives {model.max_tokens} at most")
        asked = {
            "asked": body.asked(),
            "most": most or model.max_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
            # Drawn here, so that who goes on for a dead replica draws the same tokens.
            "seed": random.getrandbits(60) if body.seed is None else body.seed,
            "stop": body.stop,
            "done": [],
            "shown": 0,
        }
        pieces = self._pieces(model, handle, asked, body.stream)
        # A refusal must come before the first byte of a stream.
        first = await anext(pieces)
        answer = Answer(model.name, chat)
        if body.stream:
            usage = bool(body.stream_options and body.stream_options.include_usage)
            return StreamingResponse(self._events(answer, first, pieces, usage), media_type="text/event-stream")
        await pieces.aclose()
        used = Usage(first["prompt"], len(first["tokens"]))
        return {**answer.whole(first["text"], first["finish"], used), "muster": first["who"]}

    async def _events(
        self, answer: Answer, first: dict[str, Any], pieces: AsyncGenerator[dict[str, Any], None], usage: bool
    ) -> AsyncIterator[str]:
        """A stream as OpenAI's clients read it."""
        piece, used, begun = first, Usage(first["prompt"]), False
        try:
            while True:
                used.completion += len(piece["tokens"])
                if piece["text"] or piece["finish"]:
                    yield event({**answer.chunk(piece["text"], piece["finish"], not begun), "muster": piece["who"]})
                    begun = True
                if piece["finish"]:
                    break
                piece = await anext(pieces)
        except RefusedError as error:
            yield event({**error.body(), "muster": piece["who"]})
            return
        finally:
            await pieces.aclose()
        if usage:
            yield event({**answer.end(used), "muster": piece["who"]})
        yield "data: [DONE]\n\n"

    async def _pieces(
        self, model: Model, handle: DeploymentHandle, asked: dict[str, Any], stream: bool
    ) -> AsyncGenerator[dict[str, Any], None]:
        """What replicas say, the next one going on where one dies. At least one piece; the last says why it ends."""
        name = model.name
        if self._there[name] >= model.most:
            raise RefusedError(429, f"{name}: {model.most} requests are there already: try again later", "queue_full")
        self._there[name] += 1
        until, who = time.monotonic() + model.seconds, whoami()
        try:
            while True:
                asked["seconds"] = until - time.monotonic()
                calls = handle.options(method_name="stream" if stream else "whole", stream=stream).remote(dict(asked))
                try:
                    async for piece in self._said(calls, stream, until + GRACE):
                        if "refused" in piece:
                            raise RefusedError(400, piece["refused"], "context_length_exceeded")
                        if piece["error"]:
                            raise RefusedError(500, f"{name}: {piece['error']}")
                        who = piece["who"]
                        if piece["finish"] == "timeout":
                            raise TimeoutError
                        asked["done"] += piece["tokens"]
                        asked["shown"] += len(piece["text"])
                        self._sent[name] += len(piece["tokens"])
                        yield piece
                        if piece["finish"]:
                            return
                except DIED as error:
                    if time.monotonic() + AGAIN > until:
                        raise TimeoutError from error
                    await asyncio.sleep(AGAIN)
                except RayTaskError as error:
                    raise RefusedError(500, f"{name}: {type(error.cause or error).__name__}") from error
                except RayServeException as error:
                    raise RefusedError(503, f"{name}: no replica is there: {type(error).__name__}") from error
                finally:
                    # Also where the client left: this frees its place.
                    calls.cancel()
        except TimeoutError as error:
            if not asked["done"]:
                raise RefusedError(504, f"{name}: nothing came within {model.seconds:g} s", "timeout") from error
            yield {"text": "", "tokens": [], "finish": "length", "prompt": 0, "who": who}
        finally:
            self._there[name] -= 1

    async def _said(self, calls: Any, stream: bool, until: float) -> AsyncIterator[dict[str, Any]]:
        """What comes of a call, as long as there is time."""
        if not stream:
            yield await asyncio.wait_for(calls, until - time.monotonic())
            return
        while True:
            try:
                yield await asyncio.wait_for(anext(calls), until - time.monotonic())
            except StopAsyncIteration:
                return


# Once only: it moves the routes from the class to the app.
Door: Any = serve.deployment(serve.ingress(app)(OpenAI))


def build(args: dict[str, Any]) -> serve.Application:
    """The application of a configuration (config.py); a mistake in it is one line."""
    wanted = config.check(args)
    if wanted.models[0].engine == "vllm":
        from ray_jobs.llm import vllm

        return vllm.build(wanted)
    models = {}
    for model in wanted.models:
        values = model.model_dump()
        deployment = serve.deployment(Generator).options(
            name=model.deployment,
            ray_actor_options=model.actor(),
            # Who waits does so in the engine, which lets the next one in between two tokens.
            max_ongoing_requests=model.most,
            health_check_period_s=5,
            graceful_shutdown_timeout_s=min(20, model.seconds),
            **model.scale(),
        )
        models[model.name] = (values, deployment.bind(values))
    # It needs little of a CPU, but some: what asks for none might be put on the head.
    return (
        serve.deployment(serve.ingress(app)(OpenAI))
        .options(
            name="openai",
            ray_actor_options={"num_cpus": 0.1, "label_selector": afar.SERVER},
            max_ongoing_requests=sum(model.most for model in wanted.models) + 100,
        )
        .bind(models)
    )
