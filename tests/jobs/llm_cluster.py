"""A cluster of two nodes with Serve, driven over its standard input: a line of parameters of llm_serve, an answer.

Its own process: a test that kills replicas should not share a Ray with others, and clients need none.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pydantic import ValidationError

from ray_jobs import llm_serve, serving
from ray_jobs.command import JobError

# Ray writes to this output, too.
MARK = "::answer::"
STORE = 150 * 2**20


def answer(line: str) -> dict[str, Any]:
    try:
        return llm_serve.run(llm_serve.Serving(**json.loads(line))).model_dump()
    except (JobError, ValidationError) as error:
        return {"error": str(error)}


def main() -> None:
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0, "include_dashboard": False, "labels": {"host": "head", "node": "head"},
            "object_store_memory": STORE,
        },
    )  # fmt: skip
    cluster.add_node(num_cpus=5, labels={"host": "server1", "node": "worker-1"}, object_store_memory=STORE)
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
