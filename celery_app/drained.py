"""`python -m celery_app.drained HOST [WHY]`: its workers are away on purpose, and no alert; `--over` ends that."""

from __future__ import annotations

import json
import sys

import redis

from celery_app.config import Settings
from celery_app.hosts import DRAINED, drained, plain
from celery_app.lease import connect


def mark(client: redis.Redis, host: str, why: str) -> bool:
    """Whether that is new; one that is drained already keeps its beginning."""
    since, why = float(client.time()[0]), plain(why)
    if (there := client.hget(DRAINED, host)) is not None:
        at, said = drained(there)
        if at is not None and said == why:
            return False
        since = at or since
    client.hset(DRAINED, host, json.dumps({"at": since, "why": why}))
    return True


def over(client: redis.Redis, host: str) -> bool:
    """Whether it was marked."""
    return bool(client.hdel(DRAINED, host))


def main(arguments: list[str]) -> None:
    """One line of JSON."""
    host, *words = arguments
    client = connect(Settings.read())
    changed = over(client, host) if words == ["--over"] else mark(client, host, " ".join(words))
    print(json.dumps({"changed": changed}))


if __name__ == "__main__":
    main(sys.argv[1:])
