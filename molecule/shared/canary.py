"""Commands on lab hosts, and a container image that needs no download: the canary that tests publish ports with."""

from __future__ import annotations

import io
import subprocess
import tarfile
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
IMAGE = "canary"


def on(container: str, *command: str, stdin: bytes = b"", check: bool = True) -> str:
    """Run a command on a lab host as its root, and give what it printed."""
    done = subprocess.run(["docker", "exec", "-i", container, *command], input=stdin, capture_output=True)
    output = done.stdout.decode(errors="replace")
    if check and done.returncode:
        raise AssertionError(
            f"{container}: {' '.join(command)}\n{output[-3000:]}\n{done.stderr.decode(errors='replace')[-3000:]}"
        )
    return output


def until(seconds: float, what: str, probe: Callable[[], T]) -> T:
    """Wait for a condition with a deadline; the last error tells why it never came true."""
    end, last = time.monotonic() + seconds, "nothing seen"
    while time.monotonic() < end:
        try:
            if seen := probe():
                return seen
        except AssertionError as error:
            last = str(error)
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds:.0f} s: {what}; last: {last}")


def canary_image(container: str) -> None:
    """An empty image; its containers borrow the host's /usr, Python included."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for folder in ("usr", "tmp"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name in ("bin", "lib", "lib64"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(entry)
    on(container, "docker", "import", "-", IMAGE, stdin=archive.getvalue())


def canary(container: str, *options: str, command: tuple[str, ...] = (), name: str = "canary") -> None:
    """Start a container of the canary image in the background; by default it serves HTTP on 8000."""
    on(container, "docker", "rm", "-f", name, check=False)
    serve = command or ("python3", "-m", "http.server", "8000", "--bind", "::")
    on(container, "docker", "run", "-d", "--name", name, "-v", "/usr:/usr:ro", *options, IMAGE, *serve)
