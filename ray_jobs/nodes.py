"""The nodes that Ray knows, asked over the head's own interface: an import of Ray would cost seconds.

Run it in the head's container: python -S -m ray_jobs.nodes
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HEAD = os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")


@dataclass(frozen=True)
class Node:
    """One Ray node, named as the inventory names it: `host/worker-1`."""

    name: str
    id: str
    state: str
    message: str
    cpus: float
    gpus: float
    memory: int
    object_store: int
    started: float


def token() -> str:
    """The cluster's token, from where Ray itself would take it."""
    if value := os.environ.get("RAY_AUTH_TOKEN"):
        return value
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(path).read_text().strip() if path else ""


def call(path: str, bearer: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
    """Status and answer of the head's HTTP interface; a refusal is an answer too."""
    request = urllib.request.Request(HEAD + path)
    request.add_header("Content-Type", "application/json")
    if bearer:
        request.add_header("Authorization", f"Bearer {bearer}")
    if body is not None:
        request.data = json.dumps(body).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def parse(listing: list[dict[str, Any]]) -> list[Node]:
    """Ray's listing as nodes; those without our labels keep their id as name."""
    nodes = []
    for item in listing:
        labels, total = item.get("labels") or {}, item.get("resources_total") or {}
        host, node = labels.get("host"), labels.get("node")
        nodes.append(
            Node(
                name=f"{host}/{node}" if host and node else item["node_id"][:12],
                id=item["node_id"],
                state=item["state"].lower(),
                message=item.get("state_message") or "",
                # What a laptop offers instead (ray_jobs/guests.py).
                cpus=float(total.get("CPU", 0) + total.get("laptop", 0)),
                gpus=float(total.get("GPU", 0)),
                memory=int(total.get("memory", 0)),
                object_store=int(total.get("object_store_memory", 0)),
                started=item.get("start_time_ms", 0) / 1000,
            )
        )
    return sorted(nodes, key=lambda node: (node.name, node.started))


def listing() -> list[Node]:
    """All nodes, also the dead ones that Ray remembers. Raises ConnectionError with a line for people."""
    try:
        status, body = call("/api/v0/nodes?detail=1&limit=10000", token())
    except OSError as error:
        raise ConnectionError(f"the head does not answer at {HEAD}: {error}") from error
    if status != 200:
        raise ConnectionError(f"the head answers {status} at {HEAD}: {body[:200].decode(errors='replace')}")
    return parse(json.loads(body)["data"]["result"]["result"])


def version() -> str:
    """The version of Ray that runs."""
    _, body = call("/api/version", token())
    return str(json.loads(body)["ray_version"])


def main() -> None:
    try:
        nodes = [asdict(node) for node in listing()]
        print(json.dumps({"version": version(), "nodes": nodes}))
    except ConnectionError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
