"""The status page in a real browser: login, live figures, a node that goes away, an alert, a phone, and no Prometheus.

What it looked like is kept in reports/.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))
from celery_lab import secret
from ray_lab import ROOT, Lab, until

LAB = Lab("cluster")
URL = "https://172.30.90.10"
PICTURES = ROOT / "reports"
WORKER = "ray_worker-worker-1-1"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; it does not know the lab's authority."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--no-proxy-server"]
        )
        yield browser
        browser.close()


@pytest.fixture
def errors() -> list[str]:
    """What the browser complained about."""
    return []


@pytest.fixture
def page(browser: Browser, errors: list[str]) -> Iterator[Page]:
    context = browser.new_context(ignore_https_errors=True, viewport={"width": 1280, "height": 900})
    yield logged_in(context, errors)
    context.close()


def logged_in(context: BrowserContext, errors: list[str]) -> Page:
    page = context.new_page()
    page.goto(f"{URL}/")
    # From here on: the question for a login is an error to the browser.
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.fill("[name=user]", "admin")
    page.fill("[name=password]", secret("gateway_admin_password"))
    page.click("button")
    expect(page.locator("#hosts tbody tr")).to_have_count(4, timeout=20_000)
    return page


def picture(page: Page, name: str) -> None:
    PICTURES.mkdir(exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


def row(page: Page, host: str) -> list[str]:
    """The cells of a host."""
    return page.locator("#hosts tbody tr", has_text=host).locator("td").all_inner_texts()


def test_a_wrong_password_stays_outside(browser: Browser) -> None:
    page = browser.new_context(ignore_https_errors=True).new_page()
    page.goto(f"{URL}/flower/")
    page.fill("[name=user]", "admin")
    page.fill("[name=password]", "guessed it")
    page.click("button")
    expect(page.get_by_role("alert")).to_be_visible()
    picture(page, "login")
    assert "/gate/login" in page.url
    page.context.close()


def test_the_page_shows_the_cluster(page: Page, errors: list[str]) -> None:
    until(
        120, "all is well", lambda: page.inner_text("#verdict") == "All is well" or not print(page.inner_text("main"))
    )
    for host in ("head", "server1", "server2", "laptop1"):
        name, state, cpu, memory, disk, *_ = row(page, host)
        assert host in name and state == "ready" and all(cell.endswith(" %") for cell in (cpu, memory, disk)), row(
            page, host
        )
    assert "4 of 4" in page.inner_text("#ray") and "kept" in page.inner_text("#celery")
    assert page.locator("#celery tbody tr").count() == 3
    picture(page, "page")
    assert not errors, errors


def test_it_fits_a_phone_and_the_dark(browser: Browser, errors: list[str]) -> None:
    context = browser.new_context(
        ignore_https_errors=True, viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True
    )
    page = logged_in(context, errors)
    wide, shown = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide <= shown, "it scrolls sideways"
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(int(part) for part in dark.removeprefix("rgb(").removesuffix(")").split(",")) < 150, dark
    picture(page, "page-phone-dark")
    context.close()


def test_the_other_pages_open_without_another_login(page: Page) -> None:
    names = {}
    for link in page.locator("#pages a").all():
        names[link.inner_text()] = link.get_attribute("href")
    assert set(names) == {"Ray", "Flower", "Prometheus"}
    for name, words in {"Ray": "Cluster", "Flower": "Online workers", "Prometheus": "Alerts"}.items():
        page.goto(f"{URL}{names[name]}")
        expect(page.locator("body")).to_contain_text(words, ignore_case=True, timeout=30_000)
        picture(page, f"page-{name.lower()}")


@pytest.mark.quiet
def test_a_dead_worker_is_seen_and_its_alert_can_be_silenced(page: Page, errors: list[str]) -> None:
    LAB.on("server2", "docker", "stop", "-t", "1", WORKER)
    start = time.monotonic()
    try:
        expect(page.locator("#ray")).to_contain_text("3 of 4", timeout=60_000)
        print(f"a worker's death is on the page after {time.monotonic() - start:.1f} s")
        alert = page.locator("#firing li", has_text="server2/worker-1")
        expect(alert).to_contain_text("is in the inventory and not in the cluster", timeout=150_000)
        expect(page.locator("#verdict")).to_contain_text("alert")
        picture(page, "page-alert")
        alert.get_by_role("button").click()
        silence = page.locator("#silences li", has_text="RayWorkerMissing")
        expect(silence).to_contain_text("status page", timeout=20_000)
        silence.get_by_role("button", name="End").click()
        expect(silence).to_have_count(0, timeout=20_000)
    finally:
        LAB.on("server2", "docker", "start", WORKER)
    # Others may fire: the drill before this one left containers that had to start often.
    expect(alert).to_have_count(0, timeout=180_000)
    assert not errors, errors


def test_without_prometheus_it_says_how_old_it_is(page: Page) -> None:
    container = "prometheus-prometheus-1"
    LAB.on("head", "docker", "stop", "-t", "5", container)
    try:
        expect(page.locator("#verdict")).to_have_text("No answer from Prometheus", timeout=30_000)
        expect(page.locator("#age")).to_contain_text("old", timeout=30_000)
        assert row(page, "server1"), "what was known stays"
        picture(page, "page-without-prometheus")
    finally:
        LAB.on("head", "docker", "start", container)
    expect(page.locator("#age")).to_have_text("as of now", timeout=60_000)
