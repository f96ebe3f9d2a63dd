"""How long a task may be with a worker before the broker hands it out again: the one place that computes it."""

from __future__ import annotations

# For what no limit bounds: a slow start of a process, a pause of the host, a clock that is set.
LEAST_MARGIN = 600


def visibility(time_limit: int, max_countdown: int) -> int:
    """Seconds for `visibility_timeout`: longer than any worker may rightly hold a message.

    A worker holds a task from when it takes it until it is done: until its countdown is over, then behind the task
    that its process is at, then for the task's own time.
    """
    return max_countdown + 2 * time_limit + max(LEAST_MARGIN, time_limit)
