"""The connection to Redis breaks again and again: each task runs once all the same."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.delivery.conftest import RedisServer, Worker, all_held, until


def test_what_a_process_was_given_does_not_run_beside_itself(
    app: Any, worker: Callable[..., Worker], redis_server: RedisServer, tmp_path: Path
) -> None:
    spans, redis = tmp_path / "spans", redis_server.client
    include = "tests.delivery.tasks,tests.delivery.spans"
    one = worker("one", concurrency=4, include=include, spans=spans, lease=120).ready()
    moments = random.Random(1)
    # The long ones are beginning or run on while short ones make the worker ask, which is when it sees the cut.
    sent = [app.send_task("t.span", [0.5 if number % 4 else 0.01]).id for number in range(200)]
    while redis.hlen("effects") < len(sent):
        time.sleep(moments.uniform(0.05, 0.3))
        redis.execute_command("CLIENT", "KILL", "TYPE", "normal")
        assert one.process.poll() is None, one.log.read_text()[-500:]
    until(lambda: not all_held(redis), "nothing is held any more")
    assert redis.hgetall("effects") == dict.fromkeys(sent, "1")
    begun = Counter(line.split()[1] for line in spans.read_text().splitlines() if line.startswith("begin"))
    assert {task: times for task, times in begun.items() if times > 1} == {}
    assert sorted(begun) == sorted(sent)
    assert one.log.read_text().count("connected again") > 2
