"""Our offline store against Feast's DuckDB store: the same rows from the same files, on thousands of random cases."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.repo_config import RepoConfig
from feast.types import Array, Bool, Float64, Int64, String

T0 = datetime(2024, 3, 1, tzinfo=UTC)
OURS = "urlhealth.feast_stores.offline.UrlHealthOfflineStore"
#: Seconds that the instants are spread over: few, so that many are equal and many at the very edge of a TTL.
SPAN_S = 40
REFS = [*(f"trips:{name}" for name in ("count", "fare", "fares")), *(f"weather:{name}" for name in ("sky", "wet"))]

driver = Entity(name="driver", join_keys=["driver"], value_type=ValueType.INT64)
city = Entity(name="city", join_keys=["city"], value_type=ValueType.STRING)


def instants(seconds: Any) -> pa.Array:
    return pa.array([T0 + timedelta(seconds=float(s)) for s in seconds], pa.timestamp("us", "UTC"))


def write(folder: Path, rng: np.random.Generator, n: int) -> None:
    """Two files of rows in random order; no two of a key have both instant and created time the same."""
    nullable = [None if rng.random() < 0.2 else float(x) for x in rng.normal(size=n)]
    created = rng.permutation(n)
    pq.write_table(
        pa.table(
            {
                "driver": rng.integers(0, 5, n),
                "town": [f"c{i}" for i in rng.integers(0, 3, n)],
                "event_timestamp": instants(rng.integers(0, SPAN_S, n)),
                "created": instants(created),
                "count": rng.integers(-9, 9, n),
                "fare": pa.array(nullable, pa.float64()),
                "fares": [rng.normal(size=i % 3).tolist() for i in range(n)],
            }
        ),
        folder / "trips.parquet",
    )
    pq.write_table(
        pa.table(
            {
                "city": [f"c{i}" for i in rng.integers(0, 4, n)],
                "event_timestamp": instants(rng.integers(0, SPAN_S, n)),
                "created": instants(created),
                "sky": [None if rng.random() < 0.2 else f"s{i}" for i in range(n)],
                "wet": rng.random(n) < 0.5,
            }
        ),
        folder / "weather.parquet",
    )


def make(folder: Path, kind: str, ttl: timedelta) -> FeatureStore:
    def source(name: str, mapping: dict[str, str]) -> FileSource:
        path = str(folder / f"{name}.parquet")
        return FileSource(
            path=path, timestamp_field="event_timestamp", created_timestamp_column="created", field_mapping=mapping
        )

    config = RepoConfig(
        project="p",
        provider="local",
        registry=str(folder / f"{kind}.db"),
        offline_store={"type": OURS if kind == "ours" else kind},
        online_store=None,
    )
    store = FeatureStore(config=config)
    trips = FeatureView(
        name="trips",
        entities=[driver, city],
        ttl=ttl,
        schema=[
            Field(name="count", dtype=Int64),
            Field(name="fare", dtype=Float64),
            Field(name="fares", dtype=Array(Float64)),
        ],
        source=source("trips", {"town": "city"}),
    )
    weather = FeatureView(
        name="weather",
        entities=[city],
        ttl=timedelta(0),
        schema=[Field(name="sky", dtype=String), Field(name="wet", dtype=Bool)],
        source=source("weather", {}),
    )
    store.apply([driver, city, trips, weather])
    return store


def joined(store: FeatureStore, rows: pd.DataFrame, full: bool) -> list[dict[str, Any]]:
    table = store.get_historical_features(rows, REFS, full_feature_names=full).to_arrow()
    return sorted(table.to_pylist(), key=lambda row: int(row["number"]))


@pytest.mark.parametrize("seed", range(10))
def test_joins_are_equal_row_for_row(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    write(tmp_path, rng, 150)
    rows = pd.DataFrame(
        {
            "number": range(300),
            "driver": rng.integers(0, 6, 300),
            "city": [f"c{i}" for i in rng.integers(0, 5, 300)],
            "event_timestamp": [T0 + timedelta(seconds=float(s) / 2) for s in rng.integers(-4, 2 * SPAN_S + 30, 300)],
        }
    )
    ttl = timedelta(seconds=[0, 1, 5, 30][seed % 4])
    ours, theirs = (joined(make(tmp_path, kind, ttl), rows, full=seed % 2 == 0) for kind in ("ours", "duckdb"))
    assert ours == theirs
    assert sum(row["trips__count" if seed % 2 == 0 else "count"] is not None for row in ours) > 20


@pytest.mark.parametrize("seed", range(5))
def test_pulls_are_equal_row_for_row(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    write(tmp_path, rng, 200)
    since, until = T0 + timedelta(seconds=5), T0 + timedelta(seconds=30)

    def pulled(kind: str) -> list[list[tuple[Any, ...]]]:
        store = make(tmp_path, kind, timedelta(0))
        source = store.get_feature_view("weather").batch_source
        arguments = (store.config, source, ["city"], ["sky", "wet"], "event_timestamp", "created", since, until)
        offline = store._get_provider().offline_store
        tables = [
            offline.pull_latest_from_table_or_query(*arguments).to_arrow(),
            offline.pull_all_from_table_or_query(*arguments).to_arrow(),
        ]
        names = ["city", "event_timestamp", "sky", "wet"]
        return [sorted(map(repr, zip(*(table.column(n).to_pylist() for n in names), strict=True))) for table in tables]

    ours, theirs = pulled("ours"), pulled("duckdb")
    assert ours == theirs
    assert len(ours[0]) == 4
    assert len(ours[1]) > 50
