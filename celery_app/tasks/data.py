"""Queue `data`: CSV to typed Parquet, and the incoming folder whose every file becomes one Parquet file.

The folders, below MUSTER_DATA/incoming or where the task is told:

    new/       drop files here, best under a name that starts with a dot or ends in .part, then rename
    work/      claimed: <id>__<name>. The claim is a rename, so of two watchers one gets the file
    parquet/   <name>-<id>.parquet, and .rejected.csv beside it: rows that do not fit
    done/      what was converted
    dead/      what is no use, with <file>.reason.json

A claim lies in the file system, not in anyone's memory: `watch` sends `ingest` for every file in work/, new or left
behind, with the id of the claim as the id of the task. However often `ingest` runs, the Parquet file appears once, by a
link that fails when it is there.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

from celery import shared_task

from ray_jobs import process as csv_process
from ray_jobs.command import JobError

FOLDERS = ("new", "work", "parquet", "done", "dead")
# A file in work/ that nobody moved on for so long was sent to a task that is no more.
LEFT_BEHIND = 900.0
# A file that is still being written grows; one that did not for so many seconds is complete.
SETTLED = 5.0


def root(folder: str | None) -> Path:
    """The folder to watch, with its parts."""
    path = Path(folder) if folder else Path(os.environ.get("MUSTER_DATA", "/srv/muster")) / "incoming"
    for name in FOLDERS:
        (path / name).mkdir(parents=True, exist_ok=True)
    return path


def unfinished(path: Path, now: float, settled: float) -> bool:
    """Whether somebody may still be writing it."""
    if path.name.startswith(".") or path.suffix in (".part", ".tmp", ".filepart"):
        return True
    try:
        status = path.stat()
    except FileNotFoundError:
        return True
    return now - max(status.st_mtime, status.st_ctime) < settled


def claim(path: Path, work: Path) -> Path | None:
    """Make a new file ours. None when another watcher was faster."""
    ours = work / f"{uuid.uuid4()}__{path.name}"
    try:
        path.rename(ours)
    except FileNotFoundError:
        return None
    # From now on its times say when it was claimed, not when it was written.
    os.utime(ours)
    return ours


def claimed(folder: Path, now: float, settled: float = SETTLED, left: float = LEFT_BEHIND) -> list[Path]:
    """Claim what is new; with it, what was left behind in work/."""
    behind = []
    for path in sorted((folder / "work").iterdir()):
        try:
            age = now - path.stat().st_mtime
        except FileNotFoundError:
            continue
        if age > left and "__" in path.name:
            os.utime(path)
            behind.append(path)
    new = [path for path in sorted((folder / "new").iterdir()) if path.is_file() and not unfinished(path, now, settled)]
    return behind + [ours for path in new if (ours := claim(path, folder / "work"))]


def settle(source: Path, target: Path) -> bool:
    """Move a file on; False when somebody else has."""
    try:
        source.rename(target)
    except FileNotFoundError:
        return False
    return True


def refuse(folder: Path, source: Path, reason: str) -> dict[str, Any]:
    """Put a file that is no use aside, the reason first: a dead file without one would help nobody."""
    about = {"file": source.name, "reason": reason, "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    target = folder / "dead" / source.name
    target.with_name(f"{target.name}.reason.json").write_text(json.dumps(about))
    settle(source, target)
    return {"outcome": "dead", "reason": reason, "file": os.fspath(target)}


def publish(partial: Path, final: Path) -> bool:
    """Give a complete file its name, once; False when it has been done."""
    try:
        os.link(partial, final)
    except FileExistsError:
        return False
    finally:
        partial.unlink(missing_ok=True)
    return True


def take_in(folder: Path, name: str, columns: dict[str, csv_process.Kind], required: list[str]) -> dict[str, Any]:
    """Convert one claimed file. Safe to run again at any point, and beside another run of itself."""
    source = folder / "work" / name
    mark, _, original = name.partition("__")
    final = folder / "parquet" / f"{Path(original).stem}-{mark}.parquet"
    if not source.exists():
        if final.exists():
            return {"outcome": "parquet", "file": os.fspath(final), "again": True}
        dead = folder / "dead" / name
        if dead.exists():
            return {"outcome": "dead", "file": os.fspath(dead), "again": True}
        raise FileNotFoundError(f"{source} is gone, and nothing was made of it")
    # A place of this run's own: two runs at the same time do not see each other's halves.
    own = folder / "parquet" / f".{mark}.{uuid.uuid4().hex}.parquet"
    rejected = own.with_name(f"{own.stem}.rejected.csv")
    parameters = csv_process.Process(
        source=os.fspath(source), target=os.fspath(folder), columns=columns, required=required
    )
    try:
        try:
            made = csv_process.convert(source, own, parameters)
        except csv_process.BadFileError as error:
            return refuse(folder, source, str(error))
        except FileNotFoundError:
            # Another run finished between our look and our reading.
            return take_in(folder, name, columns, required)
        if made.bad_rows:
            publish(rejected, final.with_name(f"{final.stem}.rejected.csv"))
        fresh = publish(own, final)
    finally:
        own.unlink(missing_ok=True)
        rejected.unlink(missing_ok=True)
    settle(source, folder / "done" / name)
    return {"outcome": "parquet", "file": os.fspath(final), "rows": made.rows, "bad_rows": made.bad_rows,
            "again": not fresh}  # fmt: skip


@shared_task(name="celery_app.tasks.data.watch")
def watch(
    folder: str | None = None,
    columns: dict[str, csv_process.Kind] | None = None,
    required: list[str] | None = None,
    settled: float = SETTLED,
    left_behind: float = LEFT_BEHIND,
) -> list[str]:
    """Claim every new file and send a task for it; put it into the schedule, every few seconds."""
    path = root(folder)
    sent = []
    for ours in claimed(path, time.time(), settled, left_behind):
        mark = ours.name.partition("__")[0]
        # The first task of a claim has its id. One that is sent again gets a new one, or the app would take it for the
        # first's double; the link keeps the two apart.
        task_id = mark if not (path / "work" / f".{mark}").exists() else str(uuid.uuid4())
        (path / "work" / f".{mark}").touch()
        ingest.apply_async(args=[os.fspath(path), ours.name, columns or {}, required or []], task_id=task_id)
        sent.append(ours.name)
    return sent


@shared_task(name="celery_app.tasks.data.ingest")
def ingest(
    folder: str, name: str, columns: dict[str, csv_process.Kind] | None = None, required: list[str] | None = None
) -> dict[str, Any]:
    """Make Parquet of one claimed file, or a dead letter."""
    path = Path(folder)
    done = take_in(path, name, columns or {}, required or [])
    (path / "work" / f".{name.partition('__')[0]}").unlink(missing_ok=True)
    return done


@shared_task(name="celery_app.tasks.data.process")
def process(
    source: str,
    target: str,
    columns: dict[str, csv_process.Kind] | None = None,
    required: list[str] | None = None,
    delimiter: str = ",",
    bad_share: float = 0.5,
) -> dict[str, Any]:
    """Make typed Parquet of CSV here, within the time limit. Large sets: celery_app.tasks.ml.process."""
    parameters = csv_process.Process(
        source=source, target=target, columns=columns or {}, required=required or [], delimiter=delimiter,
        bad_share=bad_share,
    )  # fmt: skip
    try:
        return csv_process.run(parameters, local=True).model_dump(mode="json")
    except JobError as error:
        raise ValueError(str(error)) from error
