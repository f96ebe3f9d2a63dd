"""What is promised of delivery, with real processes that are really killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.delivery.conftest import ROOT, RedisServer, Worker, all_held, children, kill, until

Start = Callable[..., Worker]


def test_a_stock_client_gets_its_result(app: Any, worker: Start) -> None:
    worker()
    assert app.send_task("t.note", ["a"]).get(timeout=60) == "a"


def test_worker_killed_in_the_middle_loses_nothing(app: Any, worker: Start, redis_server: RedisServer) -> None:
    one, notes = worker("one").ready(), redis_server.client
    held = app.send_task("t.gate", ["x"])
    waiting = [app.send_task("t.note", [str(number)]) for number in range(20)]
    until(lambda: notes.llen("began") == 1, "the task began")
    one.kill()
    notes.set("open:x", 1)
    start = time.monotonic()
    worker("two")
    assert held.get(timeout=60) == "x"
    assert time.monotonic() - start < 45
    assert sorted(one.get(timeout=60) for one in waiting) == sorted(map(str, range(20)))
    assert {notes.get(f"effect:{number}") for number in range(20)} == {"1"}
    until(lambda: not all_held(notes), "nothing is held any more")


def test_supervisor_restarts_after_kill_and_gives_back_its_own(
    app: Any, worker: Start, redis_server: RedisServer
) -> None:
    one = worker("one").ready()
    held = app.send_task("t.gate", ["x"])
    until(lambda: redis_server.client.llen("began") == 1, "the task began")
    one.kill()
    redis_server.client.set("open:x", 1)
    one.start()
    assert held.get(timeout=30) == "x"


def test_killed_main_process_is_seen_and_all_goes_back(app: Any, worker: Start, redis_server: RedisServer) -> None:
    one = worker("one").ready()
    app.send_task("t.gate", ["x"])
    until(lambda: redis_server.client.llen("began") == 1, "the task began")
    kill(one.main)
    assert one.process.wait(20) != 0
    assert redis_server.client.hlen("muster:unacked:one/default") == 0
    assert redis_server.client.llen("default") == 1


def test_killed_child_loses_nothing(app: Any, worker: Start, redis_server: RedisServer) -> None:
    one = worker("one", concurrency=1).ready()
    held = app.send_task("t.gate", ["x"])
    until(lambda: redis_server.client.llen("began") == 1, "the task began")
    for pid in children(one.main):
        kill(pid)
    until(lambda: redis_server.client.llen("began") == 2, "it began again")
    redis_server.client.set("open:x", 1)
    assert held.get(timeout=30) == "x"


def test_poison_becomes_a_dead_letter_and_can_be_sent_again(app: Any, worker: Start, redis_server: RedisServer) -> None:
    worker("one", max_deliveries=3)
    task = app.send_task("t.die")
    until(lambda: redis_server.client.hexists("muster:dead", task.id), "it is a dead letter")
    assert redis_server.client.get("deaths") == "3"
    with pytest.raises(RuntimeError, match="dead letter"):
        task.get(timeout=20)
    assert app.send_task("t.note", ["on"]).get(timeout=30) == "on"


def test_redis_killed_and_started_again(app: Any, worker: Start, redis_server: RedisServer) -> None:
    worker("one").ready()
    redis = redis_server.client
    held = app.send_task("t.gate", ["x"])
    until(lambda: redis.llen("began") == 1, "the task began")
    for number in range(50):
        app.send_task("t.note", [str(number)])
    until(lambda: int(redis.info("persistence")["aof_pending_bio_fsync"]) == 0, "the log is written")
    redis_server.kill()
    redis_server.start()
    redis.set("open:x", 1)
    # Not get(): Celery's client asks for results, and then subscribes to them; what comes in between it never hears of.
    until(lambda: held.state == "SUCCESS", "the held task is done")
    assert held.result == "x"
    until(lambda: len(redis.keys("effect:*")) == 50, "all notes are there")
    assert {redis.get(key) for key in redis.keys("effect:*")} == {"1"}
    until(lambda: not all_held(redis), "nothing is held any more")


def test_deaf_worker_is_restarted_within_a_minute(app: Any, worker: Start, redis_server: RedisServer) -> None:
    one = worker("one").ready()
    one.heartbeat.with_suffix(".deaf").touch()
    until(lambda: one.heartbeat.stat().st_mtime > one.heartbeat.with_suffix(".deaf").stat().st_mtime, "it is deaf")
    task, start = app.send_task("t.note", ["heard"]), time.monotonic()
    assert one.process.wait(60) == 3
    one.heartbeat.with_suffix(".deaf").unlink()
    one.start()
    assert task.get(timeout=30) == "heard"
    assert time.monotonic() - start < 60


def test_hanging_loop_loses_its_lease_and_others_go_on(app: Any, worker: Start, redis_server: RedisServer) -> None:
    one = worker("one").ready()
    app.send_task("t.gate", ["x"])
    until(lambda: redis_server.client.llen("began") == 1, "the task began")
    os.kill(one.main, signal.SIGSTOP)
    assert one.process.wait(40) == 3
    assert redis_server.client.llen("default") == 1


def test_host_that_slept_runs_nothing_twice_at_once(app: Any, worker: Start, redis_server: RedisServer) -> None:
    one = worker("one").ready()
    held = app.send_task("t.gate", ["x"])
    until(lambda: redis_server.client.llen("began") == 1, "the task began")
    pids = [one.process.pid, one.main, *children(one.main)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    worker("two")
    until(lambda: redis_server.client.llen("began") == 2, "the other has it")
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    assert one.process.wait(20) == 3
    assert one.said("this host was away")
    redis_server.client.set("open:x", 1)
    assert held.get(timeout=30) == "x"
    assert redis_server.client.lrange("ended", 0, -1) == ["x"]


def test_second_message_of_a_task_is_dropped(app: Any, worker: Start, redis_server: RedisServer) -> None:
    for _ in range(3):
        app.send_task("t.note", ["a"], task_id="same")
    last = app.send_task("t.note", ["z"])
    worker(concurrency=1)
    last.get(timeout=60)
    assert redis_server.client.lrange("notes", 0, -1) == ["a", "z"]


def test_priorities_go_first(app: Any, worker: Start, redis_server: RedisServer) -> None:
    """The client is a stock one, and "normal" is what it sends without a priority."""
    given: list[dict[str, Any]] = [{"priority": 9}, {"priority": 6}, {}, {"priority": 3}]
    names = ["batch", "low", "normal", "critical"]
    sent = [app.send_task("t.note", [name], **options) for name, options in zip(names, given, strict=True)]
    worker(concurrency=1)
    for task in sent:
        task.get(timeout=60)
    assert redis_server.client.lrange("notes", 0, -1) == names[::-1]


def test_retries_back_off(app: Any, worker: Start, redis_server: RedisServer) -> None:
    worker()
    assert app.send_task("t.shaky", [3]).get(timeout=60) == 3
    first, second, third = map(float, redis_server.client.lrange("tries_at", 0, -1))
    assert 1 <= second - first < third - second
    assert third - second >= 2


@pytest.mark.parametrize("args", [["x", []], [1], [1, "no list"], [1, [], 3]])
def test_bad_arguments_fail_at_once(app: Any, worker: Start, redis_server: RedisServer, args: list[Any]) -> None:
    worker()
    task = app.send_task("t.typed", args)
    with pytest.raises(Exception, match=r"number|where|argument"):
        task.get(timeout=60)
    assert task.state == "FAILURE"
    assert not redis_server.client.exists("typed")


def test_revoked_task_does_not_run(app: Any, worker: Start, redis_server: RedisServer) -> None:
    worker("one", concurrency=1).ready()
    running = app.send_task("t.gate", ["x"])
    until(lambda: redis_server.client.llen("began") == 1, "the task began")
    app.control.revoke(running.id, terminate=True, signal="SIGKILL")
    until(lambda: running.state == "REVOKED", "it is revoked")
    assert app.send_task("t.note", ["on"]).get(timeout=30) == "on"
    assert not redis_server.client.exists("ended")


def test_told_to_stop_it_ends_what_runs(app: Any, worker: Start, redis_server: RedisServer) -> None:
    one, redis = worker("one", concurrency=1).ready(), redis_server.client
    held = app.send_task("t.gate", ["x"])
    until(lambda: redis.llen("began") == 1, "the task began")
    waiting = app.send_task("t.gate", ["later"])
    one.process.terminate()
    until(lambda: one.said("Warm shutdown"), "it was told")
    redis.set("open:x", 1)
    assert one.process.wait(30) == 0
    assert held.get(timeout=5) == "x"
    assert waiting.state == "PENDING"
    assert redis.llen("default") == 1
    assert not redis.exists("muster:unacked:one/default")


def test_told_to_stop_it_hands_back_what_takes_too_long(app: Any, worker: Start, redis_server: RedisServer) -> None:
    one, redis = worker("one", soft_shutdown=2).ready(), redis_server.client
    app.send_task("t.gate", ["x"])
    until(lambda: redis.llen("began") == 1, "the task began")
    start = time.monotonic()
    assert one.stop() == 0
    assert time.monotonic() - start < 30
    assert redis.llen("default") == 1
    assert not redis.exists("muster:unacked:one/default", "muster:leases")


def test_dead_letter_sent_again_runs(app: Any, worker: Start, redis_server: RedisServer) -> None:
    one, redis = worker("one", max_deliveries=1), redis_server.client
    held = app.send_task("t.gate", ["x"])
    until(lambda: redis.llen("began") == 1, "the task began")
    one.kill()
    one.start()
    until(lambda: redis.hexists("muster:dead", held.id), "it is a dead letter")
    redis.set("open:x", 1)
    environment = {**one.environment, "MUSTER_WORKER": "", "MUSTER_HEARTBEAT": ""}
    command = [sys.executable, "-m", "celery_app.deadletter", "requeue", held.id]
    subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True)
    until(lambda: redis.lrange("ended", 0, -1) == ["x"], "it ran to its end")
    assert not redis.hexists("muster:dead", held.id)


def test_what_was_handed_back_is_no_dead_letter(app: Any, worker: Start, redis_server: RedisServer) -> None:
    """Only a death counts: this task is in its third delivery when its worker dies for the first time."""
    one, redis = worker("one", max_deliveries=2, soft_shutdown=1), redis_server.client
    held = app.send_task("t.gate", ["x"])

    def began(times: int) -> None:
        until(lambda: redis.llen("began") == times, "the task began")

    for times in (1, 2):
        began(times)
        assert one.stop() == 0
        one.start()
    began(3)
    one.kill()
    one.start()
    began(4)
    one.kill()
    one.start()
    until(lambda: redis.hexists("muster:dead", held.id), "its second death makes it a dead letter")
    assert redis.llen("began") == 4
