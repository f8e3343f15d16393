"""The pages in a real browser, at two widths: no error in the console, and nothing is asked of another host."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from tests.support import Api, free_port, platform_process, unavailable, wait_until
from urlhealth.alerts.rules import AlertFile
from urlhealth.platform import Platform
from urlhealth.probing.urls import parse_target
from urlhealth.settings import Settings
from urlhealth.vocabulary import Outcome, ProbeResult

HOUR_MS = 3_600_000
URL = "https://shop.example/checkout"
WIDTHS = {"wide": 1280, "phone": 375}
PAGES = {
    "overview": "/",
    "url": f"/ui/url?url={quote(URL, safe='')}",
    "tasks": "/ui/tasks",
    "monitors": "/ui/monitors",
    "alerts": "/ui/alerts",
    "models": "/ui/models",
    "promote": "/ui/models/change?to=1",
    "features": "/ui/features",
    "status": "/status",
    "login": "/login",
    "api": "/docs",
}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright."""
    path = shutil.which("chromium")
    if path is None:
        unavailable("chromium is not installed: apt-get install chromium")
    with sync_playwright() as driver:
        # Root, as containers are, has no sandbox.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A running platform with a day of history, monitors, a channel."""
    home = tmp_path_factory.mktemp("home")
    now_ms = time.time_ns() // 1_000_000
    with closing(Platform(Settings(home=home, mlflow_tracking_uri=""))) as platform:
        platform.open(check=False)
        for url, bad in ((URL, {7, 8, 19}), ("https://blog.example/", set[int]())):
            target = parse_target(url)
            for hour in range(24):
                result = ProbeResult(
                    target=target.key,
                    ts_ms=now_ms - (24 - hour) * HOUR_MS,
                    outcome=Outcome.TIMEOUT if hour in bad else Outcome.OK,
                    dns_ms=3.0,
                    connect_ms=12.0,
                    tls_ms=20.0,
                    first_byte_ms=None if hour in bad else 40.0 + hour,
                    total_ms=None if hour in bad else 90.0 + hour,
                    error="no answer" if hour in bad else None,
                )
                platform.crawl.import_probes([(target, result)])
            platform.crawl.create_monitor(url, interval_s=86_400, tags=("prod",))
        hook = {"name": "hook", "url": f"http://127.0.0.1:{free_port()}/", "secret": "a secret of sixteen"}
        rule = {"name": "down", "kind": "state", "channels": ["hook"]}
        platform.alerts.apply(AlertFile.model_validate({"channels": [hook], "rules": [rule]}))
    with platform_process(home, URLHEALTH_STATUS_PAGE="1") as (running, _):
        forecasts = "/api/v1/predictions"
        wait_until(lambda: running.http.get(forecasts).json()["items"], timeout_s=90, what="a forecast of each URL")
        running.predict([URL], horizons=["24h"])
        yield running


@pytest.fixture
def page(chromium: Any, api: Api) -> Iterator[Any]:
    """A page that fails the test if its console has an error, or if it asks anything of another host."""
    context = chromium.new_context(base_url=api.url, viewport={"width": WIDTHS["wide"], "height": 800})
    page = context.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith((api.url, "data:", "blob:")) else faults.append(request.url),
    )
    yield page
    context.close()
    assert faults == []


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where photographs go: URLHEALTH_TEST_PICTURES, or a temporary folder."""
    folder = Path(os.environ.get("URLHEALTH_TEST_PICTURES") or tmp_path_factory.mktemp("pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def serious_faults(page: Any) -> list[str]:
    """What axe-core finds that would keep somebody from using the page, with where it stands.

    What Swagger UI draws is not ours: it has faults of colour and of nesting.
    """
    found = Axe().run(page, context={"exclude": [["#swagger-ui"]]}).response["violations"]
    return [
        f"{fault['id']}: {node['html'][:120]}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


@pytest.mark.parametrize("name", PAGES)
def test_each_page_opens_at_two_widths(page: Any, pictures: Path, name: str) -> None:
    for width, pixels in WIDTHS.items():
        page.set_viewport_size({"width": pixels, "height": 800})
        assert page.goto(PAGES[name]).status == 200
        page.wait_for_load_state("networkidle")
        assert page.locator("h1, h2").first.is_visible()
        if name != "api":
            # Wide tables scroll in their own box: the page itself never does.
            assert page.evaluate("document.documentElement.scrollWidth") <= pixels
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            assert serious_faults(page) == [], scheme
        page.screenshot(path=pictures / f"{name}-{width}.png", full_page=True)
        assert (pictures / f"{name}-{width}.png").stat().st_size > 5_000


def test_a_url_is_found_and_its_charts_are_drawn(page: Any) -> None:
    page.goto("/")
    page.get_by_role("link", name=URL).click()
    page.wait_for_selector("[data-chart=risk] canvas")
    page.wait_for_selector("[data-chart=phases] canvas")
    assert page.get_by_role("heading", name="Last failure").is_visible()
    assert page.locator("svg.bar rect").count() > 0
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 27)"


def test_the_keyboard_suffices_to_submit_a_task_and_watch_it(page: Any) -> None:
    page.goto("/ui/tasks")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.get_by_label("URLs to probe once").fill(f"http://127.0.0.1:{free_port()}/\n")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/ui/tasks/*")
    page.get_by_text("done: 1 of 1").wait_for()  # without reloading it by hand
    page.get_by_role("link", name="connect 1").click()
    assert page.get_by_role("cell", name="connect", exact=True).is_visible()


def test_a_monitor_is_paused_where_it_stands_and_a_channel_is_tried(page: Any) -> None:
    page.goto("/ui/monitors")
    page.get_by_label("URL has in it").fill("shop")
    page.keyboard.press("Enter")
    page.get_by_role("button", name=f"Pause {URL}").click()
    page.get_by_role("button", name=f"Resume {URL}").click()
    page.get_by_role("button", name=f"Pause {URL}").wait_for()
    page.goto("/ui/alerts")
    page.get_by_role("button", name="Test hook").click()
    page.get_by_role("status").filter(has_text="connect").wait_for()


def test_monitors_that_are_ticked_or_found_are_changed_together(page: Any) -> None:
    page.goto("/ui/monitors")
    page.get_by_label(f"Change {URL}").check()
    page.get_by_label("to", exact=True).select_option("pause")
    page.get_by_role("button", name="Change", exact=True).click()
    page.get_by_text("1 changed.").wait_for()
    assert page.get_by_role("button", name=f"Resume {URL}").is_visible()
    page.get_by_label("all there are").check()
    page.get_by_label("to", exact=True).select_option("resume")
    page.get_by_role("button", name="Change", exact=True).click()
    page.get_by_text("2 changed.").wait_for()
    assert page.get_by_role("button", name=f"Pause {URL}").is_visible()


def test_features_of_a_url_stand_among_all(page: Any) -> None:
    page.goto(PAGES["url"])
    page.get_by_text("features, now").click()
    assert page.get_by_role("columnheader", name="Percentile among all").is_visible()
