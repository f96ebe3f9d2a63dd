"""Runs where Ray is installed: a head without CPUs and one worker on one machine; prints what they do per second."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start one Ray node; it lives as long as the process that is given back (`ray stop` would end everybody's)."""
    return subprocess.Popen(
        ["ray", "start", "--block", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def connect(address: str, nodes: list[subprocess.Popen[bytes]]) -> None:
    """Become a driver of the cluster once both of its nodes are there."""
    import ray

    end = time.monotonic() + 120
    while True:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            if ray.cluster_resources().get("CPU"):
                return
            ray.shutdown()
        except (ConnectionError, RuntimeError, ValueError):
            if time.monotonic() > end:
                raise
        if any(node.poll() is not None for node in nodes):
            raise SystemExit("a Ray node ended at its start: is another program on its ports (26379, 26399)?")
        time.sleep(1)


def rate(count: int, work: Callable[[], object], repeats: int = 5) -> float:
    """Median rate of a piece of work that counts for `count`, after one run to warm up."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return count / statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tls", help="folder with ca.crt, host.crt and host.key")
    parser.add_argument("--address", default="127.0.0.1", help="address of this machine that the certificate names")
    options = parser.parse_args()
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "bench-" * 6, "RAY_USAGE_STATS_ENABLED": "0"}
    if options.tls:
        os.environ |= {
            "RAY_USE_TLS": "1",
            "RAY_TLS_CA_CERT": f"{options.tls}/ca.crt",
            "RAY_TLS_SERVER_CERT": f"{options.tls}/host.crt",
            "RAY_TLS_SERVER_KEY": f"{options.tls}/host.key",
        }
    import ray

    address = options.address
    nodes = [
        start(["--head", "--port=26379", f"--node-ip-address={address}", "--num-cpus=0", "--include-dashboard=false",
               "--object-store-memory=400000000", "--ray-client-server-port=26399"]),
    ]  # fmt: skip
    try:
        time.sleep(5)
        nodes.append(
            start([f"--address={address}:26379", f"--node-ip-address={address}", "--num-cpus=2",
                   "--object-store-memory=800000000"])
        )  # fmt: skip
        connect(f"{address}:26379", nodes)

        @ray.remote  # type: ignore[untyped-decorator, unused-ignore]
        def count(limit: int) -> int:
            total = 0
            for number in range(limit):
                total += number
            return total

        @ray.remote  # type: ignore[untyped-decorator, unused-ignore]
        def make(size: int) -> bytes:
            return b"x" * size

        figures = {
            "hello tasks/s (20 of 1,000,000 iterations)": rate(
                20, lambda: ray.get([count.remote(1_000_000) for _ in range(20)]), repeats=25
            ),
            "no-op tasks/s": rate(2000, lambda: ray.get([count.remote(0) for _ in range(2000)])),
            "MB/s from worker to driver's node": rate(
                200, lambda: ray.get([make.remote(50_000_000) for _ in range(4)])
            ),
        }
        json.dump(figures, sys.stdout)
    finally:
        ray.shutdown()
        for node in reversed(nodes):
            node.terminate()
            node.wait(60)


if __name__ == "__main__":
    main()
