"""benchmark: what is measured, where, and with what it is compared."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_jobs import benchmark, machine, runs
from ray_jobs.benchmark import Benchmark, Measured, Server
from ray_jobs.command import JobError

from ..conftest import ROOT

SMALL: dict[str, Any] = {"rounds": 2, "size_mb": 2, "tasks": 10}
WORDS = ["-p", "rounds=1", "-p", "size_mb=2", "-p", "tasks=10"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less to do than the real figures need."""
    monkeypatch.setattr(machine, "PYTHON_STEPS", 1000)
    monkeypatch.setattr(machine, "NUMPY_VALUES", 1000)


def test_without_a_cluster_cpu_and_disk_are_measured(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", os.fspath(tmp_path))
    sizes = []
    full = os.fsync

    def seen(file: int) -> None:
        sizes.append(os.fstat(file).st_size)
        full(file)

    monkeypatch.setattr(os, "fsync", seen)
    measured = benchmark.run(Benchmark(**SMALL), local=True)
    ((name, speed),) = measured.nodes.items()
    assert name.endswith("/local")
    assert min(speed.python, speed.numpy, speed.write_mb_s, speed.read_mb_s) > 0
    assert measured.tasks_per_second is measured.put_gb_s is measured.broadcast_gb_s is None
    assert sizes == [2_000_000, 2_000_000]
    assert not list(tmp_path.iterdir())


def test_all_that_was_written_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    said = []

    class File(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            said.append(super().read(size))
            return said[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda buffering: File(os.memfd_create("file"), "r+b"))
    machine.disk(3)
    assert sum(map(len, said)) == 3_000_000


def test_the_median_of_the_rounds_is_kept(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter([(10.0, 1.0), (50.0, 2.0), (20.0, 9.0)])
    monkeypatch.setattr(machine, "disk", lambda size_mb: next(speeds))
    speed = machine.probe(3, 1)
    assert (speed.write_mb_s, speed.read_mb_s) == (20, 2)


def test_twice_the_work_is_the_same_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that says two seconds for whatever is done.
    monkeypatch.setattr(machine, "clocked", lambda work: [2.0, work()][0])
    speed = machine.probe(1, 3)
    assert speed.model_dump() == {"python": 0.5, "numpy": 0.5, "write_mb_s": 1.5, "read_mb_s": 1.5}


def kept(root: Path, parameters: Benchmark, state: str = "succeeded", **figures: Any) -> Path:
    """A run as it would have been written down."""
    metrics = Measured(**{"nodes": {}, "seconds": 1, **figures}).model_dump(mode="json")
    run = runs.begin("benchmark", parameters.model_dump(mode="json"), "code", root / "results")
    assert run
    run.ended(state, metrics=metrics)
    return run.folder


def test_figures_are_compared_with_the_newest_run_that_measured_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = Measured(nodes={"a/b": {"python": 3, "numpy": 1, "write_mb_s": 1, "read_mb_s": 1}}, put_gb_s=3, seconds=1)  # type: ignore[dict-item]
    monkeypatch.delenv("MUSTER_DATA", raising=False)
    assert benchmark.compared(now, Benchmark()) == now
    monkeypatch.setenv("MUSTER_DATA", str(tmp_path))
    assert benchmark.compared(now, Benchmark()) == now
    kept(tmp_path, Benchmark(), put_gb_s=1)
    wanted = kept(
        tmp_path, Benchmark(rounds=7), put_gb_s=2, get_gb_s=9,
        nodes={"a/b": {"python": 4, "numpy": 1, "write_mb_s": 1, "read_mb_s": 1}},
    )  # fmt: skip
    kept(tmp_path, Benchmark(), put_gb_s=5, state="failed")
    kept(tmp_path, Benchmark(size_mb=9), put_gb_s=5)
    kept(tmp_path, Benchmark(tasks=9), put_gb_s=5)
    kept(tmp_path, Benchmark(), get_gb_s=5)
    strange = kept(tmp_path, Benchmark()) / "run.json"
    strange.write_text(json.dumps({**json.loads(strange.read_text()), "metrics": {"of": "another version"}}))
    found = benchmark.compared(now, Benchmark())
    assert found.compared_with == str(wanted)
    assert found.ratios == {
        "put_gb_s": 1.5, "a/b python": 0.75, "a/b numpy": 1, "a/b write_mb_s": 1, "a/b read_mb_s": 1,
    }  # fmt: skip
    shown = benchmark.show(found).splitlines()
    assert shown[0].split() == ["node", "python", "numpy", "write_mb_s", "read_mb_s"]
    assert shown[1].split() == ["a/b", "3", "(75%)", "1", "(100%)", "1", "(100%)", "1", "(100%)"]
    assert shown[3:] == ["put_gb_s          3 (150%)", f"in brackets: of what it was in {wanted}"]


def test_a_run_is_compared_with_the_one_before_and_not_with_itself(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MUSTER_DATA", str(tmp_path))
    said = []
    for identity in ("first", "second", "second"):
        # The third is the second, begun again after it had been written down.
        monkeypatch.setenv("MUSTER_RAY_JOB", identity)
        assert benchmark.JOB.main(["--local", *WORDS]) == 0
        capsys.readouterr()
        (path,) = tmp_path.glob(f"results/benchmark/*-{identity}/run.json")
        said.append((os.fspath(path.parent), json.loads(path.read_text())["metrics"]))
    (first, none), (_, once), (_, again) = said
    assert none["compared_with"] is None and none["ratios"] == {}
    assert once["compared_with"] == again["compared_with"] == first
    name, speed = next(iter(once["nodes"].items()))
    assert once["ratios"][f"{name} python"] == round(speed["python"] / none["nodes"][name]["python"], 3)


def test_laptops_and_what_is_gone_or_has_no_cpus_are_not_measured() -> None:
    def node(name: str, alive: bool = True, cpus: float = 2, kind: str = "server") -> dict[str, Any]:
        labels = {"host": name.split("/")[0], "node": name.split("/")[1], "class": kind}
        return {"NodeID": name * 9, "Alive": alive, "Labels": labels,
                "Resources": {"CPU": cpus, "object_store_memory": 5.0}}  # fmt: skip

    bare = {"NodeID": "f" * 56, "Alive": True, "Resources": {"CPU": 1.0}}
    others = [node("a/gone", alive=False), node("head/head", cpus=0), node("anna/1", kind="laptop")]
    listing = [node("b/1"), node("a/2"), *others, node("a/1"), bare]
    found = benchmark.servers(listing)
    assert [server.name for server in found] == ["a/1", "a/2", "b/1", "f" * 12]
    assert found[0] == Server("a/1" * 9, "a", "a/1", 2, 5)
    # Nodes of one host never at the same time.
    assert [[server.name for server in turn] for turn in benchmark.turns(found)] == [["a/1", "b/1", "f" * 12], ["a/2"]]


def test_a_full_disk_is_one_line(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3_999_999))
    assert benchmark.JOB.main(["--local", *WORDS]) == 1
    error = capsys.readouterr().err
    assert error.startswith("size_mb: no room for 2 MB") and error.count("\n") == 1


@pytest.mark.parametrize("pair", ["rounds=0", "rounds=21", "size_mb=1025", "tasks=0", "tasks=1e9", "seconds=0", "x=1"])
def test_a_wrong_parameter_is_one_line_and_status_2(pair: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.JOB.main(["--local", "-p", pair]) == 2
    error = capsys.readouterr().err
    assert error.startswith(pair.split("=")[0]) and error.count("\n") == 1


def test_a_cluster_of_one_node_has_all_figures_but_the_broadcast(ray_here: None) -> None:
    measured = benchmark.run(Benchmark(**SMALL))
    assert len(measured.nodes) == 1
    assert measured.tasks_per_second and measured.put_gb_s and measured.get_gb_s
    assert measured.broadcast_gb_s is None
    assert "tasks_per_second" in benchmark.show(measured)


def test_an_object_that_is_too_large_is_refused_before_anything_runs(
    ray_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "on", None)
    with pytest.raises(JobError, match="take 131 at most"):
        benchmark.run(Benchmark(size_mb=132))


def test_a_node_that_is_busy_is_named(ray_here: None) -> None:
    import ray

    class Busy:
        def there(self) -> None:
            pass

    busy = ray.remote(Busy).options(num_cpus=2).remote()
    ray.get(busy.there.remote())
    with pytest.raises(JobError, match=r"^[0-9a-f]{12}: no answer within 0.5 s; wait"):
        benchmark.run(Benchmark(**{**SMALL, "seconds": 0.5}))
    with pytest.raises(JobError, match=r"10 tasks took more than 0\.5 s"):
        benchmark.tasks_per_second(Benchmark(**{**SMALL, "seconds": 0.5}))
    ray.kill(busy)


def test_what_a_node_cannot_do_is_one_line(ray_here: None) -> None:
    import ray

    (server,) = benchmark.servers(ray.nodes())

    def fails() -> None:
        raise JobError("size_mb: no room")

    def dies() -> None:
        os._exit(1)

    for function, said in ((fails, "a/b: size_mb: no room"), (dies, "a/b: ")):
        with pytest.raises(JobError, match=f"^{said}.*$") as error:
            benchmark.answers({"a/b": benchmark.on(server, ray.remote(function), num_cpus=0)}, 60)
        assert "\n" not in str(error.value)


# In a process of its own: a cluster in this one would be the one that other tests find.
CLUSTER = """
import json, sys
import ray
from ray.cluster_utils import Cluster
from ray_jobs import benchmark

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "labels": {"host": "h", "node": "head"}})
try:
    for host, node, kind in (("a", "1", "server"), ("a", "2", "server"), ("l", "1", "laptop")):
        cluster.add_node(num_cpus=1, labels={"host": host, "node": node, "class": kind})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    asked = []
    on = benchmark.on
    def watched(server, remote, *arguments, num_cpus):
        asked.append((server.name, remote._function.__name__))
        return on(server, remote, *arguments, num_cpus=num_cpus)
    benchmark.on = watched
    measured = benchmark.run(benchmark.Benchmark(rounds=2, size_mb=4, tasks=6))
    print("answer " + json.dumps([measured.model_dump(mode="json"), asked]))
finally:
    ray.shutdown()
    cluster.shutdown()
"""


def test_an_object_goes_to_every_server_and_to_no_laptop() -> None:
    done = subprocess.run([sys.executable, "-c", CLUSTER], cwd=ROOT, capture_output=True, text=True, check=False)
    answers = [line.removeprefix("answer ") for line in done.stdout.splitlines() if line.startswith("answer ")]
    assert answers, done.stdout + done.stderr
    measured, asked = json.loads(answers[0])
    assert list(measured["nodes"]) == ["a/1", "a/2"]
    assert measured["broadcast_gb_s"] > 0
    assert sorted(map(tuple, asked)) == sorted(
        [(node, "probe") for node in ("a/1", "a/2")] + [(node, "received") for node in ("a/1", "a/2")] * 3
    )
