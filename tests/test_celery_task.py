"""What a task's base does before the task runs, and the settings; no broker."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_app.config import Settings, list_key, step
from celery_app.task import SENT, BadArgumentsError, MusterTask, checker, refuse_far


def run(number: int, names: list[str], *, flag: bool = False, other: Any = None) -> None:
    """What the checks below are for."""


def test_good_arguments_become_what_the_hints_say() -> None:
    args, kwargs = checker(run, "t")(["3"], {"names": ["a"]})
    assert (args, kwargs) == ((3, ["a"]), {"flag": False, "other": None})


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        (["x", []], {}, "t: number: Input should be a valid integer"),
        ([1, "a"], {}, "t: names: Input should be a valid list"),
        ([1, [1]], {}, "t: names.0: Input should be a valid string"),
        ([1], {}, "missing a required argument: 'names'"),
        ([1, []], {"falg": True}, "unexpected keyword argument 'falg'"),
    ],
)
def test_bad_arguments_say_which_and_why(args: list[Any], kwargs: dict[str, Any], says: str) -> None:
    with pytest.raises(BadArgumentsError, match=says):
        checker(run, "t")(args, kwargs)


def test_too_far_ahead_is_refused() -> None:
    refuse_far(100, None, 100)
    refuse_far(None, datetime.now(UTC) + timedelta(seconds=90), 100)
    with pytest.raises(ValueError, match="use the schedule"):
        refuse_far(101, None, 100)
    with pytest.raises(ValueError, match="use the schedule"):
        refuse_far(None, datetime.now(UTC) + timedelta(seconds=190), 100)


def test_settings_are_the_environments(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("p/w@1\n")
    settings = Settings.read(
        {
            "MUSTER_REDIS_URL": "rediss://app@[::1]:6380/0",
            "MUSTER_REDIS_PASSWORD_FILE": str(tmp_path / "password"),
            "MUSTER_REDIS_CA": "/ca",
            "MUSTER_QUEUES": "default, data",
            "MUSTER_RESULT_BACKEND": "",
            "RAY_ADDRESS": "x",
        }
    )
    assert settings.url == "rediss://app:p%2Fw%401@[::1]:6380/0"
    assert settings.tls["ssl_ca_certs"] == "/ca"
    assert "ssl_certfile" not in settings.tls
    assert settings.served == ["default", "data"]


def test_default_visibility_is_the_formula() -> None:
    from muster.celery_times import visibility

    settings = Settings.read({})
    assert settings.visibility_timeout == visibility(settings.time_limit, settings.max_countdown)


@pytest.mark.parametrize(("priority", "expected"), [(0, 0), (2, 0), (3, 3), (9, 9), (255, 9), (None, 0)])
def test_steps_are_kombus(priority: object, expected: int) -> None:
    assert step(priority) == expected


def test_lists_are_kombus() -> None:
    assert [list_key("q", 0), list_key("q", 3)] == ["q", "q\x06\x163"]


def test_a_message_says_when_it_was_sent() -> None:
    sender = Celery("sender", broker="memory://", task_cls=MusterTask, set_as_current=False)
    before = time.time()
    sender.send_task("t.any", queue="sent-test")
    # A second attempt waits anew.
    sender.send_task("t.any", queue="sent-test", headers={SENT: 1.0})
    with sender.connection_for_read() as connection:
        queue = connection.SimpleQueue("sent-test")
        sent = [queue.get(timeout=10).headers[SENT] for _ in range(2)]
        queue.close()
    assert all(before <= one <= time.time() for one in sent)
