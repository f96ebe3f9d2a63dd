"""What it costs to watch the lab, and how fast the page is."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Mapping

from playwright.sync_api import Page, sync_playwright
from ray_lab import ROOT, Lab

HEAD = "https://172.30.84.10"
PROJECTS = ("prometheus", "alertmanager", "node_exporter", "gateway", "celery_redis", "celery_metrics")
# Of these projects only what watches: Redis itself is no part of it.
NOT_COUNTED = "celery_redis-redis-1"
IDLE, LOADS = 120, 20
LOADED = """() => {
  const files = performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation'));
  return files.reduce((sum, file) => sum + file.transferSize, 0);
}"""


def watchers(lab: Lab) -> list[str]:
    """The containers on the head that are there to watch."""
    names = lab.on("head", "docker", "ps", "--format", "{{.Names}}").split()
    return sorted(name for name in names if name.rsplit("-", 2)[0] in PROJECTS and name != NOT_COUNTED)


def processor(lab: Lab, containers: list[str]) -> dict[str, float]:
    """Seconds of CPU that the processes of each container took so far."""
    taken = {}
    for name in containers:
        pids = lab.on("head", "docker", "top", name, "-eo", "pid").split()[1:]
        files = lab.on("head", "cat", *(f"/proc/{pid}/stat" for pid in pids)).splitlines()
        taken[name] = sum(sum(map(int, line.rpartition(")")[2].split()[11:13])) for line in files) / 100
    return taken


def memory(lab: Lab, containers: list[str]) -> dict[str, float]:
    """MiB that each uses."""
    form = "{{.Name}} {{.MemUsage}}"
    lines = lab.on("head", "docker", "stats", "--no-stream", "--format", form, *containers).splitlines()
    return {name: float(used.removesuffix("MiB")) for name, used, *_ in map(str.split, lines)}


def log_in(page: Page) -> None:
    page.goto(f"{HEAD}/")
    page.fill("[name=user]", "admin")
    page.fill("[name=password]", (ROOT / ".secrets/lab/gateway_admin_password").read_text().split()[0])
    page.click("button")
    page.wait_for_selector("#hosts tbody tr")


def load(page: Page) -> tuple[float, int]:
    """Milliseconds until the page shows its hosts, and bytes of its files and first figures; nothing is cached."""
    begin = time.perf_counter()
    page.goto(f"{HEAD}/", wait_until="commit")
    page.wait_for_selector("#hosts tbody tr")
    return (time.perf_counter() - begin) * 1000, page.evaluate(LOADED)


def watched() -> Mapping[str, object]:
    """The page in Chromium, a worker's death on it, and what Prometheus, Alertmanager, gateway and exporters take."""
    lab = Lab("lab")
    names = watchers(lab)
    before = processor(lab, names)
    time.sleep(IDLE)
    after = processor(lab, names)
    share = {name: round(100 * (after[name] - before[name]) / IDLE, 2) for name in names}
    used = memory(lab, names)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--no-proxy-server"]
        )
        page = browser.new_context(ignore_https_errors=True).new_page()
        log_in(page)
        page.context.new_cdp_session(page).send("Network.setCacheDisabled", {"cacheDisabled": True})
        loads = [load(page) for _ in range(LOADS)]
        died = time.monotonic()
        subprocess.run(
            ["docker", "exec", "lab-server2", "docker", "stop", "-t", "1", "ray_worker-worker-1-1"],
            check=True, capture_output=True,
        )  # fmt: skip
        try:
            page.wait_for_selector("#ray dd.critical", timeout=60_000)
            seen = time.monotonic() - died
        finally:
            subprocess.run(
                ["docker", "exec", "lab-server2", "docker", "start", "ray_worker-worker-1-1"],
                check=True, capture_output=True,
            )  # fmt: skip
        browser.close()
    return {
        "page: milliseconds": round(statistics.median(took for took, _ in loads)),
        "page: kB": round(max(size for _, size in loads) / 1000, 1),
        "a worker's death on the page: seconds": round(seen, 1),
        "percent of a core, idle": share,
        "Prometheus: percent of a core": share["prometheus-prometheus-1"],
        "MiB": used,
        "MiB in all": round(sum(used.values())),
    }
