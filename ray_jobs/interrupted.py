"""Jobs that a new start of all nodes would cut, and their second beginning. In the head's container, for upgrade.yml.

python -m ray_jobs.interrupted running       which jobs run now, as JSON
python -m ray_jobs.interrupted again JSON    begins those of them anew that bear it and were cut; says which, as JSON

The library's jobs bear it: under their id they find their folder and what they had saved. Of others nobody knows, and
those that came by Celery are sent again by their task.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from ray_jobs import afar
from ray_jobs.jobs_api import ENDED, JobsClient, RayUnavailableError, Wanted

# Seconds in which the head tells that a job whose node is gone has ended.
PATIENCE = 120.0


def running(ray: JobsClient) -> list[dict[str, Any]]:
    """Those that have not ended; with `again` for those that may begin anew."""
    return [
        {
            "id": job["submission_id"],
            "entrypoint": job["entrypoint"],
            "metadata": job.get("metadata") or {},
            "again": "muster_job" in (job.get("metadata") or {}),
        }
        for job in ray.all()
        if job.get("submission_id") and job["status"] not in ENDED
    ]


def again(ray: JobsClient, jobs: Sequence[dict[str, Any]], patience: float = PATIENCE) -> dict[str, list[str]]:
    """Begins anew what may and was cut; `cut` are those that are left to whoever sent them."""
    said: dict[str, list[str]] = {"again": [], "ended": [], "cut": []}
    end = time.monotonic() + patience
    for job in jobs:
        name = job["id"]
        found = ray.get(name)
        while found and not found.ended and time.monotonic() < end:
            time.sleep(1)
            found = ray.get(name)
        if found and found.status in ("SUCCEEDED", "STOPPED"):
            said["ended"].append(name)
        elif not job["again"] or (found and not found.ended):
            said["cut"].append(name)
        else:
            # A name is taken as long as Ray remembers it.
            if found:
                ray.delete(name)
            wanted = Wanted(name, job["entrypoint"], label_selector=afar.SERVER, metadata=job["metadata"])
            ray.submit(wanted.body(restarted=int(job["metadata"].get("restarted", 0)) + 1))
            said["again"].append(name)
    return said


def main(arguments: Sequence[str]) -> int:
    """One of the two."""
    ray = JobsClient(os.environ["RAY_API_SERVER_ADDRESS"])
    try:
        print(json.dumps(running(ray) if arguments[0] == "running" else again(ray, json.loads(arguments[1]))))
    except RayUnavailableError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
