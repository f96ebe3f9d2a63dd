"""Ray Serve as this cluster runs it: its door is on the head and on loopback, where the gateway finds it."""

from __future__ import annotations

import os

PORT = 8000


def port() -> int:
    """Of Serve's HTTP on the head."""
    return int(os.environ.get("MUSTER_SERVE_PORT", PORT))


def start(at: int | None = None) -> None:
    """Start Serve where it does not run yet; the one that runs keeps its port."""
    from ray import serve

    serve.start(http_options={"host": "127.0.0.1", "port": at or port()}, proxy_location="HeadOnly")
