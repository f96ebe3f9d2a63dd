"""`python -m celery_app.forget HOST`: a host that has left is nobody's; what its workers held goes back first."""

from __future__ import annotations

import json
import sys

import redis

from celery_app.config import Settings
from celery_app.hosts import DRAINED, LAPTOPS, SERVERS
from celery_app.lease import LEASES, connect, holders, resign, restore


def forget(client: redis.Redis, host: str) -> dict[str, int]:
    """How many messages went back, and how many keys were removed. Its login must be gone: it may not come back."""
    workers = {name for name in client.zrange(LEASES, 0, -1) if name.partition("/")[0] == host}
    workers |= holders(client, f"{host}/*")
    back = sum(restore(client, worker, died=False) for worker in sorted(workers))
    for worker in workers:
        resign(client, worker)
    gone = client.hdel(LAPTOPS, host) + client.zrem(SERVERS, host) + client.hdel(DRAINED, host) + len(workers)
    return {"back": back, "gone": int(gone)}


def main(arguments: list[str]) -> None:
    """One line of JSON."""
    (host,) = arguments
    print(json.dumps(forget(connect(Settings.read()), host)))


if __name__ == "__main__":
    main(sys.argv[1:])
