"""The forecasts that are kept of every target: when they are made anew, and in what order they are read."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import noise_forecaster
from urlhealth.crawl.current import CurrentPrediction
from urlhealth.errors import InvalidCursor, LeaseLost
from urlhealth.platform import Platform
from urlhealth.prediction import current
from urlhealth.prediction.champion import Champion
from urlhealth.probing.urls import parse_target
from urlhealth.settings import Settings
from urlhealth.vocabulary import Outcome, ProbeResult

NOW_MS = 1_767_225_600_000
HOUR_MS = 3_600_000
URLS = [f"https://h{i}.example/" for i in range(7)]


@pytest.fixture
def clock() -> list[int]:
    """The time now."""
    return [NOW_MS]


@pytest.fixture
def platform(tmp_path: Path, database_url: str, clock: list[int]) -> Iterator[Platform]:
    """Seven targets, each probed each hour of a day, the i-th failing in i of them; a model that serves."""
    settings = Settings(home=tmp_path, database_url=database_url, mlflow_tracking_uri="", rescore_s=600)
    with Platform(settings, clock=lambda: clock[0]) as opened:
        opened.champion.current = Champion(name="url-health", version="1", forecaster=noise_forecaster())
        opened.lease.acquire()
        for i, url in enumerate(URLS):
            for hour in range(24):
                observe(opened, url, NOW_MS - (24 - hour) * HOUR_MS, failing=5 <= hour < 5 + i)
        while opened.pipeline.step():
            pass
        yield opened


def observe(platform: Platform, url: str, ts_ms: int, *, failing: bool) -> None:
    target = parse_target(url)
    outcome = Outcome.TIMEOUT if failing else Outcome.OK
    platform.crawl.import_probes([(target, ProbeResult(target=target.key, ts_ms=ts_ms, outcome=outcome))])


def listed(platform: Platform, limit: int = 3, **which: str | None) -> list[CurrentPrediction]:
    """All pages."""
    items, cursor = [], None
    while True:
        page = platform.current.riskiest(**{"horizon": "24h", **which}, limit=limit, cursor=cursor)
        items += page.items
        cursor = page.next_cursor
        if cursor is None:
            return items
        assert len(page.items) == limit


def test_all_are_listed_by_risk_as_a_request_would_predict_them(platform: Platform) -> None:
    assert platform.rescorer.step() == 7
    assert platform.rescorer.step() == 0
    for horizon in ("1h", "6h", "24h"):
        kept = {item.prediction.target: item.prediction for item in listed(platform, horizon=horizon)}
        assert list(kept.values()) == sorted(kept.values(), key=lambda p: -(p.probability or 0))
        assert list(map(kept.get, URLS)) == list(platform.predictor.predict(URLS, horizons=[horizon], explain=True))
    first = platform.current.riskiest(horizon="1h", limit=1)
    with pytest.raises(InvalidCursor):
        platform.current.riskiest(horizon="24h", limit=1, cursor=first.next_cursor)


def test_a_group_or_a_tag_alone(platform: Platform) -> None:
    platform.crawl.create_monitor(URLS[3], interval_s=60, tags=("Shop", "eu"))
    platform.rescorer.step()
    assert [item.prediction.target for item in listed(platform, tag="Shop")] == [URLS[3]]
    assert listed(platform, tag="shop") == []
    assert [item.prediction.target for item in listed(platform, group="h2.example")] == [URLS[2]]


def test_a_target_is_scored_anew_after_its_probe_and_all_after_some_time_and_for_a_new_model(
    platform: Platform, clock: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(current, "BATCH", 3)
    assert [platform.rescorer.step() for _ in range(4)] == [3, 3, 1, 0]
    clock[0] += 60_000
    observe(platform, URLS[0], clock[0], failing=True)
    assert platform.rescorer.step() == 0  # it is not in the features yet
    platform.pipeline.step()
    assert platform.rescorer.step() == 1
    assert (listed(platform)[0].prediction.target, listed(platform)[0].scored_ms) == (URLS[0], clock[0])
    clock[0] += 600_000
    assert [platform.rescorer.step() for _ in range(4)] == [3, 3, 1, 0]
    assert {item.scored_ms for item in listed(platform)} == {clock[0]}
    platform.champion.current = Champion(name="url-health", version="2", forecaster=noise_forecaster(1))
    assert [platform.rescorer.step() for _ in range(4)] == [3, 3, 1, 0]
    assert {item.prediction.model_version for item in listed(platform)} == {"2"}


def test_only_the_writer_writes(platform: Platform) -> None:
    platform.lease.release()
    with pytest.raises(LeaseLost):
        platform.rescorer.step()
    assert listed(platform) == []


def test_the_risk_of_the_last_hours_is_kept(platform: Platform, clock: list[int]) -> None:
    hours_kept = 24
    said: dict[int, float] = {}
    for hours in (0, 2, 3, 30):
        clock[0] = NOW_MS + hours * HOUR_MS
        while platform.rescorer.step():
            pass
        (item,) = (each for each in listed(platform) if each.prediction.target == URLS[3])
        said[hours] = item.prediction.probability or 0.0
        known = {hours - len(item.trail) + 1 + i: p for i, p in enumerate(item.trail) if p is not None}
        expected = {hour: p for hour, p in said.items() if hour > hours - hours_kept}
        assert known == pytest.approx(expected, abs=0.5 / 254)
