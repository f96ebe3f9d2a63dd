"""Tasks that were handed out too often: list, show ID, requeue ID or --all, drop ID."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import redis

from celery_app.config import Settings
from celery_app.lease import DEAD, claim_key, connect


def letters(client: redis.Redis) -> list[dict[str, Any]]:
    """All, the oldest first."""
    return sorted((json.loads(text) for text in client.hvals(DEAD)), key=lambda letter: str(letter["at"]))


def requeue(client: redis.Redis, task: str) -> bool:
    """Send it again under its id; its deliveries are counted anew. False when there is no such letter."""
    text = client.hget(DEAD, task)
    if not text:
        return False
    from celery_app import app

    letter = json.loads(text)
    # The claim and the stored failure are of the former message.
    client.delete(claim_key(task, letter["retries"]))
    app.backend.forget(task)
    app.send_task(
        letter["task"],
        letter["args"],
        letter["kwargs"],
        task_id=task,
        queue=letter["queue"],
        priority=letter["priority"],
        retries=letter["retries"],
    )
    client.hdel(DEAD, task)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m celery_app.deadletter", description=(__doc__ or "").split(":")[0])
    parser.add_argument("action", choices=["list", "show", "requeue", "drop"])
    parser.add_argument("id", nargs="?", default="")
    parser.add_argument("--all", action="store_true", help="requeue every one")
    given = parser.parse_args()
    client = connect(Settings.read())
    if given.action == "list":
        for letter in letters(client):
            print(f"{letter['at']}  {letter['id']}  {letter['task']}  {letter['reason']}")
        return 0
    names = [letter["id"] for letter in letters(client)] if given.all and given.action == "requeue" else [given.id]
    for name in names:
        if given.action == "requeue":
            found: object = requeue(client, name)
        elif given.action == "drop":
            found = client.hdel(DEAD, name)
        else:
            found = client.hget(DEAD, name)
            print(json.dumps(json.loads(str(found)), indent=2) if found else "", end="\n" if found else "")
        if not found:
            print(f"no dead letter {name or '(give an id)'}; see `list`", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
