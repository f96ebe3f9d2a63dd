"""What a task asks of Redis outlasts a connection that is cut, and cut again."""

import pytest
import redis

from celery_app.lease import connection, patiently


def test_second_cut_is_outlasted_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool looks at a connection before it lends it, and what it finds there is raised past the client's retry."""
    cuts = [redis.ConnectionError("Connection closed by server."), redis.TimeoutError()]

    def get_connection() -> None:
        raise cuts.pop() if cuts else redis.ResponseError("asked")

    monkeypatch.setattr(connection().connection_pool, "get_connection", get_connection)
    with pytest.raises(redis.ResponseError, match="asked"):
        patiently(lambda client: client.ping())
