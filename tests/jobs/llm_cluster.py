"""A cluster of two nodes with Serve, driven over its standard input: a line of parameters of llm_serve, an answer.

Its own process: a test that kills replicas should not share a Ray with others, and clients need none.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ValidationError

from ray_jobs import llm_serve, serving
from ray_jobs.command import JobError

# Ray writes to this output, too.
MARK = "::answer::"
ATTEMPTS = 5
T = TypeVar("T")
STORE = 150 * 2**20


def patiently(start: Callable[[], T]) -> T:
    """Start a node, again where it did not: a raylet gives up when a busy machine needs long to start its agent."""
    for _ in range(ATTEMPTS - 1):
        try:
            return start()
        except Exception as error:
            print(f"a node did not start: {error}", file=sys.stderr, flush=True)
    return start()


def answer(line: str) -> dict[str, Any]:
    try:
        return llm_serve.run(llm_serve.Serving(**json.loads(line))).model_dump()
    except (JobError, ValidationError) as error:
        return {"error": str(error)}


def main() -> None:
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    cluster = patiently(
        lambda: Cluster(
            initialize_head=True,
            # It could take every replica, were it not told otherwise.
            head_node_args={
                "num_cpus": 5, "include_dashboard": False, "labels": {"host": "head", "node": "head"},
                "object_store_memory": STORE,
            },
        )
    )  # fmt: skip
    server = {"host": "server1", "node": "worker-1"}
    patiently(lambda: cluster.add_node(num_cpus=5, labels=server, object_store_memory=STORE))
    ray.init(address=cluster.address, log_to_driver=False)
    serving.start()
    try:
        for line in sys.stdin:
            print(MARK + json.dumps(answer(line)), flush=True)
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
