"""Celery's Redis results, but that a state is stored in one step.

Celery reads what is there, so that nothing overwrites a success, and then writes: a duplicate that ends in between
does it all the same. One script cannot be interrupted, and a task needs half as many round trips.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from celery import states
from celery.backends.redis import RedisBackend

from celery_app.config import Settings
from celery_app.lease import COUNTS

# A result may be large: what it begins with says the state. Redis may be full: storing it frees the task's message.
# A success is counted in the same step, so that one that is stored twice counts once and no task waits for it.
STORE = """#!lua flags=allow-oom
local begin = ARGV[3]
if redis.call('GETRANGE', KEYS[1], 0, #begin - 1) == begin then return end
redis.call('SETEX', KEYS[1], ARGV[2], ARGV[1])
redis.call('PUBLISH', KEYS[1], ARGV[1])
if ARGV[4] ~= '' then redis.call('HINCRBY', KEYS[2], ARGV[4], 1) end
"""


class Backend(RedisBackend):
    """In place of `redis://`."""

    @cached_property
    def counts(self) -> bool:
        """Whether successes are counted here; results that lie elsewhere are not where the counts are."""
        return not Settings.read().result_backend

    def _store_result(
        self, task_id: Any, result: Any, state: str, traceback: Any = None, request: Any = None, **_: Any
    ) -> Any:
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        key, value = self.get_key_for_task(task_id), self.encode(meta | {"task_id": task_id})
        task = getattr(request, "task", None) if state == states.SUCCESS and self.counts else None
        # What is too large for Redis is refused by Celery's own way.
        if task and len(value) <= self._MAX_STR_VALUE_SIZE:
            self.ensure(self._set, (key, value, None, f"succeeded|{task}"))
        else:
            self._set_with_state(key, value, state)
        return result

    def _set(self, key: Any, value: Any, expires: int | None = None, counted: str = "") -> None:
        success = self.encode({"status": states.SUCCESS}).removesuffix("}")
        self.client.register_script(STORE)([key, COUNTS], [value, expires or self.expires, success, counted])
