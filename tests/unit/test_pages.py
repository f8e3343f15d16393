"""The pages without a browser: what they say, and that each list goes on where the page before ended."""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from serving.app import create_app
from serving.routes import pages, ui_monitors
from tests.support import noise_forecaster
from urlhealth.alerts.rules import AlertFile
from urlhealth.crawl.keys import Scope
from urlhealth.crawl.overview import upcoming
from urlhealth.features.catalog import VECTOR
from urlhealth.features.drift import compare
from urlhealth.platform import Platform
from urlhealth.prediction.champion import Champion
from urlhealth.prediction.drift import save as save_drift
from urlhealth.prediction.quality import Bin, LiveFigures, LiveQuality
from urlhealth.probing.urls import parse_target
from urlhealth.settings import Settings
from urlhealth.vocabulary import LOCAL_OWNER, Attempt, Freshness, Health, Maintenance, Outcome, ProbeResult

NOW_MS = 1_767_225_600_000
HOUR_MS = 3_600_000
URLS = [f"https://h{i}.example/?q={i}&<b>" for i in range(3)]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Three monitored targets with a day of probes; the last one is down."""
    settings = Settings(home=tmp_path_factory.mktemp("home"), mlflow_tracking_uri="", status_page=True)
    with closing(Platform(settings, clock=lambda: NOW_MS)) as opened:
        opened.open(check=False)
        opened.champion.current = Champion(name="url-health", version="7", forecaster=noise_forecaster())
        opened.lease.acquire()
        for i, url in enumerate(URLS):
            opened.crawl.create_monitor(url, interval_s=60, tags=("even",) if i % 2 == 0 else ())
            for hour in range(24):
                opened.crawl.import_probes([(parse_target(url), probed(url, hour, failing=i == 2 and hour > 20))])
        while opened.pipeline.step():
            pass
        opened.roll_up()
        opened.lease.acquire()
        while opened.rescorer.step():
            pass
        yield opened


def probed(url: str, hour: int, *, failing: bool) -> ProbeResult:
    ts_ms = NOW_MS - (24 - hour) * HOUR_MS
    attempts = (Attempt(ts_ms=ts_ms, outcome=Outcome.TIMEOUT, error="<no answer>"),) * 2 if failing else ()
    return ProbeResult(
        target=parse_target(url).key,
        ts_ms=ts_ms,
        outcome=Outcome.TIMEOUT if failing else Outcome.OK,
        dns_ms=1.0,
        connect_ms=2.0,
        total_ms=None if failing else 30.0,
        error="<no answer>" if failing else None,
        attempts=attempts,
    )


@pytest.fixture
def http(platform: Platform) -> TestClient:
    """A client of the application."""
    return TestClient(create_app(platform), follow_redirects=True)


def targets(text: str) -> list[str]:
    return re.findall(r"https://h\d\.example/(?=\?q=\d&amp;&lt;b&gt;|\?q)", text)


@pytest.mark.parametrize(
    "path", ["/", "/ui/tasks", "/ui/monitors", "/ui/alerts", "/ui/models", "/ui/features", "/status", "/ui/url?url=x"]
)
def test_no_page_has_script_of_its_own_or_loads_from_elsewhere(http: TestClient, path: str) -> None:
    page = http.get(path)
    assert page.status_code == (422 if path.endswith("url=x") else 200)
    assert "script-src" not in page.headers["content-security-policy"]
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert not re.search(r"<script(?![^>]* src=)|\son\w+=|style=", page.text)
    for loaded in re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="([^"]+)"', page.text):
        assert loaded.startswith("/")
        assert http.get(loaded).status_code == 200


def test_the_overview_counts_and_is_paged(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MAX_ROWS", 2)
    first = http.get("/").text
    assert re.search(r'<dd class="down">1</dd>', first)
    cursor = re.search(r'href="(\?cursor=[^"]+)"', first)
    assert cursor is not None
    second = http.get(f"/{cursor[1]}").text
    seen = [re.findall(r"/ui/url\?url=https%3A%2F%2F(h\d)", text) for text in (first, second)]
    assert (len(seen[0]), len(seen[1]), len({*seen[0], *seen[1]})) == (2, 1, 3)


def test_the_overview_shows_what_is_up_or_down_alone(http: TestClient) -> None:
    shown = {now: set(re.findall(r"/ui/url\?url=https%3A%2F%2F(h\d)", http.get(f"/?now={now}").text)) for now in Health}
    assert shown == {Health.UP: {"h0", "h1"}, Health.DOWN: {"h2"}, Health.UNKNOWN: set()}


def test_the_overview_says_how_risk_has_moved_and_whether_it_was_so(platform: Platform) -> None:
    row = pages.Row(
        target="t", url="u", health=Health.UP, freshness=Freshness.FRESH, age_s=1.0, simulated=False,
        trail=(None, 0.1, None, 0.5),
    )  # fmt: skip
    assert (row.trend, row.points) == ("rising, from 10.0 %", "4,18.0 12,10.0")
    bins = [Bin(low=0, high=0.5, n=3, predicted=0.1, observed=0), Bin(low=0.5, high=1, n=1, predicted=0.7, observed=1)]
    figures = LiveFigures(
        model_version="7", horizon="24h", n=4, unknown=0, base_rate=0.3, average_precision=1, brier=0, reliability=bins
    )
    champion = platform.champion.current
    assert champion is not None
    try:
        platform.live_quality = LiveQuality(from_ms=0, to_ms=1, every=1, figures=[figures])
        platform.champion.current = replace(champion, trained_ms=NOW_MS)
        page = TestClient(create_app(platform)).get("/").text
    finally:
        platform.live_quality, platform.champion.current = None, champion
    assert "<dd>said 25.0 %, came 30.0 %</dd>" in page
    assert "<dt>last training (UTC)</dt><dd>2026-01-01 00:00</dd>" in page
    assert "said" not in TestClient(create_app(platform)).get("/").text


def test_a_url_says_why_and_what_failed_last(http: TestClient) -> None:
    page = http.get("/ui/url", params={"url": URLS[2]}).text
    assert page.count("&lt;no answer&gt;") == 3  # the failure and its two attempts
    assert '<dd class="down">down</dd>' in page
    assert re.search(r'<rect class="(worse|better)"', page)
    assert "<no answer>" not in page
    assert http.get("/ui/url", params={"url": "https://nowhere.example/"}).status_code == 404


def test_a_url_says_where_its_features_stand_among_all(http: TestClient, platform: Platform) -> None:
    vectors = platform.predictor.features(URLS)
    for vector in vectors:
        assert vector.values is not None
        found = platform.ranks.percentiles(vector.values, owner=LOCAL_OWNER)
        for name, percentile in found.items():
            others = [each.values[name] for each in vectors if each.values and not math.isnan(each.values[name])]
            mine = vector.values[name]
            below, same = sum(each < mine for each in others), sum(each == mine for each in others)
            expected = None if math.isnan(mine) else 100 * (below + same / 2) / len(others)
            assert percentile == pytest.approx(expected, abs=1e-9)
    page = http.get("/ui/url", params={"url": URLS[2]}).text
    assert re.search(r'<code>failing_now</code></td><td>.*?</td><td class="number">83</td>', page)
    assert platform.overview.some_targets(limit=2) != []
    assert len(platform.overview.some_targets(limit=2)) <= 2


def test_the_features_say_how_far_they_moved_and_whether_the_stores_agree(http: TestClient, platform: Platform) -> None:
    assert http.get("/ui/features").text.count("not compared") == 2
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(2, 300, len(VECTOR))).astype(np.float32)
    drawn[1, :, 0] += 3
    save_drift(compare(drawn[0], drawn[1]), platform.settings.drift_file)
    assert platform.check_features().ok
    try:
        page = http.get("/ui/features").text
    finally:
        platform.settings.drift_file.unlink()
        platform.settings.consistency_file.unlink()
    assert f'<code>{VECTOR[0].name}</code></td>\n<td class="number down">' in page
    assert page.count('class="number down"') == 1
    assert '<span class="up">agree</span>' in page
    assert "Online against offline store" in page


def test_past_forecasts_are_told_with_what_happened(http: TestClient, platform: Platform) -> None:
    served = platform.predictor.predict([URLS[2]], horizons=["24h"])
    platform.log_predictions("r", served, owner="local")
    platform.prediction_log.write()
    page = http.get("/ui/url", params={"url": URLS[2]}).text
    assert "Past forecasts" in page
    assert "<td>failed</td>" in page


def test_tasks_are_submitted_watched_and_filtered(http: TestClient, platform: Platform) -> None:
    bad = http.post("/ui/tasks", content="urls=https%3A%2F%2Fa.example%0Anot+a+url")
    assert (bad.status_code, "line 2" in bad.text) == (422, True)
    page = http.post("/ui/tasks", content="urls=https%3A%2F%2Fa.example%0D%0A%0D%0Ahttps%3A%2F%2Fb.example")
    task_id = page.url.path.rsplit("/", 1)[1]
    assert (page.status_code, platform.crawl.task(task_id).total) == (200, 2)
    assert 'hx-trigger="every 1s"' in page.text
    assert "0 of 2" in http.get(f"/ui/tasks/{task_id}/progress").text
    platform.crawl.cancel_task(task_id)
    done = http.get(f"/ui/tasks/{task_id}/progress")
    assert (done.headers["hx-refresh"], "hx-trigger" in done.text) == ("true", False)
    assert task_id in http.get("/ui/tasks").text
    assert http.get("/ui/tasks/none").status_code == 404


def test_monitors_are_searched_paged_and_paused(
    http: TestClient, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert http.get("/ui/monitors?tag=even").text.count("/pause") == 2
    assert http.get("/ui/monitors?search=h1.ex").text.count("/pause") == 1
    assert "There is none like that" in http.get("/ui/monitors?search=h_.ex").text
    monkeypatch.setattr(ui_monitors, "ROWS", 2)
    cursor = re.search(r'rel="next" href="([^"]+)"', http.get("/ui/monitors").text)
    assert cursor is not None
    assert http.get(f"/ui/monitors{cursor[1].replace('&amp;', '&')}").text.count("/pause") == 1
    monitor = platform.overview.monitors(limit=1).items[0].monitor
    assert "Resume" in http.post(f"/ui/monitors/{monitor.monitor_id}/pause").text
    assert platform.crawl.monitor(monitor.monitor_id).paused
    assert "Pause" in http.post(f"/ui/monitors/{monitor.monitor_id}/resume").text


def test_monitors_are_changed_by_selection(http: TestClient, platform: Platform) -> None:
    ids = [row.monitor.monitor_id for row in platform.overview.monitors(limit=3).items]

    def what(**form: object) -> tuple[int, str]:
        reply = http.post("/ui/monitors/change", data=form)
        return reply.status_code, reply.text

    def now() -> list[tuple[bool, int, tuple[str, ...]]]:
        found = [platform.crawl.monitor(each) for each in ids]
        return [(each.paused, each.interval_s, each.tags) for each in found]

    before = now()
    assert "1 changed." in what(id=ids[1:2], what="pause")[1]
    assert [paused for paused, _, _ in now()] == [False, True, False]
    assert "1 changed." in what(which="all", search="h1.ex", what="resume")[1]
    assert "2 changed." in what(which="all", tag="even", what="interval", value="120")[1]
    assert [interval_s for _, interval_s, _ in now()] == [120, 60, 120]
    assert "1 changed." in what(id=ids[1], what="tags", value="shop, eu")[1]
    assert now()[1][2] == ("shop", "eu")
    for wrong in ({"what": "pause"}, {"what": "interval", "value": "1", "id": ids}, {"what": "melt", "id": ids}):
        assert what(**wrong)[0] == 422
    assert "3 changed." in what(which="all", what="budget", value="2")[1]
    assert "<h2>Adaptive budgets</h2>" in http.get("/ui/monitors").text
    assert "3 changed." in what(which="all", what="interval", value="60")[1]
    assert "1 changed." in what(id=ids[1], what="tags")[1]
    assert now() == before


def test_alerts_show_no_secret_and_channels_are_tried(http: TestClient, platform: Platform) -> None:
    hook = {"name": "hook", "url": "http://user:pass@127.0.0.1:9/token", "secret": "a secret of sixteen"}
    rule = {"name": "down", "kind": "state", "channels": ["hook"]}
    platform.alerts.apply(AlertFile.model_validate({"channels": [hook], "rules": [rule]}))
    for text in (http.get("/ui/alerts").text, http.get("/api/v1/alerts/rules").text):
        assert "hook" in text
        assert not re.search("token|pass|a secret", text)
    assert "loopback" in http.post("/ui/alerts/test", content="channel=hook").text
    assert http.post("/api/v1/alerts/test", json={"channel": "hook"}).json()["sent"] is False
    assert http.post("/api/v1/alerts/test", json={"channel": "none"}).status_code == 404
    assert http.delete("/api/v1/alerts/channels/hook").status_code == 422
    body = {"channels": [hook], "rules": [rule | {"of": 9}]}
    assert http.put("/api/v1/alerts/rules", json=body).json() == {"created": [], "changed": ["down"], "deleted": []}
    assert http.get("/api/v1/alerts", params={"open": True}).json() == {"items": [], "next_cursor": None}
    assert http.get("/api/v1/alerts/dead-letters").json() == {"items": [], "next_cursor": None}
    assert http.post("/api/v1/alerts/dead-letters/none/retry").status_code == 404
    assert http.delete("/api/v1/alerts/rules/down").status_code == 204
    assert http.delete("/api/v1/alerts/channels/hook").status_code == 204


def test_badges_and_the_feed_are_xml(http: TestClient, platform: Platform) -> None:
    down = platform.overview.target_id(URLS[2])
    for show, value in (("state", "down"), ("uptime", "%"), ("risk", "%")):
        badge = http.get(f"/badge/{down}.svg", params={"show": show})
        assert badge.headers["content-type"].startswith("image/svg+xml")
        assert value in str(ET.fromstring(badge.content).get("aria-label"))
    assert http.get("/badge/999.svg").status_code == 404
    feed = ET.fromstring(http.get("/status.rss").content)
    assert [item.findtext("title") for item in feed.iter("item")] == [f"{parse_target(URLS[2]).key} is down"]


def test_the_status_page_must_be_switched_on(tmp_path: Path, http: TestClient) -> None:
    assert "1 of 3 are down" in http.get("/status").text
    assert "1 of 2 are down" in http.get("/status?tag=even").text
    with closing(Platform(Settings(home=tmp_path, mlflow_tracking_uri=""))) as off:
        off.open(check=False)
        client = TestClient(create_app(off))
        assert client.get("/status").status_code == client.get("/status.rss").status_code == 404


def test_maintenance_that_comes_again_is_found_on_its_next_day() -> None:
    day = 24 * HOUR_MS
    window = Maintenance(start_ms=0, end_ms=HOUR_MS, every_ms=day)
    assert upcoming(window, HOUR_MS // 2, within_ms=day) == (0, HOUR_MS)
    assert upcoming(window, HOUR_MS, within_ms=day) == (day, day + HOUR_MS)
    assert upcoming(window, 10 * day + 2 * HOUR_MS, within_ms=day) == (11 * day, 11 * day + HOUR_MS)
    assert upcoming(window, 2 * HOUR_MS, within_ms=HOUR_MS) is None
    assert upcoming(Maintenance(start_ms=0, end_ms=1), 1, within_ms=day) is None


def test_who_is_logged_in_can_log_out(tmp_path: Path) -> None:
    with closing(Platform(Settings(home=tmp_path, mlflow_tracking_uri=""))) as own:
        own.open(check=False)
        _, secret = own.keys.create("me", scopes=[Scope.READ])
        client = TestClient(create_app(own), headers={"accept": "text/html"})
        assert "Log out" not in client.get("/login").text
        assert "Log out" in client.post("/login", data={"key": secret}).text
        assert client.post("/logout").url.path == "/login"
        assert client.get("/").url.path == "/login"


def test_the_pace_is_that_of_the_last_minute(tmp_path: Path) -> None:
    with closing(Platform(Settings(home=tmp_path, mlflow_tracking_uri=""), clock=lambda: NOW_MS)) as own:
        own.open(check=False)
        assert own.overview.probes_per_s() == 0
        old, new = (
            [(parse_target(URLS[0]), replace(probed(URLS[0], 0, failing=False), ts_ms=ts_ms)) for ts_ms in times]
            for times in (range(NOW_MS - HOUR_MS, NOW_MS - HOUR_MS + 500), range(NOW_MS - 10_000, NOW_MS, 10))
        )
        own.crawl.import_probes([*old, *new[:120]])
        assert own.overview.probes_per_s() == 120 / 60
        own.crawl.import_probes(new[120:])
        assert own.overview.probes_per_s() == pytest.approx(1000 / 10)
