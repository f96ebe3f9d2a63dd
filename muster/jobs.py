"""`muster jobs|run|runs|logs|stop|result`: the library's jobs from the command line, through the gateway."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from muster.celery_schedule import schedule_mistakes
from muster.errors import MusterError, UnansweredError
from muster.screen import screen
from muster.tables import Screen, plain
from ray_jobs import afar, jobs_api, library, outcome, runs
from ray_jobs.command import Job, JobError, Parameters, parse
from ray_jobs.jobs_api import JobsApiError, JobsClient, RayUnavailableError, Wanted

# How many lines of a log are looked at from one look to the next.
WINDOW = 2_000
SLOWEST = 3.0
# Seconds for which a head that does not answer is asked again to take a job.
PATIENCE = 30.0
# How often the log of a job that has ended is looked for.
LOOKS = 5


def job_named(name: str) -> Job:
    try:
        return library.get(name)
    except KeyError:
        raise MusterError(
            f"there is no job {name!r}", fix=f"choose one of {', '.join(library.NAMES)}; see `muster jobs`"
        ) from None


def client(inventory: Sequence[str]) -> JobsClient:
    """The cluster's Jobs API: as Ray's own variables say (docs/connect.md), or else the inventory's gateway."""
    if url := os.environ.get("RAY_API_SERVER_ADDRESS"):
        return JobsClient(url)
    known = screen("jobs.yml", inventory, {})
    if not known:
        raise MusterError(
            "this inventory has no gateway", fix="put a host into the group gateway, or set RAY_API_SERVER_ADDRESS"
        )
    bearer = os.environ.get("RAY_AUTH_TOKEN") or token_in(Path(known["secrets"]))
    if not Path(known["ca"]).is_file():
        raise MusterError(f"{known['ca']} is not there", fix="run site.yml first, from this machine")
    return JobsClient(known["url"], bearer, known["ca"])


def token_in(secrets: Path) -> str:
    """The personal token that lies with the inventory's secrets."""
    found = {
        path.name.removeprefix("gateway_").removesuffix("_token"): path for path in secrets.glob("gateway_*_token")
    }
    name = "admin" if "admin" in found else next(iter(found), "") if len(found) == 1 else ""
    if not name:
        problem = f"{len(found)} people have a token in {secrets}" if found else f"{secrets} holds no gateway token"
        raise MusterError(
            problem, fix="say whose: RAY_AUTH_TOKEN=$(cat .../gateway_NAME_token)" if found else "run site.yml"
        )
    return found[name].read_text().strip()


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """What goes wrong on the way to the cluster, as this command's own errors."""
    try:
        yield
    except JobsApiError as error:
        raise MusterError(str(error), fix="see docs/connect.md") from None
    except RayUnavailableError as error:
        raise UnansweredError(str(error), fix="look at `muster status`, then try again") from None


def jobs(_: Sequence[str], options: argparse.Namespace) -> int:
    """Every job with its line, or one with its parameters."""
    if options.name:
        job = job_named(options.name)
        if options.json:
            print(json.dumps(job.model.model_json_schema(), indent=2))
            return 0
        rows = [("parameter", "default", "meaning"), *job.parameters()]
        print(plain([job.line, rows, f"docs/jobs.md has more. Run it: muster run {job.name} -p NAME=VALUE"]))
        return 0
    listed = [(name, library.get(name)) for name in library.NAMES]
    if options.json:
        print(json.dumps({name: job.line for name, job in listed}, indent=2))
    else:
        print(plain([[("job", "what it does"), *((name, job.line) for name, job in listed)]]))
    return 0


def checked(options: argparse.Namespace) -> tuple[Job, Parameters]:
    """The job and its parameters, before anything is sent."""
    job = job_named(options.name)
    try:
        return job, parse(job.model, options.params, options.pairs)
    except JobError as error:
        raise MusterError(f"{job.name}: {error}", fix=f"see `muster jobs {job.name}`") from None


def new_id(job: Job) -> str:
    """What a run is called; its first word is the job."""
    return f"{job.name}-{runs.stamp(time.time())}-{uuid.uuid4().hex[:6]}"


def run(inventory: Sequence[str], options: argparse.Namespace) -> int:
    """Run a job here, on the cluster, or by way of Celery."""
    job, parameters = checked(options)
    values = parameters.model_dump(mode="json", exclude_defaults=True)
    if options.local:
        return here(job, parameters, options.json)
    if options.schedule:
        return scheduled(job, values, options.schedule)
    if options.queue:
        print(screen("enqueue.yml", inventory, {"enqueue_words": [job.name, json.dumps(values)]}))
        return 0
    wanted = Wanted(
        new_id(job),
        job.entrypoint(parameters),
        label_selector=afar.SERVER,
        metadata={"muster_job": job.name},
    )
    with asking():
        ray = client(inventory)
        submit(ray, wanted)
        print(f"{wanted.id} is submitted", file=sys.stderr)
        if options.detach:
            print(wanted.id)
            return 0
        return follow(ray, wanted.id, options.json)


def submit(ray: JobsClient, wanted: Wanted) -> None:
    """Send it, also to a head that is just coming back: it is the same job, however often it is sent."""
    end, said = time.monotonic() + PATIENCE, False
    while True:
        try:
            return ray.submit(wanted.body())
        except RayUnavailableError as error:
            if time.monotonic() > end:
                raise
            if not said:
                print(f"waiting: {error}", file=sys.stderr)
            said = True
            time.sleep(1)


def scheduled(job: Job, values: dict[str, Any], crontab: str) -> int:
    """What the inventory needs for a run of it now and again."""
    entry = {"name": job.name, "task": "celery_app.tasks.ml.run", "crontab": crontab, "queue": "ml"}
    for problem, fix in schedule_mistakes([entry]):
        raise MusterError(problem, fix=fix)
    print("Add to celery_schedule in the inventory, then run site.yml --tags celery_beat:")
    print(f"  - {json.dumps({**entry, 'args': [job.name, values]})}")
    return 0


def here(job: Job, parameters: Parameters, as_json: bool) -> int:
    """In this process, without a cluster."""
    try:
        answer = job.perform(parameters, local=True)
    except JobError as error:
        raise MusterError(f"{job.name}: {error}", fix=f"see `muster jobs {job.name}`") from None
    print(json.dumps(answer.model_dump(mode="json")) if as_json else job.text(answer))
    return 0


def fresh(before: Sequence[str], now: Sequence[str]) -> Sequence[str]:
    """What a window at the end of a log shows that the window before did not."""
    for overlap in range(min(len(before), len(now)), 0, -1):
        if list(before[-overlap:]) == list(now[:overlap]):
            return now[overlap:]
    return now


def follow(ray: JobsClient, job: str, as_json: bool) -> int:
    """Show what a job says until it has ended; Ctrl-C leaves it alone or stops it."""
    try:
        with Bar() as bar:
            before: list[str] = []
            pause, lost, silent = 0.3, 0.0, 0
            while True:
                try:
                    found = ray.get(job)
                    if found is None:
                        # A head that has just come back, or somebody deleted it.
                        raise RayUnavailableError(f"Ray does not know {job} any more")
                    lines = ray.tail(job, found.node, WINDOW).splitlines()
                    lost = 0.0
                except RayUnavailableError as error:
                    # The head restarts: the job goes on.
                    lost += pause
                    if lost > 120:
                        raise
                    bar.say(f"waiting: {error}")
                    time.sleep(pause)
                    continue
                for line in fresh(before, lines):
                    bar.line(line)
                # The log is kept by a part of Ray that may be away when the rest answers.
                before, silent = lines or before, 0 if lines else silent + 1
                if found.ended and (lines or silent > LOOKS):
                    break
                pause = min(SLOWEST, pause * 1.1)
                time.sleep(pause)
    except KeyboardInterrupt:
        return interrupted(ray, job)
    return ended(job, found, "\n".join(lines), as_json)


def interrupted(ray: JobsClient, job: str) -> int:
    """Ask what is meant; nobody to ask: the job goes on."""
    answer = ""
    if sys.stdin.isatty():
        with contextlib.suppress(KeyboardInterrupt, EOFError):
            answer = input(f"\nStop {job}? [y/N] ")
    if answer.strip().lower() in ("y", "yes"):
        ray.stop(job)
        print(f"{job} is being stopped", file=sys.stderr)
    else:
        print(f"{job} goes on. Follow it: muster logs {job}", file=sys.stderr)
    return 130


def ended(job: str, found: jobs_api.Job, log: str, as_json: bool) -> int:
    """What came out, or what went wrong."""
    if found.status != "SUCCEEDED":
        message = found.message.partition(", last available logs")[0].strip()
        print(f"muster: {job} {found.status.lower()}: {message or 'see its log above'}", file=sys.stderr)
        return 1
    answer = outcome.last(outcome.RESULT, log)
    if as_json or not isinstance(answer, dict):
        print(json.dumps(answer))
        return 0
    name = job.split("-")[0]
    if name in library.NAMES:
        wanted = library.get(name)
        print(wanted.text(wanted.answer.model_validate(answer)))
    else:
        print(json.dumps(answer, indent=2))
    return 0


class Bar:
    """A job's lines and its progress: a bar at a terminal, a line for each step elsewhere."""

    def __init__(self) -> None:
        self.progress: Any = None
        self.task: Any = None
        self.said = ""
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self.progress = Progress(console=Console(stderr=True))

    def __enter__(self) -> Bar:
        if self.progress:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress:
            self.progress.stop()

    def say(self, text: str) -> None:
        """Something about the job, once."""
        if text == self.said:
            return
        self.said = text
        if self.progress:
            self.progress.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def line(self, text: str) -> None:
        """A line of the job's log."""
        if text.startswith(outcome.RESULT) or not text.strip():
            return
        if not text.startswith(outcome.PROGRESS):
            self.said = ""
            self.say(text)
        elif step := outcome.last(outcome.PROGRESS, text):
            if not self.progress:
                self.say(f"{step['done']:g} of {step['total']:g} {step['note']}".rstrip())
            elif self.task is None:
                self.task = self.progress.add_task(step["note"], total=step["total"], completed=step["done"])
            else:
                self.progress.update(self.task, description=step["note"], total=step["total"], completed=step["done"])


def one(inventory: Sequence[str], options: argparse.Namespace) -> int:
    """`logs`, `stop` and `result` of a job that was submitted."""
    with asking():
        ray = client(inventory)
        found = ray.get(options.id)
        if found is None:
            raise MusterError(f"Ray knows no job {options.id!r}", fix="look for it with `muster runs`")
        if options.command == "stop":
            if not found.ended:
                ray.stop(options.id)
            print(f"{options.id} {found.status.lower() if found.ended else 'is being stopped'}")
            return 0
        if options.command == "logs" and not found.ended and not options.no_follow:
            return follow(ray, options.id, as_json=False)
        log = ray.tail(options.id, found.node, WINDOW)
        if options.command == "logs":
            print(outcome.without_marks(log))
            return 0
        if not found.ended:
            raise UnansweredError(f"{options.id} is {found.status.lower()}", fix=f"wait: muster logs {options.id}")
        return ended(options.id, found, log, options.json)


def listed(inventory: Sequence[str], options: argparse.Namespace) -> int:
    """`runs`: what Ray knows of jobs, the newest first."""
    with asking():
        found = sorted(client(inventory).all(), key=lambda job: job.get("start_time") or 0, reverse=True)
    told = [
        {
            "id": job.get("submission_id") or job.get("job_id"),
            "state": str(job.get("status", "")).lower(),
            "started": runs.stamp((job.get("start_time") or 0) / 1000),
            "seconds": round(((job.get("end_time") or time.time() * 1000) - (job.get("start_time") or 0)) / 1000),
            "entrypoint": job.get("entrypoint", ""),
        }
        for job in found
        if job.get("submission_id")
    ]  # fmt: skip
    if options.json:
        print(json.dumps(told, indent=2))
        return 0
    rows = [(str(job["id"]), str(job["state"]), str(job["started"]), f"{job['seconds']} s") for job in told]
    shown: Screen = [[("run", "state", "started", "took"), *rows]] if rows else ["Nothing has been run yet."]
    print(plain(shown))
    return 0


COMMANDS = {"jobs": jobs, "run": run, "runs": listed, **dict.fromkeys(("logs", "stop", "result"), one)}
