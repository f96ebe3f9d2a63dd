"""The Jobs API of Ray's head over HTTP: for the watcher of Celery's Ray jobs, and for `muster run`.

Not Ray's own client: its import costs 100 MB and more time than the request, and a controller need not have Ray at all.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
LOG_LINES = 40
# A job's own process on the head would end with the head, and Ray may go on calling the job RUNNING.
OFF_HEAD = {"node": "!head"}


class BridgeError(Exception):
    """Something between us and Ray."""


class RayUnavailableError(BridgeError, ConnectionError):
    """Ray does not answer, and nothing was started: try again later."""


class JobsApiError(BridgeError):
    """The Jobs API refuses: a wrong token, a wrong request. Waiting does not help."""


def token() -> str:
    """The cluster's token, from where Ray itself would take it."""
    if value := os.environ.get("RAY_AUTH_TOKEN"):
        return value
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(path).read_text().strip() if path else ""


@dataclass(frozen=True)
class Job:
    """A Ray job as the Jobs API tells of it."""

    status: str
    message: str = ""
    node: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    started: float = 0.0
    error: str | None = None

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def died_with_its_node(self) -> bool:
        """Ray lost the process that looks after the job; the job itself did nothing wrong."""
        return self.status == "FAILED" and (self.error or "") in (
            "JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE", "JOB_SUPERVISOR_ACTOR_START_TIMEOUT",
        )  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """A job as somebody wants it."""

    id: str
    entrypoint: str
    env: Mapping[str, str] = field(default_factory=dict)
    num_cpus: float = 0
    num_gpus: float = 0
    memory: int | None = None
    label_selector: Mapping[str, str] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    restarts: int = 3
    timeout: float | None = None

    def body(self, restarted: int = 0) -> dict[str, Any]:
        """As the Jobs API takes it."""
        body: dict[str, Any] = {
            "submission_id": self.id,
            "entrypoint": self.entrypoint,
            "runtime_env": {"env_vars": {**self.env, "MUSTER_RAY_JOB": self.id, "PYTHONUNBUFFERED": "1"}},
            "metadata": {**self.metadata, "restarted": str(restarted)},
            "entrypoint_num_cpus": self.num_cpus,
            "entrypoint_num_gpus": self.num_gpus,
        }
        if self.memory is not None:
            body["entrypoint_memory"] = self.memory
        if self.label_selector:
            body["entrypoint_label_selector"] = dict(self.label_selector)
        return body


class JobsClient:
    """The Jobs API. Every question may raise RayUnavailableError, and JobsApiError where waiting does not help."""

    def __init__(self, url: str = "", bearer: str | None = None, ca: str | None = None, timeout: float = 10) -> None:
        self.url = (url or os.environ.get("MUSTER_RAY_JOBS_URL", "")).rstrip("/")
        if not self.url:
            raise JobsApiError("MUSTER_RAY_JOBS_URL is not set: Ray's jobs are watched on the head's host (queue ml)")
        self.bearer = token() if bearer is None else bearer
        self.timeout = timeout
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if self.url.startswith("https:"):
            ca = ca or os.environ.get("RAY_TLS_CA_CERT")
            handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca)))
        self._opener = urllib.request.build_opener(*handlers)

    def open(self, method: str, path: str, body: Any = None, timeout: float | None = None) -> http.client.HTTPResponse:
        """The answer as it comes; what goes wrong is urllib's."""
        request = urllib.request.Request(self.url + path, method=method)
        request.add_header("Content-Type", "application/json")
        if self.bearer:
            request.add_header("Authorization", f"Bearer {self.bearer}")
        if body is not None:
            request.data = json.dumps(body).encode()
        answer: http.client.HTTPResponse = self._opener.open(request, timeout=timeout or self.timeout)
        return answer

    def _call(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        try:
            with self.open(method, path, body) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                text = error.read()
            if error.code in (401, 403):
                raise JobsApiError(f"{self.url} answers {error.code}: check RAY_AUTH_TOKEN_PATH") from error
            if error.code in (502, 503, 504):
                raise RayUnavailableError(f"{self.url} answers {error.code}") from error
            return error.code, text
        except (OSError, EOFError) as error:
            raise RayUnavailableError(f"{self.url} does not answer: {error}") from error
        except Exception as error:  # http.client's errors: an answer that was cut
            raise RayUnavailableError(f"{self.url} answers nonsense: {error!r}") from error

    @staticmethod
    def _path(job: str) -> str:
        return "/api/jobs/" + urllib.parse.quote(job, safe="")

    def get(self, job: str) -> Job | None:
        """The job; None when Ray knows none of this name."""
        status, body = self._call("GET", self._path(job))
        if status == 404:
            return None
        if status != 200:
            # Also while the head starts: it answers 500 until its state is there.
            raise RayUnavailableError(f"{self.url} answers {status}: {body[:200].decode(errors='replace')}")
        found = json.loads(body)
        return Job(
            found["status"], found.get("message") or "", found.get("driver_node_id"), found.get("metadata") or {},
            (found.get("start_time") or 0) / 1000, found.get("error_type"),
        )  # fmt: skip

    def submit(self, body: Mapping[str, Any]) -> None:
        """Start a job. Nothing happens when one of its name is there: the first to come starts it."""
        status, text = self._call("POST", "/api/jobs/", body)
        if status == 200 or b"already exists" in text:
            return
        if status == 400:
            raise JobsApiError(f"Ray refuses the job: {text[-300:].decode(errors='replace')}")
        raise RayUnavailableError(f"{self.url} answers {status}: {text[-300:].decode(errors='replace')}")

    def all(self) -> list[dict[str, Any]]:
        """Every job that Ray knows of, as it tells of them."""
        status, body = self._call("GET", "/api/jobs/")
        if status != 200:
            raise RayUnavailableError(f"{self.url} answers {status}: {body[:200].decode(errors='replace')}")
        found: list[dict[str, Any]] = json.loads(body)
        return found

    def stop(self, job: str) -> None:
        """Ask Ray to stop it: SIGTERM, then SIGKILL."""
        self._call("POST", self._path(job) + "/stop")

    def delete(self, job: str) -> None:
        """Forget a job that has ended."""
        self._call("DELETE", self._path(job))

    def tail(self, job: str, node: str | None, lines: int = LOG_LINES) -> str:
        """The last lines of a job's log, taken from where it is: the whole may be gigabytes. Empty when it is gone."""
        if not node:
            return ""
        query = urllib.parse.urlencode({"node_id": node, "filename": f"job-driver-{job}.log", "lines": lines})
        try:
            status, body = self._call("GET", f"/api/v0/logs/file?{query}")
        except RayUnavailableError:
            return ""
        return body.decode(errors="replace") if status == 200 else ""
