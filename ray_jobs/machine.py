"""How fast one machine is: one CPU, and the disk below its temporary folder. The job that asks is benchmark.py."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from statistics import median

from pydantic import BaseModel, Field

from ray_jobs.command import JobError

MB = 10**6
PYTHON_STEPS, NUMPY_VALUES = 1_000_000, 1_000_000


class Speed(BaseModel):
    """One CPU and the disk of a node."""

    python: float = Field(description="million steps of a plain loop per second")
    numpy: float = Field(description="million values sorted per second")
    write_mb_s: float = Field(description="to the node's temporary folder, until they are on the disk")
    read_mb_s: float


def clocked(work: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def four(value: float) -> float:
    """Four digits: the others are noise."""
    return float(f"{value:.4g}")


def loop() -> int:
    """The same steps in plain Python each time."""
    number = 1
    for _ in range(PYTHON_STEPS):
        number = (number * 1_103_515_245 + 12_345) % 2**31
    return number


def disk(size_mb: int) -> tuple[float, float]:
    """Megabytes per second written and read."""
    if shutil.disk_usage(tempfile.gettempdir()).free < 2 * size_mb * MB:
        raise JobError(f"size_mb: no room for {size_mb} MB in {tempfile.gettempdir()} on {platform.node()}: take less")
    # Noise, which a file system cannot make smaller.
    chunk = os.urandom(MB)
    with tempfile.TemporaryFile(buffering=0) as file:

        def write() -> None:
            for _ in range(size_mb):
                file.write(chunk)
            os.fsync(file.fileno())

        def read() -> None:
            while file.read(MB):
                pass

        written = clocked(write)
        # Else the memory would be read. Where the folder is in memory, it is.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        return size_mb / written, size_mb / clocked(read)


def probe(rounds: int, size_mb: int) -> Speed:
    """CPU and disk of the machine that this runs on."""
    import numpy

    values = numpy.random.default_rng(0).random(NUMPY_VALUES)
    python = [PYTHON_STEPS / 1e6 / clocked(loop) for _ in range(rounds)]
    # Sorting takes one thread, whatever numpy is made with.
    sorting = [NUMPY_VALUES / 1e6 / clocked(lambda: numpy.sort(values)) for _ in range(rounds)]
    writing, reading = zip(*(disk(size_mb) for _ in range(rounds)), strict=True)
    return Speed(
        python=four(median(python)), numpy=four(median(sorting)),
        write_mb_s=four(median(writing)), read_mb_s=four(median(reading)),
    )  # fmt: skip
