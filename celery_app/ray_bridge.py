"""The bridge to Ray: short functions by a native driver, long work as Ray jobs that no Celery slot waits for.

`ray_call(fn, *args)` runs a function on Ray and returns what it returns. It needs a Celery worker beside a Ray worker
(the role sets MUSTER_RAY_ADDRESS and MUSTER_RAY_NODE there). One connection per process, made at the first call.

`return ray_job("python -m ray_jobs.forest ...")` as the last line of a bound task with the options RAY_JOB starts a Ray
job under the task's own id and frees the slot. The task looks at the job in short visits: each one publishes the next
(same id, next attempt, a countdown) and ends without a result; the last one has the job's result or error. A visit that
is delivered again finds the job by its id. A visit that was published twice is dropped by the app's claim per attempt;
if it were not, it would write the same state once more. Revoking the task stops the job: at the next visit (at most
`SLOWEST` seconds away) the worker says that the task is revoked, and the job is stopped until Ray says that it is; if
the worker dies over that, the next one that starts does it.

Jobs go over the Jobs API of the head's dashboard, which has no TLS and stays on the head's loopback: tasks with RAY_JOB
belong into a queue that is served on the head's host (`ml`), or MUSTER_RAY_JOBS_URL is the https address of a gateway.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import redis
from celery import current_task, signals
from celery.exceptions import Ignore

from celery_app import lease
from celery_app.config import Settings
from ray_jobs import guests, outcome
from ray_jobs.jobs_api import OFF_HEAD, BridgeError, Job, JobsApiError, JobsClient, RayUnavailableError, Wanted

T = TypeVar("T")
log = logging.getLogger(__name__)

# Options of a task that ends in ray_job. Its state is PROGRESS from the first visit on: STARTED would flicker.
RAY_JOB: dict[str, Any] = {"bind": True, "ray_job": True, "track_started": False, "max_retries": None}
FASTEST, SLOWEST = 1.0, 5.0
STOPPING = "muster:stopping"
STATE_LOG = 4_000


class RayCallUncertainError(BridgeError):
    """The connection broke after the function was handed to Ray: it may have run, and nobody allowed a second time."""


class RayCallTimeoutError(BridgeError, TimeoutError):
    """The function took longer than the caller waits; it was cancelled."""


class RayJobError(BridgeError):
    """A Ray job ended without a result. `job` is its id, `log` the last lines of what it said."""

    def __init__(self, job: str, message: str, log: str = "") -> None:
        super().__init__(job, message, log)
        self.job, self.message, self.log = job, message, log

    def __str__(self) -> str:
        return f"Ray job {self.job}: {self.message}" + (f"\n{self.log}" if self.log else "")


class RayJobFailedError(RayJobError):
    """The job failed; the log says why."""


class RayJobStoppedError(RayJobError):
    """Somebody stopped the job in Ray, or it took longer than allowed."""


# --- short functions: a native driver ---------------------------------------------------------------------------------


class Driver:
    """This process's connection to Ray. Made at the first call, again in a forked child, and when it is dead."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._pid = 0
        self._remote: dict[Callable[..., Any], Any] = {}

    def connect(self) -> None:
        """Join Ray on the node beside us, unless this process has."""
        import ray

        with self._lock:
            if self._pid == os.getpid() and ray.is_initialized():
                return
            address = os.environ.get("MUSTER_RAY_ADDRESS", "")
            if not address:
                raise RayUnavailableError("MUSTER_RAY_ADDRESS is not set: this worker is not beside a Ray worker")
            self._remote.clear()
            try:
                # Celery puts a logger in the place of the standard streams; Ray wants real files for its fault handler.
                with (
                    contextlib.redirect_stdout(sys.__stdout__),
                    contextlib.redirect_stderr(sys.__stderr__),
                    _node_beside_us(address, os.environ.get("MUSTER_RAY_NODE", "")),
                ):
                    ray.init(
                        address=address, namespace="celery", log_to_driver=False, logging_level=logging.ERROR,
                        configure_logging=False,
                    )  # fmt: skip
            except Exception as error:
                with contextlib.suppress(Exception):
                    ray.shutdown()
                raise RayUnavailableError(f"no connection to Ray at {address}: {_line(error)}") from error
            self._pid = os.getpid()

    def disconnect(self) -> None:
        """Forget the connection; the next call makes a new one."""
        import ray

        with self._lock:
            self._remote.clear()
            self._pid = 0
            with contextlib.suppress(Exception):
                ray.shutdown()

    def remote(self, fn: Callable[..., Any]) -> Any:
        """The function as Ray knows it; told once per connection, which is most of what a call would cost."""
        import ray

        if "<" in fn.__qualname__:
            # A lambda or a function within one is a new one each time: keeping it would keep them all.
            return ray.remote(fn)
        with self._lock:
            if fn not in self._remote:
                self._remote[fn] = ray.remote(fn)
            return self._remote[fn]


_driver = Driver()


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1][:300] if lines else type(error).__name__


@contextlib.contextmanager
def _node_beside_us(address: str, name: str) -> Iterator[None]:
    """Tell Ray which raylet is ours, by its labels `host/node`.

    Ray finds local raylets by looking through the processes, which a container does not see; with the host's processes
    in sight it would take the head's, whose sockets we do not have, and hang. There is no public option for it.
    """
    if not name:
        yield
        return
    from ray._private import services
    from ray._raylet import GcsClient

    host, _, node = name.partition("/")
    known = GcsClient(address=address).get_all_node_info(timeout=10).values()
    ours = [
        info for info in known
        if info.state == 0 and info.labels.get("host") == host and info.labels.get("node") == node
    ]  # fmt: skip
    if not ours:
        raise RayUnavailableError(f"Ray knows no living node {name}")
    # A raylet that has just been started anew may be listed beside its former self.
    ours.sort(key=lambda info: info.start_time_ms)
    newest = ours[-1].node_id.hex()
    # Ray's head believes for a while that a dead node lives, and a driver that believes it, too, ends its process.
    place = (ours[-1].node_manager_address, ours[-1].node_manager_port)
    try:
        socket.create_connection(place, timeout=3).close()
    except OSError as error:
        raise RayUnavailableError(f"Ray's node {name} at {place[0]}:{place[1]} is not there: {error}") from error
    find = services.find_node_ids
    services.find_node_ids = lambda: {newest}
    try:
        yield
    finally:
        services.find_node_ids = find


def _lost(error: Exception) -> bool:
    """Whether an error is about the way to Ray or its nodes and not about the function."""
    from ray import exceptions

    if isinstance(error, (exceptions.RayTaskError, exceptions.GetTimeoutError, exceptions.TaskCancelledError)):
        return False
    return isinstance(error, (exceptions.RayError, ConnectionError, OSError)) or "ray.init" in str(error)


def ray_call(
    fn: Callable[..., T],
    *args: Any,
    timeout: float = 60,
    retryable: bool = False,
    label_selector: Mapping[str, str] | None = None,
    **options: Any,
) -> T:
    """Run a short function on Ray and return what it returns; what it raises is raised here.

    `options` are Ray's (num_cpus, memory, ...). A call that had not been handed to Ray when the connection turned out
    to be dead is made again. One that had been is made again only if it is `retryable`; else RayCallUncertainError says
    so. The same holds within Ray: only a retryable function is run again when its worker dies, and only such may go to
    laptops (`label_selector={"class": "laptop"}`; to a server while there is none); others run on servers.
    """
    import ray
    from ray import exceptions

    if label_selector is not None and not retryable:
        raise ValueError("label_selector is for work that may run twice: say retryable=True")
    guest = (label_selector or {}).get("class") == guests.LAPTOP
    home = guests.at_home(retries=3 if retryable else 0, **{"num_cpus": 1, **options})
    if label_selector is not None and not guest:
        home["label_selector"] = {**guests.AT_HOME, **label_selector}
    deadline = time.monotonic() + timeout
    attempt = 0
    while True:
        reference = None
        try:
            _driver.connect()
            # Ray does not repeat what a laptop took with it; this does, and looks anew for where.
            place = guests.on_laptop(**{"num_cpus": 1, **options}) if guest and guests.laptops() else home
            reference = _driver.remote(fn).options(**place).remote(*args)
            return cast(T, ray.get(reference, timeout=max(0.0, deadline - time.monotonic())))
        except exceptions.GetTimeoutError:
            ray.cancel(reference, force=True)
            raise RayCallTimeoutError(f"{fn.__qualname__} took longer than {timeout:g} s") from None
        except exceptions.RayTaskError as error:
            # As the function raised it: callers should not need to know where it ran.
            raise (error.cause if isinstance(error.cause, Exception) else error) from error
        except Exception as error:
            if not isinstance(error, RayUnavailableError) and not _lost(error):
                raise
            _driver.disconnect()
            if reference is not None and not retryable:
                raise RayCallUncertainError(f"{fn.__qualname__} may have run: {_line(error)}") from error
            attempt += 1
            log.warning("%s is called again: %s", fn.__qualname__, _line(error))
            wait = min(5.0, 0.2 * 2**attempt) * (0.5 + random.random() / 2)
            if time.monotonic() + wait > deadline:
                raise RayUnavailableError(f"{fn.__qualname__} was not run: {_line(error)}") from error
            time.sleep(wait)
        except BaseException:
            # A time limit or the end of the worker: nobody will take the answer.
            if reference is not None:
                with contextlib.suppress(Exception):
                    ray.cancel(reference, force=True)
            raise


@signals.worker_process_shutdown.connect(weak=False)
def _leave(**_: Any) -> None:
    if _driver._pid == os.getpid():
        _driver.disconnect()


# --- long work: Ray jobs ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What one visit found: the job runs (`meta` is the task's state), or it has ended well (`result`)."""

    ended: bool
    meta: dict[str, Any] = field(default_factory=dict)
    result: Any = None


def visit(client: JobsClient, wanted: Wanted, now: float) -> Seen:
    """Start the job or find it, and say how it is. Raises RayJobError when it ended badly."""
    job = client.get(wanted.id)
    restarted = 0
    if job is not None and job.died_with_its_node:
        restarted = int(job.metadata.get("restarted", "0")) + 1
        if restarted > wanted.restarts:
            raise RayJobFailedError(wanted.id, f"lost its node {restarted} times: {job.message}"[:1000])
        client.delete(wanted.id)
        job = None
    if job is None:
        client.submit(wanted.body(restarted))
        job = client.get(wanted.id) or Job("PENDING")
    lines = client.tail(wanted.id, job.node)
    if job.status == "SUCCEEDED":
        found = outcome.last(outcome.RESULT, lines)
        if found is None and outcome.RESULT not in lines:
            # Something that outlived the job's own last word may have said more than it did.
            found = outcome.last(outcome.RESULT, client.tail(wanted.id, job.node, 2_000))
        return Seen(True, result=found)
    said = outcome.without_marks(lines)[-STATE_LOG:]
    if job.status == "FAILED":
        # Ray's message repeats the log after its first line.
        raise RayJobFailedError(wanted.id, job.message.partition(", last available logs")[0][:1000] or "failed", said)
    if job.status == "STOPPED":
        raise RayJobStoppedError(wanted.id, "was stopped in Ray", said)
    if wanted.timeout is not None and job.started and now - job.started > wanted.timeout:
        client.stop(wanted.id)
        raise RayJobStoppedError(wanted.id, f"took longer than {wanted.timeout:g} s", said)
    meta = {"ray_job": wanted.id, "status": job.status, "restarted": int(job.metadata.get("restarted", restarted)),
            "progress": outcome.last(outcome.PROGRESS, lines), "log": said}  # fmt: skip
    return Seen(False, meta)


def pause(age: float) -> float:
    """Seconds until the next visit: soon for a young job, seldom for an old one."""
    return min(SLOWEST, max(FASTEST, age / 10))


def ray_job(
    entrypoint: str,
    *,
    env: Mapping[str, str] | None = None,
    num_cpus: float = 0,
    num_gpus: float = 0,
    memory: int | None = None,
    label_selector: Mapping[str, str] | None = None,
    restarts: int = 3,
    timeout: float | None = None,
    client: JobsClient | None = None,
) -> Any:
    """Run a command as a Ray job under the id of the current task, and return what it gave to outcome.result.

    Call it last in a task with the options RAY_JOB: `return ray_job(...)`. While the job runs it does not return but
    ends the visit, so what stands before it in the task runs at every visit. The job's own process runs on a server
    that is not the head (`label_selector`; {} lets it run on any): one on the head ends with the head, and Ray may go
    on calling it RUNNING. On a laptop it runs only when that is said and it may be started again. A job that Ray says
    has lost its node is started again, up to `restarts` times.
    """
    if label_selector is None:
        label_selector = OFF_HEAD
    if label_selector.get("class") == guests.LAPTOP and not restarts:
        raise ValueError("a job on a laptop may be started again: leave restarts above 0, or choose a server")
    task = current_task._get_current_object()
    if not getattr(task, "ray_job", False):
        raise BridgeError(f"{task.name} has to be declared with **RAY_JOB to end in ray_job")
    request = task.request
    wanted = Wanted(
        request.id, entrypoint, env or {}, num_cpus, num_gpus, memory, {**guests.AT_HOME, **label_selector},
        {"celery_task": task.name, "celery_task_id": request.id}, restarts, timeout,
    )  # fmt: skip
    client = client or JobsClient()
    while True:
        try:
            seen = visit(client, wanted, time.time())
        except RayUnavailableError as error:
            # The head restarts, or its host: the job may well go on, and the task waits with it.
            log.warning("%s", error)
            seen = Seen(False, {"ray_job": wanted.id, "status": "UNKNOWN", "message": str(error)[:500]})
        if seen.ended:
            return seen.result
        if request.is_eager:
            time.sleep(FASTEST)
            continue
        # Each visit doubles as the count of seconds so far, roughly: the first ten are a second apart.
        _come_back(task, seen.meta, pause(request.retries))


def _come_back(task: Any, meta: dict[str, Any], countdown: float) -> None:
    """Publish the next visit, then end this one. In this order: a death in between repeats a visit, never loses it."""
    task.update_state(state="PROGRESS", meta=meta)
    task.signature_from_request(task.request, countdown=countdown, retries=task.request.retries + 1).apply_async()
    raise Ignore


# --- a revoked task's job is stopped ----------------------------------------------------------------------------------


def stop_for_good(client: JobsClient, job: str, patience: float = 600, calm: float = 10) -> bool:
    """Stop a job until Ray says that it has ended, also when the head is away, or the job only now being started."""
    begin = time.monotonic()
    delay = 0.5
    while time.monotonic() - begin < patience:
        try:
            found = client.get(job)
            if found is not None and found.ended:
                return True
            if found is not None:
                client.stop(job)
            elif time.monotonic() - begin > calm:
                return True
        except RayUnavailableError as error:
            log.warning("job %s is not stopped yet: %s", job, error)
        except JobsApiError as error:
            log.error("job %s is not stopped: %s", job, error)
            return False
        time.sleep(delay)
        delay = min(delay * 1.5, 5)
    log.error("job %s is not stopped: gave up after %.0f s", job, patience)
    return False


@signals.task_revoked.connect(weak=False)
def _stop_the_job(sender: Any = None, request: Any = None, **_: Any) -> None:
    """In the worker's own process, whose loop must not wait: a thread does it."""
    if not getattr(sender, "ray_job", False):
        return
    job = str(request.get("id") if isinstance(request, dict) else request.id)
    _note("SADD", job)
    _stop_beside(job)


@signals.worker_ready.connect(weak=False)
def _stop_what_is_left(**_: Any) -> None:
    """Of a worker that died over it, or gave up."""
    if os.environ.get("MUSTER_RAY_JOBS_URL"):
        for job in _note("SMEMBERS") or ():
            _stop_beside(job)


def _stop_beside(job: str) -> None:
    threading.Thread(target=_stop_quietly, args=(job,), name=f"stop-{job}").start()


def _stop_quietly(job: str) -> None:
    try:
        if stop_for_good(JobsClient(), job):
            _note("SREM", job)
    except JobsApiError as error:
        log.error("job %s is not stopped: %s", job, error)


def _note(command: str, *jobs: str) -> Any:
    """Which jobs are to be stopped is known to Redis until they are."""
    try:
        with lease.connect(Settings.read()) as client:
            return client.execute_command(command, STOPPING, *jobs)
    except redis.RedisError as error:
        log.error("%s of the jobs to be stopped: %s", command, error)
