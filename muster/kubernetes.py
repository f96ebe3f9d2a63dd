"""`muster kubernetes`: the inventory's Ray cluster as KubeRay's RayCluster, and a job as its RayJob.

For KubeRay 1.7 (docs/kubernetes.md). Nothing here talks to Kubernetes: what is printed goes to kubectl.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from muster import inventory, sizing
from muster.checks import worker_sizes
from muster.errors import MusterError
from muster.known import ROOT
from muster.screen import screen

if TYPE_CHECKING:
    from ray_jobs.jobs_api import Wanted

NAME = "muster"
CLAIM = f"{NAME}-storage"
DATA = "/srv/muster"
# More than any host has: a worker whose size is given is no share of anything.
BOUNDLESS = 10**6
# What a job's driver takes of a worker, so that it is not put on the head, which offers none.
DRIVER_CPUS = 0.1


def facts(hostvars: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]], image: str) -> dict[str, Any]:
    """What the cluster is made of, by inventory variables alone: laptops are no pods."""
    head = groups["ray_head"][0]
    variables = hostvars[head]
    defaults = yaml.safe_load((ROOT / "roles/ray_head/defaults/main.yml").read_text())
    of_head = {name: inventory.value(variables, name, default) for name, default in defaults.items()}
    workers = [
        worker
        for host in groups.get("ray_worker", [])
        if host not in groups.get("laptop", [])
        for worker in _workers(host, hostvars[host], groups)
    ]
    if not workers:
        raise MusterError("no server of this inventory runs a Ray worker", fix="give a server ray_workers")
    version = re.search(r"^ray==(\S+)", (ROOT / "images/node/core.txt").read_text(), re.MULTILINE)
    assert version
    return {
        "image": image,
        "ray": version[1],
        "user": int(variables["muster_uid"]),
        "group": int(variables["muster_gid"]),
        "environment": {name: str(text) for name, text in (variables["ray_options"] or {}).items()},
        "storage": bool(variables["storage_path"]),
        "head": {
            "cpus": of_head["ray_head_cpus"],
            "cpu_limit": of_head["ray_head_cpu_limit"],
            "memory": sizing.parse_memory(variables["ray_head_memory"], what="ray_head_memory", host=head),
            "object_store": sizing.parse_memory(of_head["ray_head_object_store"], what="ray_head_object_store"),
            "labels": {"class": "server", "node": "head", **of_head["ray_head_labels"]},
            "resources": of_head["ray_head_resources"],
        },
        "groups": _alike(workers),
    }


def _workers(host: str, variables: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """The workers of a host, as large as Muster makes them."""
    spec = inventory.value(variables, "ray_workers")
    given = {
        "cpus": inventory.value(variables, "ray_worker_cpus"),
        "memory": inventory.value(variables, "ray_worker_memory"),
    }
    has = {"cpus": inventory.value(variables, "muster_cpus"), "memory": inventory.value(variables, "muster_memory")}
    if None not in has.values():
        memory = sizing.parse_memory(has["memory"], what="muster_memory", host=host) // sizing.MIB
        workers = worker_sizes(host, variables, groups, {"cpus": has["cpus"], "memory_mb": memory})
    elif all(({**given, **entry}.get(key)) for entry in sizing.entries(spec, host=host) for key in given):
        workers = sizing.ray_workers(
            spec,
            host_cpus=BOUNDLESS,
            host_memory_mb=BOUNDLESS * 1024,
            host=host,
            cpus=given["cpus"],
            memory=given["memory"],
            gpus=inventory.value(variables, "ray_worker_gpus", 0),
        )
    else:
        raise MusterError(
            "its workers are a share of the host, and nobody knows how large that is",
            fix="give it ray_worker_cpus and ray_worker_memory, or muster_cpus and muster_memory",
            host=host,
        )
    return [
        {
            "cpus": worker["cpus"], "memory": worker["memory"], "gpus": worker["gpus"], "heap": worker["heap"],
            "object_store": worker["object_store"],
            "labels": {"class": "server", **(variables.get("ray_worker_labels") or {}), **worker["labels"]},
            "resources": {**(variables.get("ray_worker_resources") or {}), **worker["resources"]},
        }
        for worker in workers
    ]  # fmt: skip


def _alike(workers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Workers of one shape are one group, the largest first."""
    found: list[dict[str, Any]] = []
    for worker in sorted(workers, key=lambda one: (-one["gpus"], -one["cpus"], -one["memory"])):
        same = next((group for group in found if group["worker"] == worker), None)
        if same:
            same["replicas"] += 1
            continue
        memory = worker["memory"]
        size = f"{memory // 2**30}g" if memory % 2**30 == 0 else f"{memory // sizing.MIB}m"
        gpus = f"-{worker['gpus']}gpu" if worker["gpus"] else ""
        name = f"{worker['cpus']}cpu-{size}{gpus}"
        number = sum(group["shape"] == name for group in found)
        found.append(
            {"name": f"{name}-{number + 1}" if number else name, "shape": name, "replicas": 1, "worker": worker}
        )
    return found


def cluster(known: Mapping[str, Any], keep_state: bool) -> dict[str, Any]:
    """The RayCluster."""
    head = known["head"]
    spec: dict[str, Any] = {
        # KubeRay asks it for what this Ray can do: authentication, health checks.
        "rayVersion": known["ray"],
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            # Without CPUs nothing is scheduled there.
            "rayStartParams": {
                "num-cpus": str(head["cpus"]), "object-store-memory": str(head["object_store"]),
            },
            "labels": _texts(head["labels"]),
            **({"resources": _texts(head["resources"])} if head["resources"] else {}),
            "template": _pod(known, "ray-head", {"cpu": str(head["cpu_limit"]), "memory": _mib(head["memory"])}),
        },
        "workerGroupSpecs": [_group(known, group) for group in known["groups"]],
    }  # fmt: skip
    if keep_state:
        spec["gcsFaultToleranceOptions"] = {"backend": "rocksdb", "storage": {"size": "1Gi"}}
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": NAME}, "spec": spec}


def _group(known: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    worker, replicas = group["worker"], group["replicas"]
    limits = {"cpu": str(worker["cpus"]), "memory": _mib(worker["memory"])}
    if worker["gpus"]:
        limits["nvidia.com/gpu"] = str(worker["gpus"])
    return {
        "groupName": group["name"],
        "replicas": replicas,
        "minReplicas": replicas,
        "maxReplicas": replicas,
        "rayStartParams": {
            "num-cpus": str(worker["cpus"]),
            "memory": str(worker["heap"]),
            "object-store-memory": str(worker["object_store"]),
        },
        "labels": _texts({**worker["labels"], "node": group["name"]}),
        **({"resources": _texts(worker["resources"])} if worker["resources"] else {}),
        "template": _pod(known, "ray-worker", limits),
    }


def _pod(known: Mapping[str, Any], name: str, limits: Mapping[str, str]) -> dict[str, Any]:
    """One pod; KubeRay adds the command, ports, /dev/shm, health checks and the token."""
    environment = {**known["environment"], **({"MUSTER_DATA": DATA} if known["storage"] else {})}
    container: dict[str, Any] = {
        "name": name,
        "image": known["image"],
        "resources": {"limits": dict(limits), "requests": dict(limits)},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    if environment:
        container["env"] = [{"name": key, "value": text} for key, text in sorted(environment.items())]
    spec: dict[str, Any] = {
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": known["user"], "runAsGroup": known["group"], "fsGroup": known["group"],
        },
        # Nothing in a pod has business with Kubernetes itself.
        "automountServiceAccountToken": False,
        "containers": [container],
    }  # fmt: skip
    if known["storage"]:
        container["volumeMounts"] = [{"name": "storage", "mountPath": DATA}]
        spec["volumes"] = [{"name": "storage", "persistentVolumeClaim": {"claimName": CLAIM}}]
    return {"spec": spec}


def claim(size: str) -> dict[str, Any]:
    """The shared storage: what class of it there is, only that cluster knows."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": CLAIM},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": size}}},
    }


def job(wanted: Wanted) -> dict[str, Any]:
    """A RayJob on the cluster above."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": wanted.id},
        "spec": {
            "clusterSelector": {"ray.io/cluster": NAME},
            "jobId": wanted.id,
            "entrypoint": wanted.entrypoint,
            "entrypointNumCpus": wanted.num_cpus,
            "metadata": dict(wanted.metadata),
            "runtimeEnvYAML": json.dumps(wanted.body()["runtime_env"]),
        },
    }


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in values.items()}


def _mib(size: int) -> str:
    return f"{size // sizing.MIB}Mi"


def documents(inventories: Sequence[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """What is asked for: the cluster and its storage, or a job on it."""
    if options.job:
        # Its imports are slow, and playbooks load this module, too.
        from muster import jobs
        from ray_jobs.jobs_api import Wanted

        options.name = options.job
        found, parameters = jobs.checked(options)
        name = jobs.new_id(found).lower().replace("_", "-")
        entrypoint, metadata = found.entrypoint(parameters), {"muster_job": found.name}
        return [job(Wanted(name, entrypoint, num_cpus=DRIVER_CPUS, metadata=metadata))]
    if options.pairs or options.params != "{}":
        raise MusterError("parameters belong to a job", fix="say which: --job NAME")
    known = screen("kubernetes.yml", inventories, {})
    if not known:
        raise MusterError("no host is in the group ray_head", fix="name an inventory with -i, as in -i inventory/mine")
    if options.image:
        known["image"] = options.image
    return [*([claim(options.storage)] if known["storage"] else []), cluster(known, options.head_state)]


def printed(inventories: Sequence[str], options: argparse.Namespace) -> int:
    """For kubectl."""
    print(yaml.safe_dump_all(documents(inventories, options), sort_keys=False, explicit_start=True), end="")
    return 0
