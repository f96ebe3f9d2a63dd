"""The bridge between Celery and Ray, with a real Ray, a real Redis and real workers.

Ray's head and a worker are containers of the node image, the way roles/ray_node makes them: each with its own folder of
sockets. Celery runs here for jobs (over HTTP), and in a container beside the Ray worker for calls.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from .conftest import missing

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")
SLEEPER = """python -u -c '
import sys, time
from ray_jobs import outcome
for i in range(600):
    print("line", i)
    outcome.progress(i, 600, "counting")
    time.sleep(0.5)
'"""


def docker(*arguments: str, check: bool = True) -> str:
    run = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    if check and run.returncode:
        raise AssertionError(f"docker {' '.join(arguments)}: {run.stdout}{run.stderr}")
    return run.stdout.strip()


def image(kind: str) -> str:
    """The newest image of this kind that this machine has; of nodes the small one."""
    name = f"reference=*/muster/{kind}:{'core-*' if kind == 'node' else '*'}"
    found = docker("images", "--quiet", "--filter", f"label=muster.image={kind}", "--filter", name).split()
    if not found:
        missing(f"no {kind} image here: run make up, or molecule test -s node_image")
    return found[0]


def eventually(look: Callable[[], T], seconds: float = 120, why: str = "") -> T:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if found := look():
                return found
        assert time.monotonic() < deadline, f"waited {seconds} s in vain {why}"
        time.sleep(0.1)


class Site:
    """One network, Redis, Ray's head and a worker."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.token = secrets.token_hex(32)
        (folder / "token").write_text(self.token)
        self.code = ["--volume", f"{ROOT}:/code:ro", "--env", "PYTHONPATH=/code", "--env", "PYTHONDONTWRITEBYTECODE=1"]
        self.ray = [
            "--env", "RAY_AUTH_MODE=token", "--env", "RAY_AUTH_TOKEN_PATH=/etc/muster/ray_token",
            "--volume", f"{folder}/token:/etc/muster/ray_token:ro", "--env", "RAY_TMPDIR=/var/lib/node",
            "--env", "RAY_gcs_rpc_server_reconnect_timeout_s=120",
        ]  # fmt: skip

    def run(self, part: str, kind: str, *arguments: str) -> str:
        """Start a container of the site; the first one owns the network."""
        network = [] if part == "redis" else ["--network", f"container:{self.name}-redis"]
        options, command = list(arguments[:-1]), arguments[-1]
        docker("run", "--detach", "--init", "--name", f"{self.name}-{part}", *network, "--user", "10077:10077",
               "--entrypoint", "sh", *options, image(kind), "-c", command)  # fmt: skip
        return f"{self.name}-{part}"

    def up(self) -> None:
        self.run("redis", "infra", "exec redis-server --bind 0.0.0.0 --protected-mode no --save ''")
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        self.address = docker("inspect", "--format", form, f"{self.name}-redis")
        self.redis = f"redis://{self.address}:6379/0"
        self.jobs = f"http://{self.address}:8265"
        for part in ("head", "worker"):
            (self.folder / part).mkdir()
            (self.folder / part).chmod(0o777)
        # As Docker keeps it on a host: Ray gives up a start that takes too long, as on a busy machine.
        self.run("head", "node", "--restart=always", *self.code, *self.ray,
                 "--volume", f"{self.folder}/head:/var/lib/node",
                 "--env", "RAY_gcs_storage=rocksdb", "--env", "RAY_gcs_storage_path=/var/lib/node/gcs",
                 "mkdir -p /var/lib/node/gcs;"
                 f" exec ray start --block --head --port=6399 --node-ip-address={self.address}"
                 " --dashboard-host=0.0.0.0 --num-cpus=0 --memory=500000000 --object-store-memory=100000000"
                 " --labels=host=h,class=server,node=head --temp-dir=/var/lib/node/ray")  # fmt: skip
        self.run("worker", "node", *self.code, *self.ray, "--volume", f"{self.folder}/worker:/var/lib/node",
                 f"while ! ray start --block --address={self.address}:6399 --node-ip-address={self.address}"
                 " --num-cpus=2 --memory=500000000 --object-store-memory=100000000"
                 " --labels=host=h,class=server,node=worker-1"
                 " --dashboard-agent-listen-port=52399 --temp-dir=/var/lib/node/ray --disable-usage-stats;"
                 " do sleep 1; done")  # fmt: skip
        eventually(lambda: self.alive() == 2, 300, "for two Ray nodes")

    def alive(self) -> int:
        text = self.inside("head", "from ray_jobs import nodes; print(sum(n.state=='alive' for n in nodes.listing()))")
        return int(text) if text.isdigit() else 0

    def inside(self, part: str, code: str) -> str:
        return docker("exec", "--env", f"RAY_API_SERVER_ADDRESS={self.jobs}", f"{self.name}-{part}", "python3", "-c",
                      code, check=False)  # fmt: skip

    def environment(self) -> dict[str, str]:
        return {
            "MUSTER_REDIS_URL": self.redis, "MUSTER_RAY_JOBS_URL": self.jobs, "RAY_AUTH_TOKEN": self.token,
            "MUSTER_RAY_ADDRESS": f"{self.address}:6399", "MUSTER_RAY_NODE": "h/worker-1",
        }  # fmt: skip

    def down(self) -> None:
        for part in ("celery", "laptop", "worker", "head", "redis"):
            docker("rm", "--force", "--volumes", f"{self.name}-{part}", check=False)
        # What the containers' user wrote is not ours to remove.
        docker("run", "--rm", "--user", "0", "--volume", f"{self.folder}:/folder", "--entrypoint", "sh", image("infra"),
               "-c", "rm -rf /folder/head /folder/worker /folder/laptop", check=False)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(f"bridge-{uuid.uuid4().hex[:8]}", tmp_path_factory.mktemp("site"))
    try:
        made.up()
        yield made
    finally:
        made.down()


class Worker:
    """A Celery worker of this machine, for jobs."""

    def __init__(self, site: Site, name: str, *options: str) -> None:
        self.log = site.folder / f"{name}.log"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "celery", *(options or ["--app=tests.delivery.bridge_app:app"]), "worker",
             "--concurrency=1", f"--hostname={name}@h", "--loglevel=INFO", *(["--queues=ml"] if options else [])],
            cwd=ROOT, env={**os.environ, **site.environment()}, stdout=self.log.open("w"), stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
        self.process.wait(30)


@pytest.fixture
def worker(site: Site) -> Iterator[Callable[..., Worker]]:
    started: list[Worker] = []

    def start(*options: str) -> Worker:
        started.append(Worker(site, f"w{uuid.uuid4().hex[:6]}", *options))
        return started[-1]

    yield start
    for one in started:
        one.stop()
        print(one.log.read_text()[-6000:])


@pytest.fixture
def app(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in site.environment().items():
        monkeypatch.setenv(name, value)
    from tests.delivery import bridge_app

    url = site.redis
    bridge_app.app.conf.update(broker_url=url, result_backend=url)
    yield bridge_app
    bridge_app.app.control.purge()


def jobs_of(site: Site) -> dict[str, str]:
    """Status by submission id, as Ray's own client tells it."""
    code = (
        "import json; from ray.job_submission import JobSubmissionClient as C;"
        "print(json.dumps({j.submission_id: j.status.value for j in C().list_jobs()}))"
    )
    return dict(json.loads(site.inside("head", code)))


def status(site: Site, job: str) -> str:
    from ray_jobs.jobs_api import JobsClient

    found = JobsClient(site.jobs, site.token).get(job)
    return found.status if found else ""


def test_the_result_of_a_job_is_the_tasks_under_the_same_id(site: Site, app: Any, worker: Any) -> None:
    worker()
    sent = app.job.delay("python -c 'from ray_jobs import outcome; print(1); outcome.result({\"answer\": [1, 2]})'")
    assert sent.get(timeout=300) == {"answer": [1, 2]}
    assert jobs_of(site)[sent.id] == "SUCCEEDED"


def test_a_failed_job_is_a_typed_error_with_the_end_of_its_log(site: Site, app: Any, worker: Any) -> None:
    from celery_app.ray_bridge import RayJobFailedError

    worker()
    sent = app.job.delay('python -c \'print("about to"); raise SystemExit("the disk is full")\'')
    with pytest.raises(RayJobFailedError, match="the disk is full") as caught:
        sent.get(timeout=300)
    assert caught.value.job == sent.id
    assert "about to" in caught.value.log
    assert sent.state == "FAILURE"


def test_a_running_job_shows_progress_and_takes_no_slot(site: Site, app: Any, worker: Any) -> None:
    worker()
    sent = app.job.delay(SLEEPER)
    meta = eventually(
        lambda: sent.state == "PROGRESS" and (sent.info.get("progress") or {}).get("done", 0) > 2 and sent.info
    )
    assert meta["status"] == "RUNNING"
    assert "line 1" in meta["log"]
    assert "::" not in meta["log"]
    # One process, and it is free although the job runs.
    assert [app.quick.delay(n).get(timeout=60) for n in range(10)] == list(range(1, 11))
    assert status(site, sent.id) == "RUNNING"
    sent.revoke(terminate=True)
    eventually(lambda: status(site, sent.id) == "STOPPED", 120, "for the job to stop")
    assert eventually(lambda: sent.state == "REVOKED", 60)


def give_back(app: Any) -> None:
    """What a dead worker held goes back to the queue, the way every supervisor does it (celery_app/lease.py)."""
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        held = channel.client.hkeys(channel.unacked_key)
        assert held, "the dead worker held the next visit"
        for tag in held:
            channel.qos.restore_by_tag(tag.decode())


def test_a_killed_workers_job_is_found_again_not_started_twice(site: Site, app: Any, worker: Any) -> None:
    first = worker()
    entrypoint = (
        "python -c 'import time; from ray_jobs import outcome; print(\"started\"); time.sleep(12);"
        " outcome.result(\"done\")'"
    )  # fmt: skip
    sent = app.job.delay(entrypoint)
    eventually(lambda: status(site, sent.id) == "RUNNING", 120)
    first.stop()
    give_back(app.app)
    worker()
    assert sent.get(timeout=300) == "done"
    assert sum(job == sent.id for job in jobs_of(site)) == 1


def test_a_revoked_job_is_stopped_although_its_worker_died_over_it(site: Site, app: Any, worker: Any) -> None:
    import redis

    notes: Any = redis.Redis.from_url(site.redis, decode_responses=True)
    first = worker()
    sent = app.job.delay(SLEEPER)
    eventually(lambda: status(site, sent.id) == "RUNNING", 120)
    # Without the head nothing can be stopped.
    docker("kill", f"{site.name}-head")
    sent.revoke()
    eventually(lambda: notes.smembers("muster:stopping") == {sent.id}, 120, "for the note")
    first.stop()
    docker("start", f"{site.name}-head")
    worker()
    eventually(lambda: status(site, sent.id) == "STOPPED", 120, "for the job to stop")
    eventually(lambda: not notes.exists("muster:stopping"), 120, "for the note to go")


@pytest.mark.parametrize("where", [{"num_cpus": 0.5}, {"label_selector": {"node": "!head"}}], ids=["cpus", "label"])
def test_the_head_may_be_killed_during_a_job(site: Site, app: Any, worker: Any, where: dict[str, Any]) -> None:
    worker()
    entrypoint = (
        "python -c 'import time; from ray_jobs import outcome; print(\"started\"); time.sleep(20);"
        " outcome.result(\"done\")'"
    )  # fmt: skip
    # Its own process has to be on a worker: what runs on the head goes with the head.
    sent = app.job.delay(entrypoint, where)
    eventually(lambda: status(site, sent.id) == "RUNNING", 120)
    docker("kill", f"{site.name}-head")
    eventually(lambda: (sent.info or {}).get("status") == "UNKNOWN", 120, "for the absence to show")
    docker("start", f"{site.name}-head")
    assert sent.get(timeout=300) == "done"
    assert jobs_of(site)[sent.id] == "SUCCEEDED"


def test_the_same_visit_twice_starts_one_job(site: Site, app: Any) -> None:
    """Two workers that hold the same message at the same time."""
    from celery_app.ray_bridge import visit
    from ray_jobs.jobs_api import JobsClient, Wanted

    client = JobsClient(site.jobs, site.token)
    wanted = Wanted(uuid.uuid4().hex, "python -c 'import os; print(os.getpid())'")
    for _ in range(3):
        client.submit(wanted.body(0))
    eventually(lambda: visit(client, wanted, time.time()).ended)
    job = client.get(wanted.id)
    assert job is not None
    assert sum(line.isdigit() for line in client.tail(wanted.id, job.node).splitlines()) == 1


def test_a_wrong_token_is_told_and_not_waited_for(site: Site) -> None:
    from ray_jobs.jobs_api import JobsApiError, JobsClient

    with pytest.raises(JobsApiError, match=r"40[13]"):
        JobsClient(site.jobs, "wrong" * 10).get("any")


def test_the_apps_own_task_trains_on_ray_and_a_double_of_it_is_dropped(site: Site, worker: Any) -> None:
    """celery_app itself: its claims make one chain of visits out of a message that was sent twice."""
    from celery import Celery

    process = worker("--app=celery_app")
    client = Celery("any", broker=site.redis, backend=site.redis)
    task_id = str(uuid.uuid4())
    for _ in range(2):
        sent = client.send_task("celery_app.tasks.ml.train", [{"trees": 4}], queue="ml", task_id=task_id)
    # The core image cannot train, and says what would be needed.
    error = sent.get(timeout=300, propagate=False)
    assert "RayJobFailedError" in type(error).__name__
    assert "the `ml` image" in str(error)
    assert jobs_of(site)[task_id] == "FAILED"
    assert "is a duplicate and is dropped" in eventually(lambda: process.log.read_text())
    wrong = client.send_task("celery_app.tasks.ml.train", [{"trees": "many"}], queue="ml")
    assert "trees" in str(wrong.get(timeout=120, propagate=False))
    assert wrong.id not in jobs_of(site)


@pytest.fixture
def beside(site: Site) -> Iterator[str]:
    """A Celery worker in a container beside the Ray worker: its folder, and neither its processes nor its memory."""
    environment = [
        part
        for key, value in site.environment().items()
        if key != "RAY_AUTH_TOKEN"
        for part in ("--env", f"{key}={value}")
    ]
    name = site.run("celery", "node", *site.code, *site.ray, *environment, "--read-only", "--tmpfs", "/tmp:mode=1777",
                    "--cap-drop", "ALL", "--volume", f"{site.folder}/worker:/var/lib/node", "--workdir", "/code",
                    "exec celery --app=tests.delivery.bridge_app:app worker -c 1 --loglevel=INFO")  # fmt: skip
    yield name
    print(subprocess.run(["docker", "logs", "--tail", "60", name], capture_output=True, text=True))
    docker("rm", "--force", name)


def test_calls_run_on_ray_and_raise_what_the_function_raises(site: Site, app: Any, beside: str) -> None:
    assert app.on_ray.delay("add", [2, 3], {}).get(timeout=300) == 5
    with pytest.raises(KeyError, match="no such thing"):
        app.on_ray.delay("broken", [], {}).get(timeout=120)
    begin = time.monotonic()
    with pytest.raises(Exception, match="longer than 1 s"):
        app.on_ray.delay("slow", [60], {"timeout": 1}).get(timeout=120)
    assert time.monotonic() - begin < 50


def test_calls_go_on_after_the_head_and_the_node_were_killed(site: Site, app: Any, beside: str) -> None:
    assert app.on_ray.delay("add", [2, 3], {}).get(timeout=300) == 5
    docker("kill", f"{site.name}-head")
    docker("start", f"{site.name}-head")
    assert app.on_ray.delay("add", [3, 4], {"timeout": 90}).get(timeout=300) == 7

    running = app.on_ray.delay("slow", [60], {"timeout": 100})
    eventually(lambda: "slow" in docker("exec", f"{site.name}-worker", "ps", "-e", "-o", "args", check=False), 120)
    docker("kill", f"{site.name}-worker")
    docker("start", f"{site.name}-worker")
    # Nobody said that it may run twice, and it did not.
    assert "may have run" in str(running.get(timeout=300, propagate=False))
    assert app.on_ray.delay("add", [4, 5], {"timeout": 90}).get(timeout=300) == 9
