"""The offline store against a reference that looks at every row, on random data, and case by case."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import FeatureServiceLoggingSource, LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.repo_config import RepoConfig
from feast.types import Array, Float64, Int64, String

from urlhealth.errors import StoreUnavailable
from urlhealth.feast_stores import segments

T0 = datetime(2024, 3, 1, tzinfo=UTC)
TTL = timedelta(seconds=3)


def at(second: float) -> datetime:
    return T0 + timedelta(seconds=second)


driver = Entity(name="driver", join_keys=["driver"], value_type=ValueType.INT64)
city = Entity(name="city", join_keys=["city"], value_type=ValueType.STRING)
trips = FeatureView(
    name="trips",
    entities=[driver, city],
    ttl=TTL,
    schema=[Field(name="count", dtype=Int64), Field(name="fares", dtype=Array(Float64))],
    # Two columns have other names where they are stored.
    source=FileSource(
        name="trips_source",
        path="trips",
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
        field_mapping={"n": "count", "town": "city"},
    ),
)
weather = FeatureView(
    name="weather",
    entities=[city],
    ttl=timedelta(0),
    schema=[Field(name="count", dtype=Int64), Field(name="sky", dtype=String)],
    source=FileSource(name="weather_source", path="weather", timestamp_field="event_timestamp"),
)
world = FeatureView(
    name="world",
    entities=[],
    ttl=timedelta(0),
    schema=[Field(name="population", dtype=Int64)],
    source=FileSource(name="world_source", path="world", timestamp_field="event_timestamp"),
)


@on_demand_feature_view(sources=[weather], schema=[Field(name="double", dtype=Int64)])
def doubled(inputs: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"double": inputs["count"] * 2})


service = FeatureService(
    name="all", features=[trips, weather], logging_config=LoggingConfig(FileLoggingDestination(path="served"))
)
REFS = ["trips:count", "trips:fares", "weather:count", "weather:sky"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    home = tmp_path_factory.mktemp("feast")
    config = RepoConfig(
        project="contract",
        provider="local",
        registry=str(home / "registry.db"),
        offline_store={"type": "urlhealth.feast_stores.offline.UrlHealthOfflineStore", "path": str(home / "offline")},
        online_store={"type": "sqlite", "path": str(home / "online.db")},
    )
    config.repo_path = home
    store = FeatureStore(config=config)
    store.apply([driver, city, trips, weather, world, doubled, service])
    return store


@pytest.fixture
def offline(store: FeatureStore) -> Iterator[Path]:
    """The folder of the datasets, empty before each test."""
    folder = Path(store.config.offline_store.path)
    yield folder
    segments.clear(folder)


Trip = tuple[int | None, str | None, float, float | None, int | None, list[float] | None]
Weather = tuple[str | None, float, int | None, str | None]
Asked = tuple[int | None, str | None, float]


def write_trips(offline: Path, rows: list[Trip], segment: str = "a") -> None:
    table = pa.table(
        {
            "driver": pa.array([r[0] for r in rows], pa.int64()),
            "town": pa.array([r[1] for r in rows], pa.string()),
            "event_timestamp": pa.array([at(r[2]) for r in rows], pa.timestamp("us", "UTC")),
            "created": pa.array([None if r[3] is None else at(r[3]) for r in rows], pa.timestamp("us", "UTC")),
            "n": pa.array([r[4] for r in rows], pa.int64()),
            "fares": pa.array([r[5] for r in rows], pa.list_(pa.float64())),
        }
    )
    segments.append(offline / "trips", table, timestamp_column="event_timestamp", segment=segment)


def write_weather(offline: Path, rows: list[Weather], segment: str = "a") -> None:
    table = pa.table(
        {
            "city": pa.array([r[0] for r in rows], pa.string()),
            "event_timestamp": pa.array([at(r[1]) for r in rows], pa.timestamp("us", "UTC")),
            "count": pa.array([r[2] for r in rows], pa.int64()),
            "sky": pa.array([r[3] for r in rows], pa.string()),
        }
    )
    segments.append(offline / "weather", table, timestamp_column="event_timestamp", segment=segment)


def ask(store: FeatureStore, rows: list[Asked], refs: list[str] = REFS) -> pa.Table:
    entities = pd.DataFrame(
        {
            "driver": pd.array([r[0] for r in rows], dtype="Int64"),
            "city": [r[1] for r in rows],
            "event_timestamp": pd.to_datetime([at(r[2]) for r in rows]),
            "mark": range(len(rows)),
        }
    )
    job = store.get_historical_features(entity_df=entities, features=refs, full_feature_names=True)
    table = job.to_arrow()
    assert table.column("mark").to_pylist() == list(range(len(rows)))
    return table.select([name for name in table.column_names if "__" in name])


def expected(trip_rows: list[Trip], weather_rows: list[Weather], asked: list[Asked]) -> list[tuple[Any, ...]]:
    """The answers, from the definition: look at every row for each question."""
    answers = []
    for who, where, when in asked:
        ridden = [
            (row[2], -1.0 if row[3] is None else row[3], i, row)
            for i, row in enumerate(trip_rows)
            if None not in (who, where) and row[:2] == (who, where) and 0 <= when - row[2] <= TTL.total_seconds()
        ]
        seen = [
            (row[1], i, row)
            for i, row in enumerate(weather_rows)
            if where is not None and row[0] == where and row[1] <= when
        ]
        answers.append(
            (*(max(ridden)[-1][4:] if ridden else (None, None)), *(max(seen)[-1][2:] if seen else (None, None)))
        )
    return answers


@pytest.mark.parametrize("seed", range(12))
def test_point_in_time_join_equals_looking_at_every_row(store: FeatureStore, offline: Path, seed: int) -> None:
    """On a small grid, so that ties, nulls, TTL bounds, duplicates and unknown entities are common."""
    rng = np.random.default_rng(seed)
    for _ in range(8):
        drivers, towns = [None, 1, 2, 3], [None, "x", "y", "z"]

        def pick(values: list[Any], rng: np.random.Generator = rng) -> Any:
            return values[rng.integers(len(values))]

        trip_rows: list[Trip] = [
            (
                pick(drivers), pick(towns), float(rng.integers(12)), pick([None, 0.0, 1.0, 2.0]),
                pick([None, *range(9)]), pick([None, [], [1.5], [2.0, 3.0]]),
            )
            for _ in range(rng.integers(1, 40))
        ]  # fmt: skip
        weather_rows: list[Weather] = [
            (pick(towns), float(rng.integers(12)), pick([None, *range(9)]), pick([None, "fair", ""]))
            for _ in range(rng.integers(1, 30))
        ]
        asked: list[Asked] = [
            (pick([*drivers, 9]), pick([*towns, "nowhere"]), rng.integers(-2, 32) / 2)
            for _ in range(rng.integers(1, 40))
        ]
        cut = int(rng.integers(len(trip_rows) + 1))
        write_trips(offline, trip_rows[:cut], "a")
        write_trips(offline, trip_rows[cut:], "b")
        write_weather(offline, weather_rows)
        table = ask(store, asked)
        assert table.column_names == ["trips__count", "trips__fares", "weather__count", "weather__sky"]
        answers = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
        assert answers == expected(trip_rows, weather_rows, asked)
        segments.clear(offline)


def test_an_empty_dataset_gives_nulls_of_the_right_type(store: FeatureStore, offline: Path) -> None:
    assert not offline.exists()
    table = ask(store, [(1, "x", 5.0)])
    assert [field.type for field in table.schema] == [pa.int64(), pa.list_(pa.float64()), pa.int64(), pa.string()]
    assert table.to_pylist() == [dict.fromkeys(table.column_names)]
    write_trips(offline, [(1, "x", 900_000.0, None, 7, [])])  # all of it later than the question
    assert ask(store, [(1, "x", 5.0)]).equals(table)


def test_the_result_is_one_chunk(store: FeatureStore, offline: Path) -> None:
    for i in range(4):
        write_weather(offline, [("x", i, i, None)], f"{i}")
    table = ask(store, [(1, "x", float(i)) for i in range(4)])
    assert {column.num_chunks for column in table.columns} == {1}


@pytest.mark.parametrize("unit", ["ns", "us", "ms", "naive", "text", "Berlin"])
def test_entity_timestamps_of_any_kind(store: FeatureStore, offline: Path, unit: str) -> None:
    write_weather(offline, [("x", 1.0, 1, None), ("x", 2.0, 2, None)])
    when: Any = pd.Series(pd.to_datetime([at(1.0), at(1.999), at(2.0)]))
    if unit == "naive":
        when = when.dt.tz_localize(None)
    elif unit == "text":
        when = [moment.isoformat() for moment in when]
    elif unit == "Berlin":
        when = when.dt.tz_convert("Europe/Berlin")
    else:
        when = when.dt.as_unit(unit)
    entities = pd.DataFrame({"city": ["x"] * 3, "event_timestamp": when})
    frame = store.get_historical_features(entity_df=entities, features=["weather:count"]).to_df()
    assert frame["count"].tolist() == [1, 1, 2]


@pytest.mark.parametrize("convert", [pa.Table.from_pandas, pl.from_pandas])
def test_entity_rows_as_arrow_or_polars(store: FeatureStore, offline: Path, convert: Any) -> None:
    write_weather(offline, [("x", 1.0, 1, None)])
    entities = convert(pd.DataFrame({"city": ["x", "y"], "event_timestamp": pd.to_datetime([at(5)] * 2)}))
    frame = store.get_historical_features(entity_df=entities, features=["weather:count"]).to_df()
    assert frame["count"].fillna(-1).tolist() == [1, -1]


@pytest.mark.parametrize("keys", [[1.0, None, 1.5], np.array([1, 2, 3], np.int32), ["1", "x", None]])
def test_entity_keys_of_another_type(store: FeatureStore, offline: Path, keys: Any) -> None:
    write_trips(offline, [(1, "x", 1.0, None, 7, None)])
    entities = pd.DataFrame({"driver": keys, "city": "x", "event_timestamp": pd.to_datetime([at(1)] * 3)})
    frame = store.get_historical_features(entity_df=entities, features=["trips:count"]).to_df()
    assert frame["count"].fillna(-1).tolist() == [7, -1, -1]


def test_a_view_without_entities(store: FeatureStore, offline: Path) -> None:
    table = pa.table({"event_timestamp": [at(1), at(3)], "population": [8, 9]})
    segments.append(offline / "world", table, timestamp_column="event_timestamp", segment="a")
    entities = pd.DataFrame({"event_timestamp": pd.to_datetime([at(3), at(0), at(2)])})
    frame = store.get_historical_features(entity_df=entities, features=["world:population"]).to_df()
    assert frame["population"].fillna(-1).tolist() == [9, -1, 8]


def test_on_demand_features_of_another_repo(store: FeatureStore, offline: Path) -> None:
    write_weather(offline, [("x", 1.0, 21, None)])
    entities = pd.DataFrame({"city": ["x"], "event_timestamp": pd.to_datetime([at(1)])})
    frame = store.get_historical_features(entity_df=entities, features=["weather:count", "doubled:double"]).to_df()
    assert frame[["count", "double"]].to_numpy().tolist() == [[21, 42]]


def test_without_entity_rows_every_entity_seen_is_answered_for(store: FeatureStore, offline: Path) -> None:
    write_weather(offline, [("x", 1.0, 1, None), ("x", 3.0, 3, None), ("y", 2.0, 2, None), ("z", 9.0, 9, None)])
    job = store.get_historical_features(features=["weather:count"], start_date=at(1.5), end_date=at(4))
    frame = job.to_df().sort_values("city")
    assert frame[["city", "count"]].to_numpy().tolist() == [["x", 3], ["y", 2]]
    assert (frame["event_timestamp"] == at(4)).all()


def test_pulls_take_both_ends_and_break_ties(store: FeatureStore, offline: Path) -> None:
    rows: list[Trip] = [
        (1, "x", 1.0, 0.0, 1, None),
        (1, "x", 2.0, 5.0, 2, None),
        (1, "x", 2.0, 4.0, 3, None),
        (2, "x", 0.5, 0.0, 4, None),
        (2, "x", 3.0, 0.0, 5, None),
        (3, "x", 3.5, 0.0, 6, None),
    ]
    write_trips(offline, rows)
    provider, source = store._get_provider(), trips.batch_source
    arguments = (store.config, source, ["driver", "town"], ["n"], "event_timestamp", "created", at(1), at(3))
    latest = provider.offline_store.pull_latest_from_table_or_query(*arguments).to_arrow()
    assert latest.column_names == ["driver", "town", "n", "event_timestamp", "created"]
    assert sorted(latest.column("n").to_pylist()) == [2, 5]
    every = provider.offline_store.pull_all_from_table_or_query(*arguments).to_arrow()
    assert sorted(every.column("n").to_pylist()) == [1, 2, 3, 5]
    endless = provider.offline_store.pull_all_from_table_or_query(store.config, source, ["driver"], ["n"], "created")
    assert endless.to_arrow().num_rows == 6


def test_what_is_written_to_the_offline_store_is_read_again(store: FeatureStore, offline: Path) -> None:
    write_weather(offline, [("x", 0.0, 3, None)])
    rows = pd.DataFrame({"city": ["x"], "event_timestamp": [at(1)], "count": [4], "sky": ["fair"]})
    store.write_to_offline_store("weather", rows)
    backwards = rows.assign(count=5, event_timestamp=at(2))[rows.columns[::-1]]
    store.write_to_offline_store("weather", backwards, reorder_columns=False)
    counts = ask(store, [(1, "x", second) for second in (0.0, 1.0, 2.0)]).column("weather__count").to_pylist()
    assert counts == [3, 4, 5]
    with pytest.raises(ValueError, match="rows for feature view weather have columns"):
        store._get_provider().ingest_df_to_offline_store(weather, pa.Table.from_pandas(rows[["city"]]))


def test_what_is_of_another_type_is_converted_or_refused(store: FeatureStore, offline: Path) -> None:
    """One file of another type would keep all others from being read."""
    write_weather(offline, [("x", 0.0, 3, None)])
    rows = pd.DataFrame({"city": ["x"], "event_timestamp": [at(1)], "count": [4], "sky": ["fair"]})
    for count in ("abc", 2.5):
        with pytest.raises(ValueError, match="rows for feature view weather: column count is declared as int64"):
            store.write_to_offline_store("weather", rows.assign(count=count))
    store.write_to_offline_store("weather", rows.assign(count=5.0, sky=None))
    table = ask(store, [(1, "x", 0.0), (1, "x", 1.0)])
    assert table.column("weather__count").to_pylist() == [3, 5]
    assert table.schema.field("weather__count").type == pa.int64()


def test_a_view_whose_type_changed_is_said_and_loses_nothing(store: FeatureStore, offline: Path) -> None:
    write_weather(offline, [("x", 0.0, 3, None)])
    newer = pa.table({"city": ["x"], "event_timestamp": [at(1)], "count": ["many"], "sky": ["fair"]})
    segments.append(offline / "weather", newer, timestamp_column="event_timestamp", segment="b")
    said = "files of source weather_source differ in the type of a column: .*count"
    with pytest.raises(StoreUnavailable, match=said):
        ask(store, [(1, "x", 1.0)])
    pull, arguments = store._get_provider().offline_store, (["city"], ["count"], "event_timestamp", None, at(0), at(2))
    for way in (pull.pull_latest_from_table_or_query, pull.pull_all_from_table_or_query):
        with pytest.raises(StoreUnavailable, match=said):
            way(store.config, weather.batch_source, *arguments).to_arrow()
    converted = newer.set_column(2, "count", pa.array([4], pa.int64()))
    segments.append(offline / "weather", converted, timestamp_column="event_timestamp", segment="b")
    assert ask(store, [(1, "x", 0.0), (1, "x", 1.0)]).column("weather__count").to_pylist() == [3, 4]


def test_saved_datasets_and_logged_features(store: FeatureStore, offline: Path) -> None:
    write_weather(offline, [("x", 1.0, 1, "fair")])
    entities = pd.DataFrame({"city": ["x", "y"], "event_timestamp": pd.to_datetime([at(1), at(2)])})
    job = store.get_historical_features(entity_df=entities, features=["weather:count"])
    for storage in (SavedDatasetFileStorage("saved"), SavedDatasetFileStorage(str(offline / "saved.parquet"))):
        saved = store.create_saved_dataset(job, "training", storage, allow_overwrite=True)
        assert saved.to_df()["count"].fillna(-1).tolist() == [1, -1]
        with pytest.raises(SavedDatasetLocationAlreadyExists):
            store.create_saved_dataset(job, "training", storage)
    registered = store.get_feature_service("all")
    source = FeatureServiceLoggingSource(registered, store.project)
    schema = source.get_schema(store.registry)
    log = pa.table({f.name: pa.array([at(1)] if pa.types.is_timestamp(f.type) else [None], f.type) for f in schema})
    store.write_logged_features(log, registered)
    store.write_logged_features(log, registered)
    provider = store._get_provider()
    logged = provider.retrieve_feature_service_logs(registered, at(0), at(2), store.config, store.registry)
    assert logged.to_arrow().num_rows == 2


def test_a_single_file_of_another_repo(store: FeatureStore, offline: Path) -> None:
    """An absolute path to one file, with nanoseconds as pandas writes them; appended to in place."""
    path = offline.parent / "one.parquet"
    frame = pd.DataFrame({"city": ["x"], "event_timestamp": pd.to_datetime([at(1)]).as_unit("ns"), "count": [1]})
    frame.to_parquet(path)
    source = FileSource(name="one", path=str(path), timestamp_field="event_timestamp")
    view = FeatureView(name="one", entities=[city], schema=[Field(name="count", dtype=Int64)], source=source)
    store.apply([source, view])
    entities = pd.DataFrame({"city": ["x"], "event_timestamp": pd.to_datetime([at(3)])})
    assert store.get_historical_features(entity_df=entities, features=["one:count"]).to_df()["count"].tolist() == [1]
    store.write_to_offline_store("one", frame.assign(event_timestamp=pd.to_datetime([at(2)]), count=2))
    assert store.get_historical_features(entity_df=entities, features=["one:count"]).to_df()["count"].tolist() == [2]
    assert pq.read_schema(path).field("event_timestamp").type == pa.timestamp("ns", "UTC")
    late = frame.assign(event_timestamp=pd.to_datetime([at(0)]))
    with ThreadPoolExecutor(8) as writers:
        # Each reads the file and writes it anew: what another one wrote meanwhile must stay.
        list(writers.map(lambda n: store.write_to_offline_store("one", late.assign(count=n)), range(3, 27)))
    assert sorted(pd.read_parquet(path)["count"]) == list(range(1, 27))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"source one: there is no .*one\.parquet"):
        store.get_historical_features(entity_df=entities, features=["one:count"]).to_df()


def test_entity_rows_may_be_a_query_on_the_views_sources_and_on_files(
    store: FeatureStore, offline: Path, tmp_path: Path
) -> None:
    write_weather(offline, [("x", 1.0, 1, "fair"), ("x", 2.0, 2, "rain"), ("y", 1.5, 3, "fog")])
    entities = pd.DataFrame({"city": ["x", "x", "y"], "event_timestamp": pd.to_datetime([at(1), at(2), at(1.5)])})
    expected = store.get_historical_features(entity_df=entities, features=["weather:count"]).to_df()
    assert expected["count"].tolist() == [1, 2, 3]
    entities.to_parquet(tmp_path / "asked.parquet")
    for table in ("weather_source", f"read_parquet('{tmp_path}/asked.parquet')"):
        sql = f"SELECT city, event_timestamp FROM {table} ORDER BY city, event_timestamp"
        found = store.get_historical_features(entity_df=sql, features=["weather:count"]).to_df()
        assert found["count"].tolist() == [1, 2, 3]
        assert found["city"].tolist() == ["x", "x", "y"]
        one = f"SELECT city, event_timestamp FROM {table} WHERE city = 'y'"
        assert len(store.get_historical_features(entity_df=one, features=["weather:count"]).to_df()) == 1


def test_what_cannot_be_answered_is_said(store: FeatureStore, offline: Path) -> None:
    write_weather(offline, [("x", 1.0, 1, "fair")])
    entities = pd.DataFrame({"city": ["x"], "event_timestamp": pd.to_datetime([at(1)])})
    with pytest.raises(ValueError, match=r"view trips needs entity columns \['driver'\]"):
        store.get_historical_features(entity_df=entities, features=["trips:count"]).to_df()
    with pytest.raises(ValueError, match="column count comes twice"):
        store.get_historical_features(entity_df=entities.assign(count=0), features=["weather:count"]).to_df()
    for sql in ("SELECT * FROM elsewhere", "SELECT", "DROP TABLE weather"):
        with pytest.raises(ValueError, match=r"entity rows as SQL: .*tables are"):
            store.get_historical_features(entity_df=sql, features=["weather:count"])
    torn = segments.files(offline / "weather")[0].with_name("torn.parquet")
    torn.write_bytes(b"PAR1 and no more")
    with pytest.raises(StoreUnavailable, match=r"torn\.parquet is not a whole Parquet file"):
        store.get_historical_features(entity_df=entities, features=["weather:count"]).to_df()
