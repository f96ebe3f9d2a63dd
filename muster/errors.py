"""The one exception that people read: who, what, and what to do next."""

from __future__ import annotations


class MusterError(Exception):
    """A mistake in the inventory or on the command line, said in one line."""

    def __init__(self, problem: str, *, fix: str, host: str = "") -> None:
        self.host = host
        self.problem = problem
        self.fix = fix
        where = f"{host}: " if host else ""
        super().__init__(f"{where}{problem}. Fix: {fix}.")
