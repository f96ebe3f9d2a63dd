"""What the bridge decides, against a Jobs API of a few lines. With a real Ray: tests/delivery/test_bridge.py."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from celery import Celery

from celery_app import ray_bridge
from celery_app.ray_bridge import RayJobFailedError, RayJobStoppedError, visit
from ray_jobs import outcome
from ray_jobs.jobs_api import BridgeError, Job, JobsApiError, JobsClient, RayUnavailableError, Wanted


class FakeApi:
    """Jobs in a dict, as Ray's Jobs API would tell of them."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self.calls: list[str] = []
        self.away = False

    def get(self, job: str) -> Job | None:
        self.answer("get")
        found = self.jobs.get(job)
        return Job(node="n1", **found) if found else None

    def submit(self, body: dict[str, Any]) -> None:
        self.answer("submit")
        if body["submission_id"] not in self.jobs:
            self.jobs[body["submission_id"]] = {"status": "PENDING", "metadata": body["metadata"], "started": 100.0}

    def stop(self, job: str) -> None:
        self.answer("stop")
        self.jobs[job]["status"] = "STOPPED"

    def delete(self, job: str) -> None:
        self.answer("delete")
        del self.jobs[job]

    def tail(self, job: str, node: str | None, lines: int = 40) -> str:
        return "\n".join(self.logs.get(job, "").splitlines()[-lines:])

    def answer(self, call: str) -> None:
        self.calls.append(call)
        if self.away:
            raise RayUnavailableError("the head does not answer")


@pytest.fixture
def api() -> Any:
    return FakeApi()


WANTED = Wanted("t1", "python -m ray_jobs.hello", restarts=2)


def test_a_job_is_started_once_and_then_found(api: Any) -> None:
    assert visit(api, WANTED, 0).meta["status"] == "PENDING"
    api.jobs["t1"]["status"] = "RUNNING"
    api.logs["t1"] = f'hello\n{outcome.PROGRESS}{{"done":1,"total":2}}\n'
    seen = visit(api, WANTED, 0)
    assert api.calls.count("submit") == 1
    assert (seen.ended, seen.meta["progress"], seen.meta["log"]) == (False, {"done": 1, "total": 2}, "hello")


def test_the_result_is_found_also_when_others_spoke_after_it(api: Any) -> None:
    visit(api, WANTED, 0)
    api.jobs["t1"]["status"] = "SUCCEEDED"
    api.logs["t1"] = f'{outcome.RESULT}{{"a":1}}\n' + "noise\n" * 100
    assert visit(api, WANTED, 0) == ray_bridge.Seen(True, result={"a": 1})
    api.logs["t1"] = "no result at all"
    assert visit(api, WANTED, 0).result is None


@pytest.mark.parametrize(("status", "error"), [("FAILED", RayJobFailedError), ("STOPPED", RayJobStoppedError)])
def test_a_bad_end_is_an_error_with_the_log(api: Any, status: str, error: type[Exception]) -> None:
    visit(api, WANTED, 0)
    api.jobs["t1"].update(status=status, message="exit code 1")
    api.logs["t1"] = "the disk is full"
    with pytest.raises(error, match="the disk is full"):
        visit(api, WANTED, 0)
    assert api.calls.count("submit") == 1


def test_a_job_that_lost_its_node_is_started_again_so_often(api: Any) -> None:
    visit(api, WANTED, 0)
    for count in (1, 2):
        api.jobs["t1"].update(status="FAILED", error="JOB_SUPERVISOR_ACTOR_DIED")
        assert visit(api, WANTED, 0).meta["restarted"] == count
    api.jobs["t1"].update(status="FAILED", error="JOB_SUPERVISOR_ACTOR_DIED")
    with pytest.raises(RayJobFailedError, match="lost its node 3 times"):
        visit(api, WANTED, 0)


def test_a_job_that_takes_too_long_is_stopped(api: Any) -> None:
    wanted = Wanted("t1", "true", timeout=60)
    assert not visit(api, wanted, 159).ended
    with pytest.raises(RayJobStoppedError, match="longer than 60 s"):
        visit(api, wanted, 161)
    assert api.jobs["t1"]["status"] == "STOPPED"


def test_errors_survive_the_way_through_a_result_backend() -> None:
    import pickle

    error = RayJobFailedError("t1", "exit code 1", "log")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.job, again.message, again.log) == (RayJobFailedError, "t1", "exit code 1", "log")
    assert error.args == ("t1", "exit code 1", "log")


@pytest.fixture
def app() -> Celery:
    app = Celery("t", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.task_track_started = True
    return app


def task_of(app: Celery, api: Any) -> Any:
    @app.task(name="t.job", **ray_bridge.RAY_JOB)
    def job(self: Any, entrypoint: str) -> Any:
        return ray_bridge.ray_job(entrypoint, client=api)

    return job


def run_visit(task: Any, retries: int) -> Any:
    """One delivery of the message, as a worker's process handles it."""
    from celery.app.trace import build_tracer

    request = {"id": "t1", "retries": retries, "delivery_info": {"routing_key": "ml", "exchange": "", "priority": 3},
               "args": ["true"], "kwargs": {}, "root_id": "t1", "headers": {}}  # fmt: skip
    return build_tracer(task.name, task, app=task.app)("t1", ["true"], {}, request)


def test_a_visit_publishes_the_next_and_leaves_the_slot(app: Celery, api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of(app, api)
    sent: list[Any] = []

    def apply_async(self: Any, *args: Any, **options: Any) -> None:
        sent.append(self.options)
        assert task.backend.get_state("t1") == "PROGRESS"

    monkeypatch.setattr("celery.canvas.Signature.apply_async", apply_async)
    run_visit(task, 4)
    assert task.backend.get_state("t1") == "PROGRESS"
    assert [(o["task_id"], o["retries"], o["queue"], o["priority"]) for o in sent] == [("t1", 5, "ml", 3)]
    assert ray_bridge.FASTEST <= sent[0]["countdown"] <= ray_bridge.SLOWEST

    # The head away: the state says so, and the next visit comes.
    api.away = True
    run_visit(task, 5)
    assert len(sent) == 2
    assert task.backend.get_task_meta("t1")["result"]["status"] == "UNKNOWN"
    api.away = False

    api.jobs["t1"]["status"] = "SUCCEEDED"
    api.logs["t1"] = f"{outcome.RESULT}42"
    run_visit(task, 6)
    assert len(sent) == 2
    assert (task.backend.get_state("t1"), task.backend.get_result("t1")) == ("SUCCESS", 42)
    assert api.calls.count("submit") == 1


def test_a_task_without_the_options_is_told(app: Celery) -> None:
    @app.task(name="t.plain")
    def plain() -> Any:
        return ray_bridge.ray_job("true")

    with pytest.raises(BridgeError, match="RAY_JOB"):
        plain.apply(throw=True)


@pytest.mark.parametrize(
    ("options", "selector"),
    [
        ({}, {"class": "!laptop", "node": "!head"}),
        ({"label_selector": {}}, {"class": "!laptop"}),
        ({"label_selector": {"node": "worker-2"}}, {"class": "!laptop", "node": "worker-2"}),
        ({"label_selector": {"class": "laptop"}}, {"class": "laptop"}),
        ({"label_selector": {"class": "laptop"}, "restarts": 0}, None),
    ],
)
def test_a_job_runs_on_a_laptop_only_when_that_is_said_and_it_may_start_again(
    app: Celery, api: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], selector: dict[str, str] | None
) -> None:
    bodies: list[dict[str, Any]] = []

    @app.task(name="t.job", **ray_bridge.RAY_JOB)
    def job(self: Any) -> Any:
        return ray_bridge.ray_job("true", client=api, **options)

    def submit(body: dict[str, Any]) -> None:
        bodies.append(body)
        api.jobs[body["submission_id"]] = {"status": "SUCCEEDED", "metadata": {}}

    monkeypatch.setattr(api, "submit", submit)
    if selector is None:
        with pytest.raises(ValueError, match="restarts above 0"):
            job.apply(throw=True)
        assert not bodies
    else:
        job.apply(throw=True)
        assert [body["entrypoint_label_selector"] for body in bodies] == [selector]


def test_stopping_outlives_an_absent_head_and_a_job_that_only_now_starts(
    api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            api.away = False
        if len(waited) == 4:
            api.submit({"submission_id": "t1", "metadata": {}})

    monkeypatch.setattr("celery_app.ray_bridge.time.sleep", sleep)
    api.away = True
    assert ray_bridge.stop_for_good(api, "t1")
    assert api.jobs["t1"]["status"] == "STOPPED"


def test_revoking_stops_jobs_only_of_tasks_that_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from celery import signals

    done: list[str] = []
    monkeypatch.setattr(ray_bridge, "_stop_quietly", lambda job: done.append(f"stop {job}"))
    monkeypatch.setattr(ray_bridge, "_note", lambda command, job: done.append(f"{command} {job}"))

    class Sender:
        ray_job = True

    signals.task_revoked.send(sender=Sender, request={"id": "t1"}, terminated=True, signum=15, expired=False)
    signals.task_revoked.send(sender=object(), request={"id": "t2"}, terminated=True, signum=15, expired=False)
    stops_end()
    assert done == ["SADD t1", "stop t1"]


def stops_end() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("stop-"):
            thread.join()


def test_what_a_worker_left_is_stopped_by_the_next_and_then_forgotten(
    api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = {"t1"}

    def note(command: str, *jobs: str) -> set[str]:
        if command == "SREM":
            noted.difference_update(jobs)
        return set(noted)

    monkeypatch.setattr(ray_bridge, "_note", note)
    monkeypatch.setattr(ray_bridge, "JobsClient", lambda: api)
    api.submit({"submission_id": "t1", "metadata": {}})
    ray_bridge._stop_what_is_left()
    stops_end()
    assert noted, "this one has no way to Ray's jobs"
    monkeypatch.setenv("MUSTER_RAY_JOBS_URL", "http://h")
    ray_bridge._stop_what_is_left()
    stops_end()
    assert not noted
    assert api.jobs["t1"]["status"] == "STOPPED"


@pytest.fixture
def server() -> Iterator[Any]:
    class Handler(BaseHTTPRequestHandler):
        status, body = 200, b"{}"
        seen: list[tuple[str, str, str | None]] = []  # noqa: RUF012

        def do_GET(self) -> None:
            self.seen.append((self.command, self.path, self.headers["Authorization"]))
            self.send_response(self.status)
            self.send_header("Content-Length", str(len(self.body)))
            self.end_headers()
            self.wfile.write(self.body)

        do_POST = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Handler.url = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    yield Handler
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, JobsApiError), (403, JobsApiError), (500, RayUnavailableError),
     (503, RayUnavailableError)],
)  # fmt: skip
def test_the_client_tells_a_refusal_from_an_absence(server: Any, status: int, error: type[Exception]) -> None:
    server.status = status
    with pytest.raises(error):
        JobsClient(server.url, "secret").get("a/b")
    assert server.seen == [("GET", "/api/jobs/a%2Fb", "Bearer secret")]


def test_a_job_that_is_there_already_is_no_error(server: Any) -> None:
    server.status, server.body = 500, b"ValueError: Job with submission_id t1 already exists."
    JobsClient(server.url, "secret").submit(WANTED.body(0))
    server.status, server.body = 400, b"bad request"
    with pytest.raises(JobsApiError, match="bad request"):
        JobsClient(server.url, "secret").submit(WANTED.body(0))
    server.status = 404
    assert JobsClient(server.url, "secret").get("t1") is None


def test_nobody_listening_is_an_absence() -> None:
    with pytest.raises(RayUnavailableError):
        JobsClient("http://127.0.0.1:1", "secret", timeout=1).get("t1")


def test_without_an_address_the_mistake_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUSTER_RAY_JOBS_URL", raising=False)
    with pytest.raises(JobsApiError, match="MUSTER_RAY_JOBS_URL"):
        JobsClient()


def test_the_bridge_imports_no_ray() -> None:
    code = "import sys, celery_app.ray_bridge; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_marks_are_read_back_and_kept_from_people(capsys: pytest.CaptureFixture[str]) -> None:
    outcome.progress(1, 4, "files")
    print("hello")
    outcome.result({"rows": 3})
    log = capsys.readouterr().out
    assert outcome.last(outcome.PROGRESS, log) == {"done": 1, "total": 4, "note": "files"}
    assert outcome.last(outcome.RESULT, log) == {"rows": 3}
    assert outcome.without_marks(log) == "hello"
    assert outcome.last(outcome.RESULT, log[:-5]) is None
    with pytest.raises(outcome.ResultTooLargeError, match="write a file"):
        outcome.result("x" * outcome.LARGEST)
    with pytest.raises(ValueError, match="JSON compliant"):
        outcome.result(float("nan"))


def test_visits_come_often_first_and_seldom_later() -> None:
    pauses = [ray_bridge.pause(age) for age in (0, 5, 20, 1000)]
    assert pauses == [1.0, 1.0, 2.0, 5.0]
    assert json.dumps(WANTED.body(1))  # as the API takes it
