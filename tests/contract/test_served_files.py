"""The served log as Parquet in the offline store, on every backend, and read by Feast."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from feast import FeatureService
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination

from tests.support import forecasts_of, served_by
from urlhealth.background import Background
from urlhealth.crawl import migrations
from urlhealth.crawl.crawler import Crawler
from urlhealth.crawl.database import writing
from urlhealth.crawl.schema import pipeline_positions
from urlhealth.errors import LeaseLost, StoreUnavailable
from urlhealth.feast_stores import segments
from urlhealth.feast_stores.compaction import FILES
from urlhealth.features.decay import DAY_MS
from urlhealth.platform import Platform
from urlhealth.prediction import served, served_files
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


def predictions(ts_ms: int, probability: float | None = 0.25) -> list[Prediction]:
    return [
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


def serve(
    platform: Platform, request_id: str, ts_ms: int, said: Sequence[Prediction] = (), owner: str = LOCAL_OWNER
) -> None:
    """One batch of one answer, for each of the URLs."""
    forecasts = forecasts_of(said or predictions(ts_ms))
    platform.prediction_log.put(Served(request_id=request_id, owner=owner, ts_ms=ts_ms, forecasts=forecasts))
    platform.prediction_log.write()


def dataset(platform: Platform) -> Path:
    return platform.features.offline_folder / served_files.DATASET


def in_files(platform: Platform) -> pl.DataFrame:
    found = segments.files(dataset(platform))
    return pl.read_parquet(found, hive_partitioning=False).sort("__log_timestamp", "url")


def seen(platform: Platform) -> list[tuple[int, float]]:
    """What readers find of the first URL, wherever it is; one a request."""
    past = platform.served.past(URLS[0], horizon="24h", limit=1_000)
    answers = platform.served.answers(from_ms=0, to_ms=MIDNIGHT_MS + 300 * DAY_MS)
    assert answers.every == 1
    of_it = answers.target_id == answers.target_id.min(initial=1)
    found = sorted(zip(answers.ts_ms[of_it].tolist(), answers.probability[of_it].tolist(), strict=True))
    assert found == [(each.ts_ms, each.probability) for each in past]
    return found


def test_what_was_served_is_in_files_by_day(platform: Platform) -> None:
    serve(platform, "before", MIDNIGHT_MS - 1)
    serve(platform, "after", MIDNIGHT_MS, predictions(MIDNIGHT_MS, None))
    assert [platform.served_files.step() for _ in range(2)] == [4, 0]
    assert {file.parent.name for file in segments.files(dataset(platform))} == {"day=2025-12-31", "day=2026-01-01"}
    rows = in_files(platform)
    assert rows["__request_id"].to_list() == ["before", "before", "after", "after"]
    assert rows["url"].to_list() == [*URLS, *URLS]
    assert rows["probability"].to_list() == [0.25, 0.25, None, None]
    assert rows["observed_at"].dt.epoch("ms").to_list() == [MIDNIGHT_MS - 60_001] * 2 + [None] * 2
    assert rows["__log_date"].cast(pl.String).to_list() == ["2025-12-31"] * 2 + ["2026-01-01"] * 2
    serve(platform, "later", MIDNIGHT_MS + 1)
    assert platform.served_files.step() == 2
    assert in_files(platform)["__request_id"].to_list()[4:] == ["later", "later"]


def test_predictions_are_logged_as_they_were_served(platform: Platform) -> None:
    first = Prediction(
        sent_url="https://A.example",
        target=URLS[0],
        horizon="24h",
        probability=0.25,
        probability_at_end=None,
        status=Freshness.STALE,
        health=Health.UNKNOWN,
        age_s=12.5,
        observed_ms=MIDNIGHT_MS - 12_500,
        model="url-health",
        model_version="3",
    )
    second = replace(first, sent_url=URLS[1], target=URLS[1], status=Freshness.MISSING, age_s=None, observed_ms=None)
    asked = [replace(each, horizon=horizon) for each in (first, second) for horizon in ("24h", "1h")]
    for name, said, owner in (("a", asked, "ann"), ("b", [second], "bob"), ("c", asked, "ann")):
        answer = Served(request_id=name, owner=owner, ts_ms=MIDNIGHT_MS, forecasts=forecasts_of(said))
        platform.prediction_log.put(answer)
    rows = served_by(platform).to_dicts()
    same = ("sent_url", "horizon", "probability", "probability_at_end", "status", "health", "age_s", "model")
    for row in rows:
        row["observed_ms"] = row["observed_at"] and round(row.pop("observed_at").timestamp() * 1000)
    for name, owner, said in (("a", "ann", asked), ("b", "bob", [second]), ("c", "ann", asked)):
        found = [row for row in rows if row["__request_id"] == name]
        assert [(row["url"], row["owner"]) for row in found] == [(each.target, owner) for each in said]
        for row, each in zip(found, said, strict=True):
            expected = {column: getattr(each, column) for column in (*same, "model_version", "observed_ms")}
            assert {column: row[column] for column in expected} == expected


def test_who_is_not_the_writer_moves_nothing(platform: Platform) -> None:
    serve(platform, "a", MIDNIGHT_MS)
    platform.lease.release()
    with pytest.raises(LeaseLost):
        platform.served_files.step()
    assert segments.files(dataset(platform)) == []
    assert not [*(dataset(platform) / ".staged").iterdir()]
    assert len(seen(platform)) == 1


def test_small_files_are_merged_and_no_row_is_read_twice(platform: Platform) -> None:
    for number in range(FILES + 4):
        serve(platform, f"{number:03d}", MIDNIGHT_MS + number)
        assert platform.served_files.step() == 2
    assert len(segments.files(dataset(platform))) < FILES
    assert in_files(platform)["__request_id"].to_list() == [
        f"{number:03d}" for number in range(FILES + 4) for _ in URLS
    ]
    serve(platform, "waits", MIDNIGHT_MS + FILES + 4)
    assert [ts_ms - MIDNIGHT_MS for ts_ms, _ in seen(platform)] == [*range(FILES + 5)]
    newest = platform.served.past(URLS[0], horizon="24h", limit=3)
    assert [each.ts_ms - MIDNIGHT_MS for each in newest] == [FILES + 2, FILES + 3, FILES + 4]
    assert not platform.served.past(URLS[0], horizon="1h", limit=3)
    assert not platform.served.past(URLS[0], horizon="24h", limit=3, owner="ann")


def test_a_move_that_broke_off_is_made_again_and_nothing_is_there_twice(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The segment is published, and the transaction does not end; then another batch comes."""
    publish = segments.Staged.publish

    def break_off(staged: segments.Staged) -> None:
        publish(staged)
        raise StoreUnavailable("the disk is full")

    serve(platform, "a", MIDNIGHT_MS)
    serve(platform, "b", MIDNIGHT_MS - 1)
    with monkeypatch.context() as broken:
        broken.setattr(segments.Staged, "publish", break_off)
        with pytest.raises(StoreUnavailable):
            platform.served_files.step()
    assert len(in_files(platform)) == 4
    assert len(seen(platform)) == 2
    serve(platform, "c", MIDNIGHT_MS)
    assert len(seen(platform)) == 3
    assert platform.served_files.step() == 6
    assert in_files(platform)["__request_id"].to_list() == ["b", "b", "a", "c", "a", "c"]
    assert len(seen(platform)) == 3


def test_a_database_that_is_older_than_the_files_takes_none_of_them_away(platform: Platform, engine: sa.Engine) -> None:
    for number in range(3):
        serve(platform, f"{number}", MIDNIGHT_MS + number)
        platform.served_files.step()
    with writing(engine) as connection:
        connection.execute(
            sa.update(pipeline_positions).where(pipeline_positions.c.name == "served").values(probe_id=1)
        )
    del platform.served_files
    serve(platform, "3", MIDNIGHT_MS + 3)
    platform.served_files.step()
    assert [ts_ms - MIDNIGHT_MS for ts_ms, _ in seen(platform)] == [0, 1, 2, 3]
    assert in_files(platform)["__request_id"].to_list() == [f"{number}" for number in range(4) for _ in URLS]


def test_a_reader_finds_each_once_while_all_is_moved_and_merged(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2 * FILES + 2):
        serve(platform, f"{number:03d}", MIDNIGHT_MS + number)
        if number < FILES:
            platform.served_files.step()
    files, moves = segments.files, iter([1, 1, FILES, 0])
    monkeypatch.setattr(served_files, "ROWS", 2)

    def meanwhile(*path: Any, **more: Any) -> list[Path]:
        for _ in range(next(moves, 0)):
            platform.served_files.step()
        return files(*path, **more)

    monkeypatch.setattr(served.segments, "files", meanwhile)
    for _ in range(3):
        assert [ts_ms - MIDNIGHT_MS for ts_ms, _ in seen(platform)] == [*range(2 * FILES + 2)]
    assert not next(moves, 0)


def test_a_log_of_any_size_is_judged_by_a_part(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_GROUP_ROWS", 10)
    rng = np.random.default_rng(0)
    for number in range(12):
        for _ in range(50):
            said = predictions(MIDNIGHT_MS, rng.random())
            ts_ms = MIDNIGHT_MS + number * DAY_MS
            platform.prediction_log.put(
                Served(request_id="r", owner=LOCAL_OWNER, ts_ms=ts_ms, forecasts=forecasts_of(said))
            )
        platform.prediction_log.write()
        if number < 10:
            platform.served_files.step()
    of_all = platform.served.answers(from_ms=0, to_ms=MIDNIGHT_MS + 12 * DAY_MS)
    assert (of_all.every, len(of_all.ts_ms)) == (1, 1_200)
    half = platform.served.answers(from_ms=MIDNIGHT_MS + 6 * DAY_MS, to_ms=MIDNIGHT_MS + 12 * DAY_MS)
    assert (half.every, len(half.ts_ms)) == (1, 600)
    monkeypatch.setattr(served, "READ", 300)
    some = platform.served.answers(from_ms=0, to_ms=MIDNIGHT_MS + 12 * DAY_MS)
    assert 200 <= len(some.ts_ms) <= 400
    assert some.every == round(1_200 / len(some.ts_ms))
    assert len(np.unique(some.ts_ms)) > 6
    monkeypatch.setattr(served, "FILES", 5)
    few = platform.served.answers(from_ms=0, to_ms=MIDNIGHT_MS + 12 * DAY_MS, most=100)
    assert 0 < len(few.ts_ms) <= 100
    assert few.every * len(few.ts_ms) == pytest.approx(1_200, rel=0.5)


def test_the_search_for_a_target_ends(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(platform, "old", MIDNIGHT_MS - DAY_MS)
    platform.served_files.step()
    for number in range(3):
        serve(platform, "new", MIDNIGHT_MS + number)
        platform.served_files.step()
    monkeypatch.setattr(served, "PAST_FILES", 3)
    assert len(platform.served.past(URLS[0], horizon="24h", limit=9)) == 3
    monkeypatch.setattr(served, "PAST_READ", 5)
    assert [each.ts_ms - MIDNIGHT_MS for each in platform.served.past(URLS[0], horizon="24h", limit=9)] == [1, 2]


def test_an_erased_url_is_in_no_file_and_in_no_batch(platform: Platform) -> None:
    serve(platform, "a", MIDNIGHT_MS)
    platform.served_files.step()
    serve(platform, "b", MIDNIGHT_MS)
    late = Served(
        request_id="c", owner=LOCAL_OWNER, ts_ms=MIDNIGHT_MS, forecasts=forecasts_of(predictions(MIDNIGHT_MS))
    )
    platform.erase_url(URLS[0], owner=LOCAL_OWNER)
    assert in_files(platform)["url"].to_list() == [URLS[1]] * 2
    # What another process had answered, and had not written yet.
    platform.prediction_log.put(late)
    serve(platform, "d", MIDNIGHT_MS + 1)
    assert served_by(platform)["url"].to_list() == [URLS[1]] * 3 + [*URLS]


def test_days_are_dropped_when_they_are_older_than_probes_are_kept(platform: Platform, clock: Clock) -> None:
    serve(platform, "a", MIDNIGHT_MS - 1)
    serve(platform, "b", MIDNIGHT_MS)
    platform.served_files.step()
    clock.now_ms += 3 * DAY_MS
    crawler = Crawler(platform.crawl, platform.lease, platform._make_engine)
    background = Background(platform, crawler, threading.Event())
    background._move_served()
    assert len(in_files(platform)) == 4
    platform.settings = platform.settings.model_copy(update={"keep_probes_days": 3})
    clock.now_ms -= 1
    background._move_served()
    assert len(in_files(platform)) == 4
    clock.now_ms += 1
    background._move_served()
    assert in_files(platform)["__request_id"].to_list() == ["b", "b"]


def test_the_log_of_an_earlier_version_is_carried_over(tmp_path: Path, database_url: str) -> None:
    """Schema 0010: a row a prediction, of which the first was copied to a file."""
    rows = [
        {"id": 1 + i, "owner": LOCAL_OWNER, "request_id": f"r{i}", "ts_ms": MIDNIGHT_MS + i, "sent_url": URLS[i % 2]}
        | {"target": URLS[i % 2], "horizon": "24h", "probability": 0.5 if i else None, "probability_at_end": 0.25}
        | {"status": "fresh", "health": "up", "age_s": 1.5, "observed_ms": MIDNIGHT_MS, "model": "m"}
        | {"model_version": "1"}
        for i in range(3)
    ]
    engine = sa.create_engine(database_url)
    with engine.begin() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(Path(migrations.__file__).parent))
        config.set_main_option("path_separator", "os")
        command.upgrade(config, "0010")
        connection.execute(sa.text("INSERT INTO pipeline_positions (name, probe_id) VALUES ('served', 1)"))
        columns = list(rows[0])
        values = ", ".join(f":{name}" for name in columns)
        connection.execute(sa.text(f"INSERT INTO predictions ({', '.join(columns)}) VALUES ({values})"), rows)
    engine.dispose()
    copied = pl.DataFrame(rows[:1]).select(
        pl.col("target").alias("url"),
        *("owner", "sent_url", "horizon"),
        pl.col("probability").cast(pl.Float64),
        *("probability_at_end", "status", "health", "age_s", "model", "model_version"),
        pl.from_epoch("observed_ms", "ms").dt.replace_time_zone("UTC").dt.cast_time_unit("us").alias("observed_at"),
        pl.from_epoch("ts_ms", "ms").dt.replace_time_zone("UTC").dt.cast_time_unit("us").alias("__log_timestamp"),
        pl.from_epoch("ts_ms", "ms").dt.date().alias("__log_date"),
        pl.col("request_id").alias("__request_id"),
    )
    table = copied.to_arrow()
    kinds = [pa.string() if kind == pa.large_string() else kind for kind in table.schema.types]
    table = table.cast(pa.schema(zip(table.schema.names, kinds, strict=True)))
    settings = Settings(home=tmp_path, database_url=database_url, mlflow_tracking_uri="", lease_s=1e6)
    with Platform(settings, clock=Clock()) as platform:
        segments.append(dataset(platform), table, timestamp_column="__log_timestamp", segment=f"{1:016d}")
        platform.lease.acquire()
        assert platform.served_files.step() == 2
        for _ in range(2):  # the day is over: its files are merged with the next step
            serve(platform, "new", MIDNIGHT_MS + DAY_MS)
            platform.served_files.step()
        assert len(segments.files(dataset(platform))) == 3
        found = in_files(platform)
        assert found["__request_id"].to_list() == ["r0", "r1", "r2", *["new"] * 4]
        assert found["probability"].to_list() == [None, 0.5, 0.5, *[0.25] * 4]
        assert found.head(1).equals(copied)
        assert len(platform.served.past(URLS[0], horizon="24h", limit=9)) == 3


def test_feast_takes_the_folder_as_logged_features(platform: Platform) -> None:
    serve(platform, "a", MIDNIGHT_MS)
    serve(platform, "b", MIDNIGHT_MS + 1)
    platform.served_files.step()
    store = platform.features.feast()
    service = FeatureService(
        name="served",
        features=[store.get_feature_view("url_state")],
        logging_config=LoggingConfig(destination=FileLoggingDestination(path="logged")),
    )
    store.write_logged_features(dataset(platform), service)
    again = pl.read_parquet(segments.files(platform.features.offline_folder / "logged"), hive_partitioning=False)
    assert again.sort("__log_timestamp", "url").equals(in_files(platform))
