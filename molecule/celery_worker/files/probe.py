# Added to the tasks of `default` for the tests of the lab: each leaves a trace in Redis that the test reads for itself.
import time

VERSION = "1"


def trace(key: str, word: str) -> None:
    connection().rpush(f"probe:{key}", word)  # noqa: F821 (of the module that this is added to)


@app.task  # noqa: F821
def version() -> str:
    return VERSION


@app.task  # noqa: F821
def nap(key: str, seconds: float) -> str:
    trace(key, "start")
    time.sleep(seconds)
    trace(key, "end")
    return VERSION


@app.task(bind=True)  # noqa: F821
def tick(self) -> None:  # type: ignore[no-untyped-def]
    trace("ticks", f"{time.time():.3f} {self.request.id}")
