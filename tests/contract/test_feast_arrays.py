"""The vector path against `get_online_features`: the same values, times and entities, for any service."""

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feast import FeatureService, FeatureStore, FeatureView, Field
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.types import Float64
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract.test_feast_online import (
    ENGINE,
    NOW,
    OURS,
    alone,
    any_type,
    brief,
    brief_rows,
    frame,
    make,
    plain,
    write_offline,
)
from urlhealth.errors import ConfigurationError, InvalidRequest, StoreUnavailable
from urlhealth.feast_stores.arrays import ServiceReader, ViewArrays

NOW_MS = round(NOW.timestamp() * 1000) + 20_000
KNOWN = 30


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, online_store: str) -> FeatureStore:
    """A service of several views, and rows of every type."""
    home = tmp_path_factory.mktemp("arrays") / "ours"
    home.mkdir()
    store = make(home, {**OURS, "redis": f"{online_store}-{uuid.uuid4().hex}"} if online_store else OURS, ENGINE)
    rows = frame(KNOWN)
    for view, keys in ((plain, ["driver_id", "city"]), (any_type, ["driver_id"])):
        names = [*keys, "event_timestamp", "created", *(field.name for field in view.features)]
        store.write_to_online_store(view.name, rows[names])
    materialize_alone(store, 7)
    other = any_type.with_name("renamed").with_join_key_map({"driver_id": "other_id"})
    numbers = plain[["f8", "f4", "i4", "flag"]].with_name("numbers")
    # In two services: Feast cannot compare those that have a view under two names.
    store.apply([FeatureService(name="all", features=[plain, alone, other])])
    store.apply([FeatureService(name="numbers", features=[numbers])])
    return store


def materialize_alone(store: FeatureStore, x: float) -> None:
    """What Feast itself writes to the online store of a view without entities, it does not find again."""
    write_offline(store, alone, frame(1).assign(x=x)[["event_timestamp", "created", "x"]])
    store.materialize(NOW - timedelta(days=1), NOW + timedelta(days=1), feature_views=["alone"])


def python(value: Any) -> Any:
    """A value of `to_dict` or of a column: times as seconds, arrays with nothing but nulls as null."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC).timestamp() if value.tzinfo is None else value.timestamp()
    if isinstance(value, list) and value and all(item is None for item in value):
        return None
    return value


def named(found: dict[str, ViewArrays]) -> dict[str, list[Any]]:
    return {
        f"{view}__{name}": [python(value) for value in arrays.column(name).tolist()]
        for view, arrays in found.items()
        for name in arrays.features
    }


def test_arrays_are_what_get_online_features_answers(store: FeatureStore) -> None:
    reader, service = ServiceReader(store, "all"), store.get_feature_service("all")
    entity = st.tuples(st.integers(0, KNOWN + 5), st.integers(0, KNOWN + 5), st.integers(0, 3))

    @settings(max_examples=25, deadline=None)
    @given(st.lists(entity, min_size=1, max_size=25))
    def equal(asked: list[tuple[int, int, int]]) -> None:
        rows = [{"driver_id": i, "other_id": j, "city": f"city {(i + k // 3) % 3}"} for i, j, k in asked]
        found = reader.read({key: [row[key] for row in rows] for key in rows[0]}, now_ms=NOW_MS)
        answer = store.get_online_features(service, rows, full_feature_names=True)
        expected = answer.to_dict()
        values = named(found)
        assert set(values) == set(expected) - set(rows[0])
        assert set(values["alone__x"]) == {7}
        assert values == {name: [*map(python, expected[name])] for name in values}
        for name, vector in zip(answer.proto.metadata.feature_names.val, answer.proto.results, strict=True):
            if name not in rows[0]:
                arrays = found[name.split("__")[0]]
                times_us = [t.ToMicroseconds() for t in vector.event_timestamps]
                assert arrays.event_us.tolist() == times_us
                assert (arrays.status == "missing").tolist() == [s == FieldStatus.NOT_FOUND for s in vector.statuses]

    equal()


def test_a_matrix_is_its_columns_side_by_side(store: FeatureStore) -> None:
    drivers = [*range(KNOWN), 999]
    asked: dict[str, list[Any]] = {
        "driver_id": drivers,
        "other_id": drivers,
        "city": [f"city {i % 3}" for i in drivers],
    }
    numbers = ServiceReader(store, "numbers").read(asked, now_ms=NOW_MS)["numbers"]
    matrix = numbers.matrix(np.float64)
    columns = [np.ma.filled(numbers.column(name).astype(np.float64), np.nan) for name in ("f8", "f4", "i4", "flag")]
    np.testing.assert_array_equal(matrix, np.stack(columns, axis=1))
    assert np.isnan(matrix[-1]).all()
    assert 0 < np.isnan(matrix[:-1]).sum() < matrix.size / 2
    with pytest.raises(InvalidRequest, match="feature text of view plain"):
        ServiceReader(store, "all").read(asked, now_ms=NOW_MS)["plain"].matrix()


def test_each_entity_is_fresh_stale_or_missing(store: FeatureStore) -> None:
    """Row i is of i seconds after NOW, and it is 20 s after NOW."""
    asked: dict[str, list[Any]] = {
        "driver_id": [0, 14, 15, 29, 999],
        "other_id": [0] * 5,
        "city": ["city 0", "city 2", "city 0", "city 2", "x"],
    }
    reader = ServiceReader(store, "all")
    found = reader.read(asked, now_ms=NOW_MS, fresh_for=timedelta(seconds=5))
    assert found["plain"].status.tolist() == ["stale", "stale", "fresh", "fresh", "missing"]
    assert found["renamed"].status.tolist() == ["stale"] * 5
    ages_s = (NOW_MS * 1000 - found["plain"].event_us[:4]) / 1e6
    assert ages_s.tolist() == [20, 6, 5, -9]
    # Views without a TTL are never stale unless the reader is told from when on.
    assert reader.read(asked, now_ms=NOW_MS)["plain"].status.tolist() == ["fresh"] * 4 + ["missing"]


def test_what_is_older_than_the_ttl_has_no_values(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `get_online_features` answers, whatever counts as fresh."""
    numbers = brief[["x"]].with_name("numbers")
    store.apply([brief, FeatureService(name="brief", features=[brief]), FeatureService(name="x", features=[numbers])])
    store.write_to_online_store("brief", brief_rows(61, 60, 20, 0))
    now_ms, asked = round(NOW.timestamp() * 1000), {"driver_id": [3, 0, 999, 1, 2, 0]}
    monkeypatch.setattr(store._get_provider().online_store, "_clock", lambda: now_ms)
    expected = store.get_online_features(
        store.get_feature_service("brief"), [{"driver_id": i} for i in asked["driver_id"]]
    ).to_dict()
    stale, older = ["fresh", "stale", "missing", "fresh", "fresh", "stale"], [1, 5]
    for fresh_for, changed in ((None, {}), (timedelta(days=9), {}), (timedelta(minutes=30), {3: "stale"})):
        found = ServiceReader(store, "brief").read(asked, now_ms=now_ms, fresh_for=fresh_for)["brief"]
        for name in found.features:
            assert [python(value) for value in found.column(name).tolist()] == expected[name]
        assert found.status.tolist() == [changed.get(i, word) for i, word in enumerate(stale)]
        assert found.event_us[older].tolist() == [(now_ms - 61 * 60_000) * 1000] * 2
        matrix = ServiceReader(store, "x").read(asked, now_ms=now_ms, fresh_for=fresh_for)["numbers"].matrix()
        np.testing.assert_array_equal(matrix[:, 0], [3.5, np.nan, np.nan, 1.5, 2.5, np.nan])


def test_what_cannot_be_read_is_said(store: FeatureStore, tmp_path: Path) -> None:
    reader = ServiceReader(store, "all")
    with pytest.raises(InvalidRequest, match="view plain is read by city, which is not among the entities"):
        reader.read({"driver_id": [1], "other_id": [1]}, now_ms=NOW_MS)
    with pytest.raises(InvalidRequest, match="one value an entity, not 1 and 2"):
        reader.read({"driver_id": [1, 2], "other_id": [1], "city": ["x"]}, now_ms=NOW_MS)
    with pytest.raises(InvalidRequest, match="driver_id: values of type INT64 are wanted"):
        reader.read({"driver_id": ["1"], "other_id": [1], "city": ["x"]}, now_ms=NOW_MS)
    (tmp_path / "stock").mkdir()
    stock = make(tmp_path / "stock", {"type": "sqlite"}, "local")
    with pytest.raises(ConfigurationError, match="PackedOnlineStore"):
        ServiceReader(stock, FeatureService(name="s", features=[plain]))


def test_rows_of_another_schema_are_never_misread(tmp_path: Path) -> None:
    """Somebody applied another schema and wrote after the reader was made."""
    (tmp_path / "ours").mkdir()
    store = make(tmp_path / "ours", OURS, ENGINE)
    reader = ServiceReader(store, FeatureService(name="s", features=[alone]))
    changed = FeatureView(name="alone", entities=[], schema=[Field(name="x", dtype=Float64)], source=alone.batch_source)
    store.apply([changed])
    materialize_alone(store, 0.5)
    with pytest.raises(StoreUnavailable, match="view alone holds rows of another schema"):
        reader.read({"driver_id": [1]}, now_ms=NOW_MS)


def test_an_unknown_feature_name_is_said(store: FeatureStore) -> None:
    asked: dict[str, list[Any]] = {"driver_id": [1], "other_id": [1], "city": ["x"]}
    with pytest.raises(InvalidRequest, match="view plain of the service has no feature 'nope': choose among f8, "):
        ServiceReader(store, "all").read(asked, now_ms=NOW_MS)["plain"].column("nope")
    with pytest.raises(KeyError, match="nope"):
        store.get_online_features(["plain:nope"], [{"driver_id": 1, "city": "x"}])
    rows = frame(1)[["driver_id", "city", "event_timestamp"]]
    with pytest.raises(KeyError, match="nope"):
        store.get_historical_features(rows, ["plain:nope"]).to_df()
