"""What is told of a URL over HTTP, over a real platform in a folder of its own."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serving.app import create_app
from serving.schemas import UrlHistory
from urlhealth.platform import Platform
from urlhealth.probing.urls import parse_target
from urlhealth.settings import Settings
from urlhealth.vocabulary import Outcome, ProbeResult, Target

NOW_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
URL = "https://a.example/x?b=1&c=//"
PATH = "/api/v1/url"


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with Platform(Settings(home=tmp_path, mlflow_tracking_uri=""), clock=lambda: NOW_MS) as opened:
        yield opened


@pytest.fixture
def http(platform: Platform) -> Iterator[TestClient]:
    with TestClient(create_app(platform), raise_server_exceptions=False) as client:
        yield client


def stored(platform: Platform, *found: tuple[int, Outcome], url: str = URL, name: str | None = None) -> Target:
    """Probes so many minutes ago, rolled up."""
    target = parse_target(url, name=name)
    platform.crawl.import_probes(
        (target, ProbeResult(target=target.key, ts_ms=NOW_MS - 60_000 * minutes, outcome=outcome, total_ms=80.0))
        for minutes, outcome in found
    )
    with platform.lease.kept():
        platform.rollups.step(lease=platform.lease)
    return target


def get(http: TestClient, path: str = "", **params: Any) -> Any:
    reply = http.get(PATH + path, params={"url": URL} | params)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_the_state(http: TestClient, platform: Platform) -> None:
    stored(platform, (180, Outcome.OK), (60, Outcome.CONNECT))
    assert get(http) == {
        "target": URL,
        "group": "a.example",
        "state": "down",
        "since": "2025-12-31T23:00:00.000Z",
        "uptime": dict.fromkeys(("24h", "7d", "30d", "1y"), pytest.approx(2 / 3)),
        "degraded": False,
        "last": {
            "timestamp": "2025-12-31T23:00:00.000Z",
            "outcome": "connect",
            "status_code": None,
            "dns_ms": None,
            "connect_ms": None,
            "tls_ms": None,
            "first_byte_ms": None,
            "total_ms": 80.0,
            "error": None,
        },
    }


def test_a_slow_answer_is_up_and_degraded(http: TestClient, platform: Platform) -> None:
    target = stored(platform, *((minutes, Outcome.OK) for minutes in range(20, 2, -1)))
    slow = ProbeResult(target=target.key, ts_ms=NOW_MS - 60_000, outcome=Outcome.OK, total_ms=900.0)
    platform.crawl.import_probes([(target, slow)])
    platform.build_features()
    assert (get(http)["state"], get(http)["degraded"]) == ("up", True)


def test_the_history(http: TestClient, platform: Platform) -> None:
    stored(platform, *((minutes, Outcome.OK) for minutes in range(1, 121)), (30, Outcome.OK))
    history = get(http, "/history", step="1h", **{"from": "2025-12-31T20:30:00", "to": "2026-01-01T00:00:00Z"})
    assert (history["start"], history["end"], history["step_s"]) == (
        "2025-12-31T20:00:00.000Z",
        "2026-01-01T00:00:00.000Z",
        3600,
    )
    durations = {"mean_ms": 80.0, "p50_ms": pytest.approx(80, rel=0.03), "p95_ms": pytest.approx(80, rel=0.03)}
    assert history["points"] == [
        {"start": f"2025-12-31T{hour}:00:00.000Z", "outcomes": {"ok": 60}, "deviation_ms": 0.0, **durations}
        for hour in (22, 23)
    ]
    UrlHistory.model_validate(history, strict=True)


@pytest.mark.parametrize(("days", "step_s"), [(1, 300), (3, 3600), (60, 6 * 3600), (90, 86_400), (3650, 30 * 86_400)])
def test_a_step_that_fits(days: int, step_s: int, http: TestClient, platform: Platform) -> None:
    stored(platform, (1, Outcome.OK))
    start = datetime.fromtimestamp(NOW_MS / 1000 - days * 86_400, UTC).isoformat()
    assert get(http, "/history", **{"from": start})["step_s"] == step_s


def test_the_incidents(http: TestClient, platform: Platform) -> None:
    stored(platform, (9, Outcome.OK), (8, Outcome.DNS), (6, Outcome.OK), (5, Outcome.TLS))
    page = get(http, "/incidents", limit=1)
    assert page["items"] == [{"start": "2025-12-31T23:55:00.000Z", "end": None, "outcome": "tls", "phase": "tls"}]
    (older,) = get(http, "/incidents", cursor=page["next_cursor"])["items"]
    assert (older["end"], older["outcome"]) == ("2025-12-31T23:54:00.000Z", "dns")


def test_a_name_means_a_target_of_its_own(http: TestClient, platform: Platform) -> None:
    stored(platform, (1, Outcome.OK))
    stored(platform, (2, Outcome.CONDITION), name="shop")
    assert get(http)["state"] == "up"
    assert (get(http, name="shop")["target"], get(http, name="shop")["state"]) == (f"{URL}#shop", "down")


@pytest.mark.parametrize(
    ("path", "params", "status"),
    [
        ("", {"url": "https://never.example"}, 404),
        ("", {"url": "ftp://a.example"}, 422),
        ("", {}, 422),
        ("/history", {"url": URL, "step": "0m"}, 422),
        ("/history", {"url": URL, "step": "1s"}, 422),
        ("/history", {"url": URL, "from": "soon"}, 422),
        ("/history", {"url": URL, "to": "9999-12-31T00:00:00Z", "step": "1d"}, 422),
        ("/incidents", {"url": URL, "cursor": "x"}, 422),
    ],
)
def test_what_cannot_be_told(
    path: str, params: dict[str, str], status: int, http: TestClient, platform: Platform
) -> None:
    stored(platform, (1, Outcome.OK))
    reply = http.get(PATH + path, params=params)
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/problem+json")
