"""A saved model behind Ray Serve: what runs in each replica. Needs the libraries of the `ml` image."""

# No `from __future__ import annotations`: Ray sends this class by its code, and FastAPI would not find what words mean.
import asyncio
import time
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from ray import serve
from ray.util.metrics import Counter, Histogram

from ray_jobs import afar, asked, models

# Requests that one replica takes at a time, and that it answers in one go; more than the last are refused.
ONGOING, BATCH, WAITING = 64, 32, 256
# A batch waits so long for company.
COMPANY = 0.005
LABELS = ("model", "version")
# Pages that would ask the internet for their scripts are left out.
app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)


def answers(model: Any, rows: list[dict[str, Any]]) -> list[Any]:
    """What a model of models.load says of rows, as JSON has it."""
    import pandas

    return [value.item() if hasattr(value, "item") else value for value in model(pandas.DataFrame(rows))]


async def body(request: Request) -> bytes:
    """The request's body, of which no more is read than may be."""
    found = bytearray()
    async for part in request.stream():
        found += part
        asked.size(len(found))
    return bytes(found)


@serve.deployment(
    name="model",
    max_ongoing_requests=ONGOING,
    max_queued_requests=WAITING,
    backpressure_config={"status_code": 429, "retry_after_s": 1},
    # The old version answers until the new one does.
    max_surge_percent=100,
    health_check_period_s=5,
    graceful_shutdown_timeout_s=30,
)
@serve.ingress(app)
class Model:
    """One replica."""

    def __init__(self, name: str, folder: str) -> None:
        about, self.model = models.load(Path(folder))
        self.about = {"model": name, "version": Path(folder).name, **about}
        self.labels = {label: self.about[label] for label in LABELS}
        self.requests = Counter("muster_served_requests", "Requests answered, by status", (*LABELS, "status"))
        self.rows = Counter("muster_served_rows", "Rows answered for", LABELS)
        self.seconds = Histogram(
            "muster_served_seconds", "From a request to its answer", [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5],
            LABELS,
        )  # fmt: skip

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=COMPANY)
    async def batch(self, requests: list[list[dict[str, Any]]]) -> list[list[Any]]:
        """The answers of several requests, from one call of the model; health is answered meanwhile."""
        said = await asyncio.to_thread(answers, self.model, [row for rows in requests for row in rows])
        ends = iter(said)
        return [[next(ends) for _ in rows] for rows in requests]

    @app.post("/predict")
    async def predict(self, request: Request) -> JSONResponse:
        """What the model says of each row."""
        start, status = time.perf_counter(), 500
        try:
            rows = asked.rows(await body(request), self.about)
            said = await self.batch(rows)
            status = 200
            self.rows.inc(len(rows), self.labels)
            return JSONResponse({**self.labels, "predictions": said})
        except asked.RefusedError as error:
            status = error.status
            return JSONResponse({**self.labels, "error": str(error)}, status)
        finally:
            self.requests.inc(1, {**self.labels, "status": str(status)})
            self.seconds.observe(time.perf_counter() - start, self.labels)

    @app.get("/health")
    async def health(self) -> dict[str, str]:
        """That a replica answers, and which."""
        replica = serve.get_replica_context().replica_id.unique_id
        return {"status": "ok", **self.labels, "replica": replica, "node": afar.here()}

    @app.get("/about")
    async def described(self) -> dict[str, Any]:
        """Version, features and metrics of the model."""
        texts = self.about.get("labels", {})
        features = {name: "text" if name in texts else "number" for name in self.about["features"]}
        return {**self.labels, "kind": self.about["kind"], "features": features, "metrics": self.about.get("metrics")}

    def version(self) -> str:
        """For the job, which has no way to the door."""
        return str(self.about["version"])
