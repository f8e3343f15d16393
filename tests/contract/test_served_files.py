"""The served log as Parquet in the offline store, on every backend, and read by Feast."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from feast import FeatureService
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination

from tests.support import forecasts_of
from urlhealth.errors import LeaseLost
from urlhealth.feast_stores import segments
from urlhealth.feast_stores.compaction import FILES
from urlhealth.platform import Platform
from urlhealth.prediction import served_files
from urlhealth.prediction.served_files import LOOK_MS, SETTLED_MS
from urlhealth.probing.urls import parse_target
from urlhealth.settings import Settings
from urlhealth.vocabulary import LOCAL_OWNER, Freshness, Health, Outcome, Prediction, ProbeResult, Served

MIDNIGHT_MS = 1_767_225_600_000
URLS = ("https://a.example/", "https://b.example/")


class Clock:
    now_ms = MIDNIGHT_MS

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def platform(tmp_path: Path, database_url: str, clock: Clock) -> Iterator[Platform]:
    settings = Settings(home=tmp_path, database_url=database_url, mlflow_tracking_uri="", lease_s=1e6)
    with Platform(settings, clock=clock) as opened:
        opened.crawl.import_probes(
            (parse_target(url), ProbeResult(target=url, ts_ms=MIDNIGHT_MS - 60_000, outcome=Outcome.OK)) for url in URLS
        )
        opened.build_features()
        opened.lease.acquire()
        yield opened


def serve(platform: Platform, request_id: str, ts_ms: int, probability: float | None = 0.25) -> None:
    predictions = [
        Prediction(
            sent_url=url,
            target=url,
            horizon="24h",
            probability=probability,
            probability_at_end=probability,
            status=Freshness.MISSING if probability is None else Freshness.FRESH,
            health=Health.UP,
            age_s=None if probability is None else 60.0,
            observed_ms=None if probability is None else ts_ms - 60_000,
            model="url-health",
            model_version="3",
        )
        for url in URLS
    ]
    platform.crawl.log_predictions(
        [Served(request_id=request_id, owner=LOCAL_OWNER, ts_ms=ts_ms, forecasts=forecasts_of(predictions))]
    )


def dataset(platform: Platform) -> Path:
    return platform.features.offline_folder / served_files.DATASET


def copied(platform: Platform) -> pl.DataFrame:
    found = segments.files(dataset(platform))
    return pl.read_parquet(found, hive_partitioning=False).sort("__log_timestamp", "url")


def test_what_was_served_is_in_files_by_day_once_it_has_settled(platform: Platform, clock: Clock) -> None:
    serve(platform, "before", MIDNIGHT_MS - 1)
    serve(platform, "after", MIDNIGHT_MS, None)
    serve(platform, "young", MIDNIGHT_MS + SETTLED_MS)
    clock.now_ms += SETTLED_MS + 1
    assert [platform.served_files.step() for _ in range(2)] == [4, 0]
    assert {file.parent.name for file in segments.files(dataset(platform))} == {"day=2025-12-31", "day=2026-01-01"}
    rows = copied(platform)
    assert rows["__request_id"].to_list() == ["before", "before", "after", "after"]
    assert rows["url"].to_list() == [*URLS, *URLS]
    assert rows["probability"].to_list() == [0.25, 0.25, None, None]
    assert rows["observed_at"].dt.epoch("ms").to_list() == [MIDNIGHT_MS - 60_001] * 2 + [None] * 2
    assert rows["__log_date"].cast(pl.String).to_list() == ["2025-12-31"] * 2 + ["2026-01-01"] * 2
    clock.now_ms += LOOK_MS
    assert platform.served_files.step() == 2
    assert copied(platform)["__request_id"].to_list()[4:] == ["young", "young"]


def test_who_is_not_the_writer_copies_nothing(platform: Platform, clock: Clock) -> None:
    serve(platform, "a", MIDNIGHT_MS)
    clock.now_ms += LOOK_MS
    platform.lease.release()
    with pytest.raises(LeaseLost):
        platform.served_files.step()
    assert segments.files(dataset(platform)) == []
    assert not [*(dataset(platform) / ".staged").iterdir()]


def test_small_files_are_merged_and_no_row_is_read_twice(platform: Platform, clock: Clock) -> None:
    for number in range(FILES + 4):
        serve(platform, f"{number:03d}", clock.now_ms)
        clock.now_ms += LOOK_MS
        assert platform.served_files.step() == 2
    assert len(segments.files(dataset(platform))) < FILES
    assert copied(platform)["__request_id"].to_list() == [f"{number:03d}" for number in range(FILES + 4) for _ in URLS]


def test_an_erased_url_is_in_no_file(platform: Platform, clock: Clock) -> None:
    serve(platform, "a", MIDNIGHT_MS)
    clock.now_ms += LOOK_MS
    platform.served_files.step()
    platform.erase_url(URLS[0], owner=LOCAL_OWNER)
    assert copied(platform)["url"].to_list() == [URLS[1]]


def test_feast_takes_the_folder_as_logged_features(platform: Platform, clock: Clock) -> None:
    serve(platform, "a", MIDNIGHT_MS)
    serve(platform, "b", MIDNIGHT_MS + 1)
    clock.now_ms += LOOK_MS
    platform.served_files.step()
    store = platform.features.feast()
    service = FeatureService(
        name="served",
        features=[store.get_feature_view("url_state")],
        logging_config=LoggingConfig(destination=FileLoggingDestination(path="logged")),
    )
    store.write_logged_features(dataset(platform), service)
    again = pl.read_parquet(segments.files(platform.features.offline_folder / "logged"), hive_partitioning=False)
    assert again.sort("__log_timestamp", "url").equals(copied(platform))
