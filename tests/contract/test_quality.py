"""How good what was served has been: the log joined with the spells, on every backend."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from starlette.testclient import TestClient

from models.labels import Timelines
from serving.app import create_app
from tests.support import forecasts_of, noise_forecaster
from urlhealth.platform import Platform
from urlhealth.prediction.champion import Champion
from urlhealth.prediction.quality import outcomes
from urlhealth.probing.urls import parse_target
from urlhealth.settings import Settings
from urlhealth.vocabulary import HORIZONS, LOCAL_OWNER, Freshness, Health, Outcome, Prediction, ProbeResult, Served

NOW_MS = 1_767_225_600_000
HOUR_MS = 3_600_000
KNOWN_FOR_S = 172_800.0
TARGETS = 12
QUALITY = "/api/v1/models/url-health/quality"


@pytest.fixture(scope="module")
def verdicts() -> list[list[tuple[int, Outcome]]]:
    """Of each target over 12 days: steady, flapping, rarely probed, silent for days, blocked now and then."""
    rng = np.random.default_rng(3)
    found = []
    for i in range(TARGETS):
        hours = np.cumsum(rng.exponential((0.5, 3, 20, 40)[i % 4], 3_000))
        hours = hours[hours < 12 * 24]
        kinds = [Outcome.OK, Outcome.TIMEOUT, Outcome.BLOCKED]
        outcomes = [kinds[kind] for kind in rng.choice(3, len(hours), p=(0.85, 0.1, 0.05))]
        found.append([(NOW_MS - 12 * 24 * HOUR_MS + int(h * HOUR_MS), o) for h, o in zip(hours, outcomes, strict=True)])
    return found


@pytest.fixture
def platform(tmp_path: Path, database_url: str, verdicts: list[list[tuple[int, Outcome]]]) -> Iterator[Platform]:
    settings = Settings(home=tmp_path, database_url=database_url, mlflow_tracking_uri="", known_for_s=KNOWN_FOR_S)
    with Platform(settings, clock=lambda: NOW_MS) as opened:
        opened.champion.current = Champion(name="url-health", version="2", forecaster=noise_forecaster())
        for i, of_target in enumerate(verdicts):
            target = parse_target(url(i))
            opened.crawl.import_probes(
                (target, ProbeResult(target=target.key, ts_ms=ts, outcome=o)) for ts, o in of_target
            )
        opened.roll_up()
        yield opened


def url(i: int) -> str:
    return f"https://h{i}.example/"


def predicted(i: int, horizon: str, probability: float | None, version: str) -> Prediction:
    return Prediction(
        sent_url=url(i),
        target=url(i),
        horizon=horizon,
        probability=probability,
        probability_at_end=probability,
        status=Freshness.FRESH,
        health=Health.UP,
        age_s=1.0,
        observed_ms=1,
        model="url-health",
        model_version=version,
    )


def log(platform: Platform, answers: Iterable[Served]) -> None:
    for answer in answers:
        platform.prediction_log.put(answer)
    platform.prediction_log.write()


@pytest.fixture
def served(platform: Platform) -> list[tuple[int, int, str, float]]:
    """What was served by version 2 (target, instant, horizon, probability), and by a shadow the opposite of it."""
    rng = np.random.default_rng(4)
    said = [
        (int(i), NOW_MS - int(ago), horizon, float(p))
        for i, ago, p in zip(
            rng.integers(0, TARGETS, 500), rng.integers(0, 13 * 24 * HOUR_MS, 500), rng.random(500), strict=True
        )
        for horizon in HORIZONS
    ]
    for version in ("2", "3"):
        log(
            platform,
            (
                Served(
                    request_id=f"r{n}",
                    owner=LOCAL_OWNER,
                    ts_ms=ts_ms,
                    forecasts=forecasts_of([predicted(i, horizon, p if version == "2" else 1 - p, version)]),
                )
                for n, (i, ts_ms, horizon, p) in enumerate(said)
            ),
        )
    never = [predicted(TARGETS + 1, "1h", None, "2")]
    log(platform, [Served(request_id="x", owner=LOCAL_OWNER, ts_ms=NOW_MS - 1, forecasts=forecasts_of(never))])
    return said


def expected(
    verdicts: Sequence[Sequence[tuple[int, Outcome]]], target: np.ndarray, t_ms: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """State, and onsets by horizon, as training has them."""
    rows = [(i, ts, {"ok": 1, "timeout": 0}.get(o.value, -1)) for i, of in enumerate(verdicts) for ts, o in of]
    of, ts_ms, health = np.array(rows, np.int64).T
    until_ms = max(ts for i, ts, known in rows if known >= 0)
    lines = Timelines.of(of, ts_ms, health.astype(np.int8), targets=TARGETS, known_for_s=KNOWN_FOR_S, until_ms=until_ms)
    return lines.failing(target, t_ms), lines.labels(target, t_ms)[:, :3]


def test_outcomes_are_the_labels_of_training(
    platform: Platform, verdicts: list[list[tuple[int, Outcome]]], served: list[tuple[int, int, str, float]]
) -> None:
    answers = platform.served.answers(from_ms=0, to_ms=NOW_MS)
    assert len(answers.ts_ms) == 2 * len(served)
    lives = platform.served.lives(np.unique(answers.target_id), from_ms=0)
    failing, onset = outcomes(lives, answers)

    numbers = np.searchsorted(np.unique(answers.target_id), answers.target_id)
    state, labels = expected(verdicts, numbers, answers.ts_ms)
    column = [list(HORIZONS).index(horizon) for horizon in answers.horizon.tolist()]
    np.testing.assert_array_equal(failing, state)
    np.testing.assert_array_equal(onset, labels[np.arange(len(column)), column])
    for value in (0.0, 1.0):
        assert (onset == value).sum() > 100
    assert np.isnan(onset).sum() > 100


def test_figures_by_version_and_horizon(
    platform: Platform, verdicts: list[list[tuple[int, Outcome]]], served: list[tuple[int, int, str, float]]
) -> None:
    from_ms = NOW_MS - 10 * 24 * HOUR_MS
    with TestClient(create_app(platform)) as http:
        reply = http.get(QUALITY, params={"from": "2025-12-22T00:00:00Z"})
        assert reply.status_code == 200, reply.text
        body = reply.json()
    assert (body["model"], body["champion"], body["every"]) == ("url-health", "2", 1)
    assert (body["from"], body["to"]) == ("2025-12-22T00:00:00.000Z", "2026-01-01T00:00:00.000Z")
    assert [(item["model_version"], item["horizon"]) for item in body["items"]] == [
        (version, horizon) for version in ("2", "3") for horizon in HORIZONS
    ]
    for item in body["items"]:
        asked = [s for s in served if s[2] == item["horizon"] and from_ms <= s[1] < NOW_MS]
        target, t_ms = np.array([s[:2] for s in asked], np.int64).T
        state, labels = expected(verdicts, target, t_ms)
        y = labels[:, list(HORIZONS).index(item["horizon"])]
        p = np.array([s[3] if item["model_version"] == "2" else 1 - s[3] for s in asked])
        counted = (state != 1) & ~np.isnan(y)
        p, y = p[counted], y[counted]
        assert item["n"] == len(y) == sum(bin["n"] for bin in item["reliability"])
        assert item["unknown"] == ((state != 1) & ~counted).sum()
        assert item["base_rate"] == pytest.approx(y.mean())
        assert item["average_precision"] == pytest.approx(average_precision_score(y, p))
        assert item["brier"] == pytest.approx(((p - y) ** 2).mean())
        for bin in item["reliability"]:
            inside = (p >= bin["low"]) & (p < bin["high"])
            assert (bin["n"], bin["observed"]) == (inside.sum(), pytest.approx(y[inside].mean()))


@pytest.mark.usefixtures("served")
def test_a_long_log_is_sampled(platform: Platform) -> None:
    answers = platform.served.answers(from_ms=0, to_ms=NOW_MS, most=400)
    assert answers.every == 11
    assert 200 < len(answers.ts_ms) <= 400
    assert {*answers.horizon.tolist()} == {*HORIZONS}


@pytest.mark.usefixtures("served")
def test_metrics_and_what_cannot_be_asked(platform: Platform) -> None:
    platform.live_quality = platform.quality(owner=LOCAL_OWNER)
    with TestClient(create_app(platform)) as http:
        assert 'urlhealth_live_brier{horizon="24h",version="3"}' in http.get("/metrics").text
        assert http.get(QUALITY, params={"from": "2027-01-01T00:00:00Z"}).status_code == 422
        assert http.get(QUALITY, params={"from": "yesterday"}).status_code == 422
        empty = http.get(QUALITY, params={"from": "2020-01-01T00:00:00Z", "to": "2020-01-02T00:00:00Z"}).json()
    assert empty["items"] == []


@pytest.mark.usefixtures("served")
def test_the_page_of_models_draws_what_came_of_forecasts(platform: Platform) -> None:
    page = TestClient(create_app(platform)).get("/ui/models").text
    drawn = [figures for figures in platform.quality(owner=LOCAL_OWNER).figures if figures.horizon == "24h"]
    assert len(drawn) > 1
    points = sum(len(figures.reliability) for figures in drawn)
    assert page.count("<polyline") == len(drawn)
    assert page.partition('class="reliability"')[2].partition("</svg>")[0].count("<circle") == points > 5
    assert page.partition("The same as a table")[2].count("<tr><td>") == points
