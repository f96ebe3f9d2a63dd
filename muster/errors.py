"""The one exception that people read: who, what, and what to do next."""

from __future__ import annotations


class MusterError(Exception):
    """A mistake in the inventory or on the command line, said in one line."""

    # What the command ends with.
    code = 2

    def __init__(self, problem: str, *, fix: str, host: str = "") -> None:
        self.host = host
        self.problem = problem
        self.fix = fix
        where = f"{host}: " if host else ""
        super().__init__(f"{where}{problem}. Fix: {fix}.")


class UnansweredError(MusterError):
    """The cluster could not be asked, or could not do it; said in one line too."""

    code = 3
