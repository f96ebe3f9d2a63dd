"""Each job of the library as a user starts it: `muster run`, through the gateway, on servers with the ml image."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
from celery_lab import secret
from ray_lab import ROOT, Lab

from ray_jobs import library

LAB = Lab("jobs")
HERE = "/srv/muster"
MODELS = f"models={HERE}/models"
# In this order: some need what others leave.
RUNS = {
    "hello": ["tasks=20"],
    "benchmark": ["rounds=1", "size_mb=16", "tasks=50"],
    "process": [f"source={HERE}/datasets/raw", f"target={HERE}/datasets/typed", 'computed={"total": "price * number"}'],
    "train_forest": ["trees=20", MODELS],
    "train_boosted": [f"data={HERE}/datasets/typed", "target=total", "task=regression", "rounds=20", MODELS],
    "train_torch": ["epochs=3", "workers=2", MODELS],
    "tune": ["kind=boosted", "trials=3", "rounds=20", MODELS],
    "predict": [f"model={HERE}/models/boosted/latest", f"data={HERE}/datasets/typed", f"target={HERE}/results/said"],
    "serve_model": ["model=boosted", "cpus=0.1"],
    "montecarlo": ["paths=200000"],
    "rl": ["iterations=2", "batch=500", "runners=1", "episodes=5"],
    "llm_train_tiny": ["steps=20", "layers=1", "width=32", "heads=2", "vocabulary=300", "context=32"],
    "llm_serve": ["model=tiny"],
}


def muster(*words: str, typed: str = "") -> Any:
    """What a command says; several things as a list."""
    done = subprocess.run(
        [sys.executable, "-m", "muster.cli", *words, "--json", *LAB.inventory],
        cwd=ROOT, env=LAB.environment, input=typed, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()] if typed else json.loads(done.stdout)


def run(job: str, *parameters: str) -> dict[str, Any]:
    return muster("run", job, *(part for pair in parameters for part in ("-p", pair)))


@pytest.fixture(scope="module", autouse=True)
def data() -> None:
    rows = "".join(f"{number % 7 + 0.5},{number % 11},{'abc'[number % 3]}\n" for number in range(3000))
    script = "mkdir -p /srv/share/datasets/raw; cat > /srv/share/datasets/raw/a.csv; chown -R 10077 /srv/share/datasets"
    LAB.on("server1", "sh", "-c", script, stdin=f"price,number,kind\n{rows}")


def test_every_job_is_here() -> None:
    assert list(RUNS) == list(library.NAMES)


def gateway(path: str, body: object, *, token: bool) -> str:
    """What a program gets that asks the cluster's door, with a person's token or without."""
    header = ["-H", f"Authorization: Bearer {secret('gateway_admin_token')}"] if token else []
    words = ("curl", "-sS", "--cacert", "/etc/muster/pki/ca.crt", "-d", json.dumps(body), *header)
    return LAB.on("server1", *words, "-H", "Content-Type: application/json", f"https://172.30.87.10{path}")


def on_record() -> None:
    """MLflow knows of each training, what came out of it, and where its model is."""
    search = "/mlflow/api/2.0/mlflow/{}/search"
    assert "tune" not in gateway(search.format("experiments"), {"max_results": 50}, token=False)
    said = json.loads(gateway(search.format("experiments"), {"max_results": 50}, token=True))["experiments"]
    known = {one["name"]: one["experiment_id"] for one in said}
    assert set(known) >= {"train_forest", "train_boosted", "train_torch", "tune"}
    runs = json.loads(gateway(search.format("runs"), {"experiment_ids": [known["tune"]]}, token=True))["runs"]
    # The search, and below it its three trials.
    assert [one["info"]["status"] for one in runs] == ["FINISHED"] * 4, runs
    (whole,) = [one for one in runs if not any(tag["key"] == "mlflow.parentRunId" for tag in one["data"]["tags"])]
    assert {"key": "trials", "value": "3"} in whole["data"]["params"], whole["data"]


def served_by_the_gateway() -> None:
    rows = {"rows": [{"price": 2.5, "number": 4, "kind": "a"}]}
    assert "predictions" not in gateway("/serve/boosted/predict", rows, token=False)
    (said,) = json.loads(gateway("/serve/boosted/predict", rows, token=True))["predictions"]
    assert abs(said - 10) < 5
    assert run("serve_model", "model=boosted", "stop=true")["served"] == []


def by_inventory() -> str:
    """The recap of what site.yml does for llm_models."""
    models = {"llm_models": [{"name": "tiny", "path": f"{HERE}/models/llm/tiny/latest"}]}
    return subprocess.run(
        ["ansible-playbook", *LAB.inventory, "playbooks/llm.yml", "-e", json.dumps(models)],
        cwd=ROOT, env=LAB.environment, capture_output=True, text=True, check=True,
    ).stdout.partition("PLAY RECAP")[2]  # fmt: skip


def talks() -> None:
    """The model that was trained here, by the door that was opened here."""
    assert "changed=1" in by_inventory() and "changed=0" in by_inventory()
    said = muster("chat", "tiny", "--once", "The statement", "--max-tokens", "8")
    assert said["text"] and said["tokens"] == 8, said
    # Its replica is on the server that has CPUs, and never on the head.
    assert said["node"] == "server1/worker-1", said
    # What its user may ask for, each answer a line of JSON.
    status, actors, models, logs, test = muster(
        "chat", "tiny", typed="/status\n/actors\n/models\n/logs\n/test\n/quit\n"
    )
    (replica,) = [actor for actor in actors if "model-tiny" in actor["class"]]
    assert (replica["node"], replica["state"]) == ("server1/worker-1", "alive")
    assert [one["node"] for one in status["models"]["tiny"]["replicas"]] == [replica["node"]]
    assert status["nodes"]["server1/worker-1"]["CPU"] and models == ["tiny"]
    assert {one["replica"] for one in logs} == {one["replica"] for one in actors} and all(one["log"] for one in logs)
    assert [(one["model"], one["result"]) for one in test] == [("tiny", "ok")]
    assert run("llm_serve", "stop=true")["route"] is None


# What is there once the job is through.
USED = {"tune": on_record, "serve_model": served_by_the_gateway, "llm_serve": talks}


@pytest.mark.parametrize("job", RUNS)
def test_a_job_runs(job: str) -> None:
    said = run(job, *RUNS[job])
    newest = LAB.on("head", "sh", "-c", f"cat $(ls -d /srv/share/results/{job}/*/run.json | tail -n 1)")
    about = json.loads(newest)
    assert about["state"] == "succeeded" and about["metrics"] == said
    # Its own process was on a server that is not the head.
    assert about["host"].startswith("server1"), about["host"]
    if job in USED:
        USED[job]()
