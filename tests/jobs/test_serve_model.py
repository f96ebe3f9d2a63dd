"""serve_model with a real Ray Serve: right answers, clear refusals, a rollout and a killed replica under load."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest
from pydantic import ValidationError

from ray_jobs import asked, models, serve_model, train_boosted, train_forest, train_torch
from ray_jobs.asked import RefusedError
from ray_jobs.command import JobError
from ray_jobs.serve_model import Serving

from ..conftest import ROOT

ABOUT = {"features": ["size", "city"], "labels": {"city": ["bonn", "ulm"]}}
# Several fit on the two CPUs of the tests' Ray, beside those that they replace.
SMALL = 0.1


def until(condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"after {seconds:g} s still not: {what}"
        time.sleep(0.1)
    return found


def houses(rows: int = 400) -> pandas.DataFrame:
    table = pandas.DataFrame({"size": [float(n % 97) for n in range(rows)], "old": [n % 2 == 0 for n in range(rows)],
                              "city": ["ulm" if n % 3 else "bonn" for n in range(rows)]})  # fmt: skip
    table["dear"] = [("yes" if size + (city == "bonn") * 40 > 60 else "no")
                     for size, city in zip(table["size"], table.city, strict=True)]  # fmt: skip
    return table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of every kind, as their jobs leave them; `boosted` in two versions that differ."""
    root = tmp_path_factory.mktemp("serve")
    houses().to_parquet(root / "houses.parquet", index=False)
    common: dict[str, Any] = {"data": str(root / "houses.parquet"), "target": "dear", "models": str(root / "models")}
    forest = {**common, "features": ["size", "old"], "version": "v1", "trees": 5}
    train_forest.run(train_forest.Forest(**forest), local=True)
    train_torch.run(train_torch.Torch(**common, features=["size", "old"], version="v1", epochs=2), local=True)
    for version, rounds in (("v1", 1), ("v2", 40)):
        wanted = {**common, "features": ["size", "old", "city"], "rounds": rounds, "version": version, "cpus": 1}
        train_boosted.run(train_boosted.Boosted(**wanted), local=True)
    return root / "models"


@pytest.fixture(scope="module")
def door(ray_here: None) -> Iterator[int]:
    """The port at which Serve is asked."""
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUSTER_SERVE_PORT", str(port))
        yield port
        serve.shutdown()


def run(folder: Path, model: str, **more: Any) -> serve_model.Served:
    return serve_model.run(Serving(models=str(folder), model=model, cpus=SMALL, **more))


def ask(port: int, path: str, body: Any = None, method: str = "") -> tuple[int, Any, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    sent = body if isinstance(body, str | bytes | None) else json.dumps(body)
    connection.request(method or ("GET" if body is None else "POST"), path, sent)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    try:
        return answer.status, json.loads(text), dict(answer.getheaders())
    except ValueError:
        return answer.status, text, dict(answer.getheaders())


@pytest.mark.parametrize("kind", ["boosted", "forest", "torch"])
def test_it_says_what_the_model_says(door: int, folder: Path, kind: str) -> None:
    made = run(folder, kind)
    version = (folder / kind / "latest").resolve()
    (one,) = [one for one in made.served if one.model == kind]
    assert (one.version, one.replicas, one.state) == (version.name, 1, "running")
    about, answers = models.load(version)
    table = houses(50)[about["features"]]
    # A missing value is one, whatever the kind.
    table.loc[3, "size"] = None
    rows = json.loads(table.to_json(orient="records"))
    status, said, _ = ask(door, f"/serve/{kind}/predict", {"rows": rows})
    assert status == 200, said
    assert said == {"model": kind, "version": version.name, "predictions": list(answers(table))}
    assert len(set(said["predictions"])) == 2
    status, about_it, _ = ask(door, f"/serve/{kind}/about")
    assert (about_it["kind"], about_it["metrics"]) == (kind, about["metrics"])
    assert list(about_it["features"]) == about["features"] and about_it["features"]["size"] == "number"
    status, health, _ = ask(door, f"/serve/{kind}/health")
    assert (status, health["status"], health["version"]) == (200, "ok", version.name)
    if kind != "boosted":
        assert kind not in [one.model for one in run(folder, kind, stop=True).served]
        assert ask(door, f"/serve/{kind}/health")[0] == 404


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        ("{oops", 422, "the body is not JSON: send"),
        ("[" * 100_000, 422, "the body is not JSON: send"),
        ("", 422, "the body is not JSON: send"),
        ("null", 422, "the body has no rows"),
        ('{"rows": []}', 422, "the body has no rows"),
        ('{"rows": [{}], "more": 1}', 422, "the body has no rows, or something else beside them"),
        ('{"rows": [3]}', 422, "row 0 is no object"),
        ('{"rows": [{"size": 1, "city": "ulm"}, {"city": "ulm"}]}', 422, r"row 1: no column size \(null says"),
        ('{"rows": [{"size": 1, "city": "ulm", "hue": 1}]}', 422, "row 0: the model knows no column hue"),
        ('{"rows": [{"size": "1", "city": "ulm"}]}', 422, "row 0, column size: a number is wanted"),
        ('{"rows": [{"size": [1], "city": "ulm"}]}', 422, "row 0, column size: a number is wanted"),
        ('{"rows": [{"size": 1, "city": 7}]}', 422, "row 0, column city: text is wanted"),
        ('{"rows": [{"size": NaN, "city": "ulm"}]}', 422, "row 0, column size: a finite number is wanted"),
        ('{"rows": [{"size": 1%s, "city": "ulm"}]}' % ("0" * 400), 422, "row 0, column size: a finite number"),
        (json.dumps({"rows": [{}] * 1001}), 413, "1001 rows, 1000 at most in one request"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_one_line_that_names_row_and_column(body: str, status: int, line: str) -> None:
    with pytest.raises(RefusedError, match=f"^{line}") as caught:
        asked.rows(body.encode(), ABOUT)
    assert caught.value.status == status and "\n" not in str(caught.value)


def test_rows_become_what_the_model_was_trained_with() -> None:
    sent = [{"city": None, "size": 1}, {"size": True, "city": "ulm"}, {"size": None, "city": "nowhere"}]
    one, two, three = asked.rows(json.dumps({"rows": sent}).encode(), ABOUT)
    assert list(one.items()) == [("size", 1.0), ("city", None)] and two == {"size": 1.0, "city": "ulm"}
    assert three["size"] != three["size"] and three["city"] == "nowhere"


def test_refusals_over_http_count_and_the_model_goes_on(door: int, folder: Path) -> None:
    good = {"rows": [{"size": 1, "old": False, "city": "ulm"}]}
    status, said, _ = ask(door, "/serve/boosted/predict", {"rows": [{"size": 1, "old": False}]})
    assert status == 422 and said["error"].startswith("row 0: no column city") and said["version"] == "v2"
    status, said, _ = ask(door, "/serve/boosted/predict", " " * (asked.MOST_BYTES + 1))
    assert status == 413 and "8 MiB" in said["error"]
    assert ask(door, "/serve/boosted/predict", good)[0] == 200
    assert ask(door, "/serve/boosted/predict", method="GET")[0] == 405
    assert ask(door, "/serve/nobody/predict", good)[0] == 404


def test_the_door_is_open_to_this_host_only(door: int) -> None:
    with socket.socket() as other, pytest.raises(OSError):
        # What listens on all addresses has this one, too.
        other.connect(("127.0.0.2", door))


class Hammer:
    """Clients that ask without a pause; what came back, by status and version."""

    def __init__(self, port: int, clients: int = 4) -> None:
        self.port, self.over = port, threading.Event()
        self.seen: Counter[tuple[int, str]] = Counter()
        self.order: list[str] = []
        self.threads = [threading.Thread(target=self.one) for _ in range(clients)]

    def one(self) -> None:
        row = {"rows": [{"size": 50, "old": False, "city": "ulm"}]}
        while not self.over.is_set():
            status, said, _ = ask(self.port, "/serve/boosted/predict", row)
            version = said["version"] if status == 200 else str(said)
            assert status != 200 or len(said["predictions"]) == 1
            self.seen[status, version] += 1
            self.order.append(version)

    def __enter__(self) -> Hammer:
        for thread in self.threads:
            thread.start()
        until(lambda: self.order, "the first answer")
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()


def test_a_new_version_takes_over_without_a_failed_request(door: int, folder: Path) -> None:
    assert run(folder, "boosted", version="v1", replicas=2).served[0].version == "v1"
    with Hammer(door) as clients:
        served = run(folder, "boosted", replicas=2).served
        until(lambda: clients.order[-20:] == ["v2"] * 20, "all answers are of the new version")
    assert [(one.model, one.version, one.replicas) for one in served] == [("boosted", "v2", 2)]
    assert {status for status, _ in clients.seen} == {200}, clients.seen
    assert clients.seen[200, "v1"] > 0 and clients.seen[200, "v2"] >= 20


def replicas() -> set[int]:
    """The processes of the replicas, as they say themselves."""
    import ray

    named = [one for one in ray.util.list_named_actors(all_namespaces=True) if "REPLICA::model-boosted" in one["name"]]
    with contextlib.suppress(ray.exceptions.RayError, ValueError):
        actors = [ray.get_actor(one["name"], one["namespace"]) for one in named]
        return set(ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in actors], timeout=10))
    return set()


def test_a_killed_replica_fails_what_it_was_answering_and_nothing_else(door: int, folder: Path) -> None:
    run(folder, "boosted", replicas=2)
    killed = min(until(lambda: len(found := replicas()) == 2 and found, "two replicas"))
    clients = 4
    with Hammer(door, clients) as hammer:
        before = len(hammer.order)
        until(lambda: len(hammer.order) > before + 20, "answers")
        os.kill(killed, signal.SIGKILL)
        until(lambda: len(found := replicas()) == 2 and killed not in found, "another replica")
        before = len(hammer.order)
        until(lambda: len(hammer.order) > before + 20, "answers")
    failed = {(status, text): count for (status, text), count in hammer.seen.items() if status != 200}
    assert {status for status, _ in failed} <= {500, 503}, failed
    # Each client has one request at a time, so that at most so many were on their way to it.
    assert sum(failed.values()) <= clients, failed
    assert sum(hammer.seen.values()) > 40


def mistake(line: str, **parameters: Any) -> Any:
    return pytest.param(line, parameters, id=line)


@pytest.mark.parametrize(
    ("line", "parameters"),
    [
        mistake("model: no nobody in .*; there are boosted, forest, torch$", model="nobody"),
        mistake("version: no v9 of forest; there are latest, v1$", model="forest", version="v9"),
        mistake("model: .* holds no model.json", model="empty", version="v1"),
        mistake("model: .*/model.json names no features", model="odd", version="v1"),
        mistake("model: .* cannot be used: ", model="broken", version="v1"),
        mistake("cpus: 64 are wanted of one server, the largest has 2", model="forest", cpus=64),
        mistake("model: forest is not served", model="forest", stop=True),
        mistake("models: there is no shared storage", model="forest", models=""),
    ],
)
def test_a_mistake_is_one_line_and_nothing_changes(
    door: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, parameters: dict[str, Any]
) -> None:
    monkeypatch.delenv("MUSTER_DATA", raising=False)
    monkeypatch.setattr(serve_model, "deploy", lambda *_: pytest.fail("it has begun"))
    root = folder
    if parameters["model"] in ("empty", "odd", "broken"):
        root = tmp_path
        made = root / parameters["model"] / "v1"
        made.mkdir(parents=True)
        if made.parent.name != "empty":
            said = {"kind": "boosted"} if made.parent.name == "odd" else {"kind": "boosted", "features": ["a"]}
            (made / "model.json").write_text(json.dumps(said))
            (made / "model.ubj").write_text("no model")
    with pytest.raises(JobError, match=line) as caught:
        serve_model.run(Serving(**{"models": str(root), "cpus": SMALL, **parameters}))
    assert "\n" not in str(caught.value)


def test_parameters_that_cannot_be() -> None:
    for wrong in ({"model": "../up"}, {"model": "a", "replicas": 3, "most": 2}, {"stop": True}, {"cpus": 0}):
        with pytest.raises(ValidationError):
            Serving.model_validate(wrong)
    with pytest.raises(JobError, match="on a cluster only"):
        serve_model.run(Serving(), local=True)


def test_without_a_model_it_says_what_is_served(door: int, folder: Path) -> None:
    run(folder, "boosted", version="v1")
    assert serve_model.show(serve_model.run(Serving())) == "/serve/boosted  v1  1 replica  running"
    assert serve_model.show(run(folder, "boosted", stop=True)) == "no model is served"


# In a process of its own: a cluster in this one would be the one that other tests find. The head and the laptop offer
# CPUs, which as this cluster is shipped they do not: the labels alone must do.
CLUSTER = """
import json, sys, urllib.request
import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray_jobs import serve_model, serving

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "labels": {"host": "h", "node": "head"}})
try:
    cluster.add_node(num_cpus=4, labels={"host": "l", "node": "worker-1", "class": "laptop"})
    cluster.add_node(num_cpus=1, labels={"host": "a", "node": "worker-1", "class": "server"})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    serve_model.run(serve_model.Serving(model="forest", models=sys.argv[1], cpus=0.2, replicas=3))
    seen = set()
    for _ in range(40):
        with urllib.request.urlopen(f"http://127.0.0.1:{serving.port()}/serve/forest/health", timeout=60) as answer:
            said = json.load(answer)
        seen.add((said["node"], said["replica"]))
    print("answer " + json.dumps(sorted(seen)))
finally:
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()
"""


@pytest.mark.skipif("SOAK" not in os.environ, reason="a cluster of its own takes a minute")
def test_replicas_are_on_servers_only(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        environment = {**os.environ, "MUSTER_SERVE_PORT": str(free.getsockname()[1])}
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER, str(folder)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    answers = [line.removeprefix("answer ") for line in done.stdout.splitlines() if line.startswith("answer ")]
    assert answers, done.stdout + done.stderr
    seen = json.loads(answers[0])
    assert {node for node, _ in seen} == {"a/worker-1"} and len(seen) == 3, seen
