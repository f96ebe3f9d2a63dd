"""What `muster kubernetes` prints, judged as Kubernetes does: a field that is not in KubeRay's schema is refused."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from muster import cli, kubernetes
from muster.errors import MusterError
from muster.load import load_inventory
from ray_jobs import library

from .conftest import ROOT, Inventories

# KubeRay's own CRDs, where somebody has them.
CRDS = os.environ.get("KUBERAY_CRDS", "")
KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs"}
TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,),
    "integer": (int,), "number": (int, float),
}  # fmt: skip
# As deep as a volume that is made for one pod is, all of it as in a claim.
EPHEMERAL = "spec.headGroupSpec.template.spec.volumes.[].ephemeral.volumeClaimTemplate.spec"


@cache
def used() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "tests/kuberay_fields.yml").read_text())
    return found


@cache
def real(kind: str) -> dict[str, Any]:
    """The schema of a CRD."""
    text = Path(CRDS, f"ray.io_{KINDS[kind]}.yaml").read_text()
    versions = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]["versions"]
    found: dict[str, Any] = next(one for one in versions if one["name"] == "v1")["schema"]["openAPIV3Schema"]
    return found


def schema(kind: str) -> dict[str, Any]:
    return real(kind) if CRDS and kind in KINDS else used()[kind]


def wrong(rules: Mapping[str, Any], value: Any, where: str = "") -> Iterator[str]:
    """What a structural schema of Kubernetes has against a value; an unknown field is a mistake."""
    if rules.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, int | str):
            yield f"{where}: {value!r} is neither number nor text"
        return
    kind = rules["type"]
    if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        yield f"{where}: {value!r} is no {kind}"
        return
    if value not in rules.get("enum", [value]):
        yield f"{where}: {value!r} is none of {rules['enum']}"
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from wrong(rules["items"], item, f"{where}[{number}]")
    if isinstance(value, dict):
        # Metadata is Kubernetes' own, and no CRD describes it.
        if where.endswith(".metadata") and "properties" not in rules and "additionalProperties" not in rules:
            return
        yield from (f"{where}.{name} is missing" for name in rules.get("required", []) if name not in value)
        for name, inner in value.items():
            known = rules.get("properties", {}).get(name) or rules.get("additionalProperties")
            if known:
                yield from wrong(known, inner, f"{where}.{name}")
            else:
                yield f"{where}.{name} is not known"


def judged(document: Mapping[str, Any]) -> list[str]:
    return list(wrong(schema(document["kind"]), document))


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert cli.main(["kubernetes", *words]) == 0
    return list(yaml.safe_load_all(capsys.readouterr().out))


@pytest.fixture
def mixed(inventories: Inventories) -> str:
    """Servers of several sizes, a GPU, labels, a shared folder, and a laptop that runs Ray."""
    return str(
        inventories.write(
            all={"storage_path": "/srv/share", "ray_options": {"RAY_health_check_failure_threshold": 10},
                 "muster_registry": "registry.example.org"},
            head={"ray_head_memory": "3G", "ray_head_labels": {"rack": "a"}},
            server1={
                "ray_workers": [
                    {"cpus": 8, "memory": "32G", "gpus": 1, "resources": {"fast": 2}},
                    {"cpus": 2, "memory": "1536M"}, {"cpus": 2, "memory": "1536M"},
                    {"cpus": 2, "memory": "1536M", "labels": {"disk": "nvme"}},
                ]
            },
            laptop1={"ray_workers": 1, "ray_worker_cpus": 4, "ray_worker_memory": "8G"},
        )
    )  # fmt: skip


def test_the_example_as_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    (cluster,) = printed(capsys, "-i", "inventory/example")
    assert judged(cluster) == []
    spec = cluster["spec"]
    assert cluster["metadata"]["name"] == kubernetes.NAME
    assert spec["authOptions"] == {"mode": "token"}
    assert f"ray=={spec['rayVersion']}\n" in (ROOT / "images/node/core.txt").read_text()
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "gcsFaultToleranceOptions" not in spec
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert {name: group["replicas"] for name, group in groups.items()} == {"3cpu-8g": 3, "2cpu-6g": 7}
    (container,) = groups["2cpu-6g"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == container["resources"]["requests"] == {"cpu": "2", "memory": "6144Mi"}
    assert container["image"].startswith("10.0.0.84:5000/muster/node:ml-")
    # What jobs ask for: not the head, no laptop.
    assert groups["2cpu-6g"]["labels"] == {"class": "server", "node": "2cpu-6g"}
    assert spec["headGroupSpec"]["labels"] == {"class": "server", "node": "head"}


def test_every_shape_is_a_group(mixed: str, capsys: pytest.CaptureFixture[str]) -> None:
    claim, cluster = printed(capsys, "-i", mixed, "--head-state", "--storage", "5Gi", "--image", "example.org/node:1")
    assert judged(claim) == judged(cluster) == []
    spec = cluster["spec"]
    groups = spec["workerGroupSpecs"]
    assert [(group["groupName"], group["replicas"]) for group in groups] == [
        ("8cpu-32g-1gpu", 1), ("2cpu-1536m", 2), ("2cpu-1536m-2", 1),
    ]  # fmt: skip
    pods = [group["template"]["spec"] for group in (spec["headGroupSpec"], *groups)]
    assert pods[1]["containers"][0]["resources"]["limits"] == {"cpu": "8", "memory": "32768Mi", "nvidia.com/gpu": "1"}
    assert groups[0]["resources"] == {"fast": "2"} and "resources" not in groups[1]
    assert groups[2]["labels"] == {"class": "server", "node": "2cpu-1536m-2", "disk": "nvme"}
    assert spec["headGroupSpec"]["labels"]["rack"] == "a"
    assert pods[0]["containers"][0]["resources"]["limits"]["memory"] == "3072Mi"
    assert spec["gcsFaultToleranceOptions"]["backend"] == "rocksdb"
    assert claim["spec"]["resources"]["requests"] == {"storage": "5Gi"}
    for pod in pods:
        (container,) = pod["containers"]
        assert container["image"] == "example.org/node:1"
        assert {"name": "RAY_health_check_failure_threshold", "value": "10"} in container["env"]
        assert {"name": "MUSTER_DATA", "value": container["volumeMounts"][0]["mountPath"]} in container["env"]
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    for group in groups:
        start, limit = (
            group["rayStartParams"],
            group["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"],
        )
        assert int(start["memory"]) + int(start["object-store-memory"]) < int(limit.removesuffix("Mi")) * 2**20


def test_a_job(capsys: pytest.CaptureFixture[str]) -> None:
    (job,) = printed(capsys, "--job", "train_torch", "-p", "epochs=2")
    assert judged(job) == []
    spec = job["spec"]
    assert spec["clusterSelector"] == {"ray.io/cluster": kubernetes.NAME}
    assert spec["entrypoint"] == "python -m ray_jobs.train_torch --params '{\"epochs\": 2}'"
    # Its driver is not on the head, which has no CPU.
    assert spec["entrypointNumCpus"] > 0
    assert job["metadata"]["name"] == spec["jobId"] == json.loads(spec["runtimeEnvYAML"])["env_vars"]["MUSTER_RAY_JOB"]
    # KubeRay's limit; underscores are no part of a name there.
    longest = max(map(len, library.NAMES)) - len("train_torch")
    assert "_" not in job["metadata"]["name"] and len(job["metadata"]["name"]) + longest <= 47


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--job", "nope"], "there is no job 'nope'. Fix:"),
        (["--job", "hello", "-p", "tasks=0"], "hello: tasks: Input should be"),
        (["-p", "tasks=1"], "parameters belong to a job. Fix: say which: --job NAME"),
    ],
)
def test_what_is_typed_wrong_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["kubernetes", *words]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and not said.out


def test_a_share_of_an_unknown_host_is_no_pod(inventories: Inventories) -> None:
    def groups(**server1: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = kubernetes.facts(*inventories.load(server1=server1), "image")["groups"]
        return found

    with pytest.raises(MusterError, match=r"^server1: its workers are a share of the host.*Fix: give it"):
        groups()
    with pytest.raises(MusterError, match=r"no server of this inventory runs a Ray worker\. Fix:"):
        groups(ray_workers=0)
    (group,) = groups(muster_cpus=16, muster_memory="64G", ray_workers=2)
    # A CPU and some memory stay with the host, as the role has it.
    assert (group["replicas"], group["worker"]["cpus"]) == (2, 7)


def test_what_kubernetes_would_refuse_is_refused(mixed: str) -> None:
    """A misspelt field, a number for a text, a missing field, a value that is none of those there are; anywhere."""
    cluster = kubernetes.cluster(kubernetes.facts(*load_inventory([mixed]), "image"), keep_state=True)

    def after(change: Any) -> list[str]:
        changed = copy.deepcopy(cluster)
        change(changed["spec"])
        return judged(changed)

    pod = "template"
    assert after(lambda spec: spec.update(rayVersoin="1")) == [".spec.rayVersoin is not known"]
    assert after(lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}))
    assert after(lambda spec: spec["workerGroupSpecs"][0].pop("groupName"))
    assert after(lambda spec: spec["workerGroupSpecs"][0].update(replicas="3"))
    assert after(lambda spec: spec["authOptions"].update(mode="tokens"))
    assert after(lambda spec: spec["workerGroupSpecs"][1][pod]["spec"]["containers"][0].update(enviroment=[]))
    assert after(lambda spec: spec["workerGroupSpecs"][1][pod]["spec"]["volumes"][0]["persistentVolumeClaim"].clear())
    assert after(lambda spec: None) == []


def part_of(known: Mapping[str, Any], whole: Mapping[str, Any], where: str) -> Iterator[str]:
    """Where the table says something else than the schema that it is a part of."""
    for key in ("type", "format", "x-kubernetes-int-or-string"):
        if key in known and known[key] != whole.get(key):
            yield f"{where}: {key} is {whole.get(key)}"
    if set(known.get("enum", [])) != set(whole.get("enum", [])):
        yield f"{where}: enum is {whole.get('enum')}"
    if missing := set(whole.get("required", [])) ^ set(known.get("required", [])):
        yield f"{where}: required differs by {missing}"
    for name, inner in known.get("properties", {}).items():
        if name in whole.get("properties", {}):
            yield from part_of(inner, whole["properties"][name], f"{where}.{name}")
        else:
            yield f"{where}.{name} is not there"
    for key in ("items", "additionalProperties"):
        if key in known:
            yield from part_of(known[key], whole.get(key) or {}, f"{where}.{key}")


@pytest.mark.skipif(not CRDS, reason="KUBERAY_CRDS names no folder with KubeRay's CRDs")
def test_the_table_of_fields_is_kuberays() -> None:
    for kind in KINDS:
        assert list(part_of(used()[kind], real(kind), kind)) == []
    # No CRD describes a claim, but for volumes that are made for one pod.
    inside = real("RayCluster")
    for name in EPHEMERAL.split("."):
        inside = inside["items"] if name == "[]" else inside["properties"][name]
    claim = used()["PersistentVolumeClaim"]["properties"]["spec"]
    assert list(part_of(claim, inside, "claim")) == []
