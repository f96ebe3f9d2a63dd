"""What all tasks share: checked arguments, one message per id and attempt, an end for what kills its workers."""

from __future__ import annotations

import inspect
import json
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, get_type_hints

from celery import Task, signals
from celery.app.trace import get_actual_ignore_result
from celery.exceptions import Ignore, Reject
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from celery_app.config import PRIORITIES, Settings
from celery_app.lease import COUNTS, DEAD, claim_key, patiently

# When a message was sent, in its headers.
SENT = "sent"
# Another message of the same id and attempt is a duplicate.
TAKE_CLAIM = """#!lua flags=allow-oom
local tag = redis.call('HGET', KEYS[1], 'tag')
if tag and tag ~= ARGV[1] then return -1 end
redis.call('HSET', KEYS[1], 'tag', ARGV[1], 'begun', 1)
redis.call('EXPIRE', KEYS[1], ARGV[2])
return tonumber(redis.call('HGET', KEYS[1], 'deaths') or 0)
"""
# Redis may be full; that is no reason to lose what happened to a task.
NOTE = "#!lua flags=allow-oom\nreturn redis.call(unpack(ARGV))"
logger = logging.getLogger(__name__)


class BadArgumentsError(ValueError):
    """The arguments are not what the task's type hints say; nothing was run."""


class MusterTask(Task):
    """The base of every task of the app."""

    abstract = True
    max_retries = 5
    retry_backoff = True
    retry_backoff_max = 600
    retry_jitter = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.request.called_directly:
            self._claim(args, kwargs)
        args, kwargs = self._checked(args, kwargs)
        return self.run(*args, **kwargs)

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        if isinstance(options.get("priority"), str):
            options["priority"] = PRIORITIES[options["priority"]]
        refuse_far(options.get("countdown"), options.get("eta"), Settings.read().max_countdown)
        return super().apply_async(args, kwargs, *more, **options)

    def retry(self, *args: Any, **options: Any) -> Any:
        """Celery drops a task whose next attempt it cannot send; this tries on, as long as the task may take."""
        while True:
            try:
                return super().retry(*args, **options)
            except Reject as refused:
                logger.warning("%s[%s]: the next attempt waits: %s", self.name, self.request.id, refused.reason)
                time.sleep(1)

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        # Where our backend stores the result it has counted (results.py).
        if not getattr(self.backend, "counts", False) or get_actual_ignore_result(self, self.request):
            count("succeeded", self.name)

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        count("failed", self.name)

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        count("retried", self.name)

    def _claim(self, args: Any, kwargs: Any) -> None:
        request = self.request
        tag = (request.properties or {}).get("delivery_tag")
        if not tag:
            return
        settings = Settings.read()
        key = claim_key(request.id, request.retries)
        deaths = int(patiently(lambda client: client.eval(TAKE_CLAIM, 1, key, tag, settings.visibility_timeout)))
        if deaths < 0:
            logger.warning("%s[%s] is a duplicate and is dropped", self.name, request.id)
            count("duplicate", self.name)
            raise Ignore()
        if not (request.delivery_info or {}).get("redelivered"):
            return
        # Its worker may have died between the result and the acknowledgement.
        if self.backend.get_task_meta(request.id)["status"] == "SUCCESS":
            logger.warning("%s[%s] has its result already", self.name, request.id)
            raise Ignore()
        if deaths >= settings.max_deliveries:
            self._bury(args, kwargs, f"its worker died {deaths} times")

    def _bury(self, args: Any, kwargs: Any, reason: str) -> None:
        request, info = self.request, self.request.delivery_info or {}
        letter = {
            "id": request.id,
            "task": self.name,
            "args": list(args),
            "kwargs": kwargs,
            "queue": info.get("routing_key"),
            "priority": info.get("priority"),
            "retries": request.retries or 0,
            "reason": reason,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        patiently(lambda client: client.eval(NOTE, 1, DEAD, "HSET", DEAD, request.id, json.dumps(letter)))
        count("dead", self.name)
        logger.error("%s[%s] is a dead letter: %s", self.name, request.id, reason)
        error = RuntimeError(f"dead letter: {reason}; see `muster dead show {request.id}`")
        self.backend.mark_as_failure(request.id, error, request=request)
        raise Ignore()

    def _checked(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        check = self.__dict__.get("_muster_check")
        if check is None:
            run: Any = getattr(self, "_orig_run", None) or self.run
            check = self._muster_check = checker(run, str(self.name))
        return check(args, kwargs)


def checker(run: Callable[..., Any], name: str) -> Callable[[Any, Any], tuple[Any, Any]]:
    """A function that turns arguments into what the type hints of `run` say, or tells what is wrong with them."""
    signature = inspect.signature(run)
    hints = get_type_hints(inspect.unwrap(run))
    fixed = {
        parameter.name: parameter
        for parameter in signature.parameters.values()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    fields: dict[str, Any] = {
        f"p{number}": (hints.get(key, Any), ...) for number, key in enumerate(fixed) if key in hints
    }
    numbers = {key: f"p{number}" for number, key in enumerate(fixed) if key in hints}
    model: type[BaseModel] = create_model("Arguments", __config__=ConfigDict(arbitrary_types_allowed=True), **fields)

    def check(args: Any, kwargs: Any) -> tuple[Any, Any]:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise BadArgumentsError(f"{name}: {error}") from None
        bound.apply_defaults()
        given = {numbers[key]: value for key, value in bound.arguments.items() if key in numbers}
        try:
            good = model.model_validate(given)
        except ValidationError as error:
            names = {number: key for key, number in numbers.items()}
            wrong = (
                ".".join([names[str(found["loc"][0])], *map(str, found["loc"][1:])]) + f": {found['msg']}"
                for found in error.errors(include_url=False)
            )
            raise BadArgumentsError(f"{name}: {'; '.join(wrong)}") from None
        for key, number in numbers.items():
            bound.arguments[key] = getattr(good, number)
        return bound.args, bound.kwargs

    return check


@signals.before_task_publish.connect(weak=False)
def _stamp(headers: Any = None, **_: Any) -> None:
    """Messages have no time of their own; by this the figures say how long one has waited (metrics.py)."""
    if isinstance(headers, dict):
        headers[SENT] = time.time()


def refuse_far(countdown: float | None, eta: Any, most: int) -> None:
    """A worker holds such a task all the time, and the broker would hand it out again."""
    if isinstance(eta, str):
        eta = datetime.fromisoformat(eta)
    if isinstance(eta, datetime):
        countdown = (eta - datetime.now(eta.tzinfo or UTC).replace(tzinfo=eta.tzinfo)).total_seconds()
    if countdown is not None and countdown > most:
        raise ValueError(f"{countdown:.0f} s ahead is more than MUSTER_MAX_COUNTDOWN ({most} s): use the schedule")


def count(what: str, task: str) -> None:
    """For the metrics; what is counted is rare, or costs no less otherwise."""
    patiently(lambda client: client.eval(NOTE, 1, COUNTS, "HINCRBY", COUNTS, f"{what}|{task}", 1))


def once(key: str, effect: Callable[[Any], object]) -> bool:
    """An effect in Redis, by `effect(pipeline)`, in one step with the mark that it was done; False when it was."""
    mark = f"muster:once:{key}"

    def change(pipe: Any) -> bool:
        if pipe.exists(mark):
            pipe.multi()
            return False
        pipe.multi()
        pipe.set(mark, 1, ex=Settings.read().visibility_timeout)
        effect(pipe)
        return True

    return bool(patiently(lambda client: client.transaction(change, mark, value_from_callable=True)))
