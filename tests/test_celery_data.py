"""The incoming folder: every file once, whoever races or dies; without pandas, by a converter of this file's own."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from celery_app.tasks import data
from ray_jobs import process as csv_process


class Died(BaseException):
    """A worker's death: nothing catches it."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def convert(source: Path, final: Path, parameters: csv_process.Process) -> csv_process.File:
        text = source.read_text()
        if "bad" in text:
            raise csv_process.BadFileError(f"{source.name} has no good row")
        final.write_text(text)
        return csv_process.File(
            source=os.fspath(source), target=os.fspath(final), rows=1, bad_rows=0, rejected=None, columns={}
        )

    monkeypatch.setattr(csv_process, "convert", convert)
    return data.root(os.fspath(tmp_path / "incoming"))


def drop(folder: Path, name: str, text: str = "a,b") -> Path:
    path = folder / "new" / name
    path.write_text(text)
    return path


def names(folder: Path, part: str) -> list[str]:
    return sorted(path.name for path in (folder / part).iterdir())


def claim_all(folder: Path, **options: float) -> list[str]:
    return [path.name for path in data.claimed(folder, time.time(), **{"settled": 0.0, **options})]


def test_a_file_becomes_parquet_and_is_put_away(folder: Path) -> None:
    drop(folder, "a.csv")
    (name,) = claim_all(folder)
    done = data.take_in(folder, name, {}, [])
    assert (done["outcome"], done["again"]) == ("parquet", False)
    assert names(folder, "parquet") == [f"a-{name.split('__')[0]}.parquet"]
    assert (names(folder, "new"), names(folder, "work"), names(folder, "done")) == ([], [], [name])
    assert data.take_in(folder, name, {}, [])["again"]


def test_files_that_are_being_written_stay(folder: Path) -> None:
    for name in ("a.csv.part", ".hidden.csv", "b.tmp"):
        drop(folder, name)
    drop(folder, "fresh.csv")
    assert claim_all(folder, settled=60) == []
    assert [name.partition("__")[2] for name in claim_all(folder)] == ["fresh.csv"]


def test_a_bad_file_is_put_aside_with_the_reason(folder: Path) -> None:
    drop(folder, "a.csv", "bad")
    (name,) = claim_all(folder)
    assert data.take_in(folder, name, {}, [])["outcome"] == "dead"
    assert names(folder, "dead") == [name, f"{name}.reason.json"]
    assert "no good row" in json.loads((folder / "dead" / f"{name}.reason.json").read_text())["reason"]
    assert names(folder, "parquet") == names(folder, "work") == []


def test_of_racing_watchers_one_gets_each_file(folder: Path) -> None:
    for number in range(60):
        drop(folder, f"{number}.csv")
    got: list[str] = []
    barrier = threading.Barrier(8)

    def watch() -> None:
        barrier.wait()
        got.extend(claim_all(folder))

    threads = [threading.Thread(target=watch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(name.partition("__")[2] for name in got) == Counter(f"{number}.csv" for number in range(60))


def test_racing_workers_make_one_parquet_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drop(folder, "a.csv")
    (name,) = claim_all(folder)
    convert, barrier = csv_process.convert, threading.Barrier(2)

    def slowly(*arguments: Any) -> Any:
        made = convert(*arguments)
        barrier.wait()
        return made

    monkeypatch.setattr(csv_process, "convert", slowly)
    results: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda: results.append(data.take_in(folder, name, {}, []))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result["again"] for result in results) == [False, True]
    assert len(names(folder, "parquet")) == 1


@pytest.mark.parametrize("step", ["convert", "publish", "settle"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_worker_may_die_at_every_step(folder: Path, monkeypatch: pytest.MonkeyPatch, step: str, when: str) -> None:
    drop(folder, "a.csv")
    (name,) = claim_all(folder)
    owner: Any = csv_process if step == "convert" else data
    real = getattr(owner, step)

    def dies(*arguments: Any) -> None:
        if when == "after":
            real(*arguments)
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, dies)
        with pytest.raises(Died):
            data.take_in(folder, name, {}, [])
    data.take_in(folder, name, {}, [])
    assert names(folder, "parquet") == [f"a-{name.split('__')[0]}.parquet"]
    assert (names(folder, "work"), names(folder, "done")) == ([], [name])


def test_what_a_dead_watcher_left_is_taken_up_again(folder: Path) -> None:
    drop(folder, "a.csv")
    (name,) = claim_all(folder)
    assert claim_all(folder, left=900) == []
    os.utime(folder / "work" / name, (time.time() - 1000,) * 2)
    assert claim_all(folder, left=900) == [name]
    assert claim_all(folder, left=900) == []


def test_a_claims_first_task_has_its_id_and_a_second_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(data.ingest, "apply_async", lambda **options: sent.append(options))
    drop(folder, "a.csv")
    (name,) = data.watch(os.fspath(folder), settled=0)
    os.utime(folder / "work" / name, (time.time() - 1000,) * 2)
    data.watch(os.fspath(folder), settled=0)
    assert [options["args"][1] for options in sent] == [name, name]
    assert sent[0]["task_id"] == name.partition("__")[0] != sent[1]["task_id"]
    data.ingest(os.fspath(folder), name)
    assert names(folder, "work") == []


def test_the_same_name_twice_is_two_files(folder: Path) -> None:
    for _ in range(2):
        drop(folder, "a.csv")
        (name,) = claim_all(folder)
        data.take_in(folder, name, {}, [])
    assert len(names(folder, "parquet")) == 2
