"""The online store and the batch engine against Feast's own SQLite store and engine, on views of every type."""

import asyncio
import math
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import RepoConfig
from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, Json, Map, String, UnixTimestamp

from urlhealth.errors import StoreUnavailable
from urlhealth.feast_stores import segments
from urlhealth.feast_stores.engine import ArrowBatchEngine, entity_keys
from urlhealth.feast_stores.online import PackedOnlineStore
from urlhealth.feast_stores.rows import string_keys

NOW = datetime(2024, 3, 1, 12, tzinfo=UTC)
OURS = {"type": "urlhealth.feast_stores.online.PackedOnlineStore"}
ENGINE = {"type": "urlhealth.feast_stores.engine.ArrowBatchEngine"}

driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
city = Entity(name="city", join_keys=["city"], value_type=ValueType.STRING)
PLAIN = [
    Field(name="f8", dtype=Float64),
    Field(name="f4", dtype=Float32),
    Field(name="i8", dtype=Int64),
    Field(name="i4", dtype=Int32),
    Field(name="flag", dtype=Bool),
    Field(name="text", dtype=String),
    Field(name="raw", dtype=Bytes),
    Field(name="seen", dtype=UnixTimestamp),
    Field(name="three", dtype=Array(Float64), tags={"length": "3"}),
    Field(name="some", dtype=Array(Int64)),
    Field(name="flags", dtype=Array(Bool)),
]
OTHER = [
    Field(name="mapped", dtype=Map),
    Field(name="json", dtype=Json),
    Field(name="words", dtype=Array(String)),
]


def source(name: str) -> FileSource:
    return FileSource(
        name=f"{name}_source", path=name, timestamp_field="event_timestamp", created_timestamp_column="created"
    )


plain = FeatureView(name="plain", entities=[driver, city], schema=PLAIN, source=source("plain"))
any_type = FeatureView(name="any_type", entities=[driver], schema=[*PLAIN, *OTHER], source=source("any_type"))
brief = FeatureView(
    name="brief",
    entities=[driver],
    schema=[Field(name="x", dtype=Float32), Field(name="i", dtype=Int64), Field(name="text", dtype=String)],
    source=source("brief"),
    ttl=timedelta(hours=1),
)
alone = FeatureView(name="alone", entities=[], schema=[Field(name="x", dtype=Int64)], source=source("alone"))


def frame(n: int, seed: int = 0) -> pd.DataFrame:
    """Rows of drivers 0, 1, 2, ... with every type; about one value in five is null."""
    rng = np.random.default_rng(seed)

    def some(values: list[Any]) -> list[Any]:
        return [None if rng.random() < 0.2 else value for value in values]

    return pd.DataFrame(
        {
            "driver_id": np.arange(n),
            "city": [f"city {i % 3}" for i in range(n)],
            "event_timestamp": [NOW + timedelta(seconds=i) for i in range(n)],
            "created": [NOW + timedelta(seconds=i, microseconds=7) for i in range(n)],
            "f8": some(rng.normal(size=n).tolist()),
            "f4": np.where(rng.random(n) < 0.2, np.nan, rng.normal(size=n)).astype(np.float32),
            "i8": rng.integers(-(2**62), 2**62, n),
            "i4": rng.integers(-(2**31), 2**31, n).astype(np.int32),
            "flag": rng.random(n) < 0.5,
            "text": some(["", "äöü", "x" * 300, "plain"][i % 4] for i in range(n)),
            "raw": some([bytes([i % 256, 0]) for i in range(n)]),
            "seen": [NOW + timedelta(days=int(d), microseconds=5) for d in rng.integers(-400, 400, n)],
            "three": some(rng.normal(size=(n, 3)).tolist()),
            "some": some([list(range(i % 5)) for i in range(n)]),
            "flags": some([[True, False][: 1 + i % 2] for i in range(n)]),
            "mapped": some([{"a": "1", "b": str(i)} for i in range(n)]),
            "json": some([f'{{"n": {i}}}' for i in range(n)]),
            "words": some([["a", str(i)] for i in range(n)]),
        }
    )


def make(home: Path, online: dict[str, str], engine: Any) -> FeatureStore:
    where = {} if "redis" in online else {"path": str(home / "online.db")}
    config = RepoConfig(
        project="contract",
        provider="local",
        registry=str(home / "registry.db"),
        offline_store={
            "type": "urlhealth.feast_stores.offline.UrlHealthOfflineStore",
            "path": str(home.parent / "offline"),
        },
        online_store={**online, **where},
        batch_engine=engine,
    )
    config.repo_path = home
    store = FeatureStore(config=config)
    store.apply([driver, city, plain, any_type, alone])
    return store


@pytest.fixture
def stores(tmp_path: Path, online_store: str) -> tuple[FeatureStore, FeatureStore]:
    """Ours, and Feast's SQLite store with Feast's engine, over the same offline datasets."""
    for name in ("ours", "stock"):
        (tmp_path / name).mkdir()
    online = {**OURS, "redis": f"{online_store}-{uuid.uuid4().hex}"} if online_store else OURS
    return make(tmp_path / "ours", online, ENGINE), make(tmp_path / "stock", {"type": "sqlite"}, "local")


def write_offline(store: FeatureStore, view: FeatureView, rows: pd.DataFrame, segment: str = "a") -> None:
    folder = Path(store.config.offline_store.path) / view.name
    table = pa.Table.from_pandas(rows, preserve_index=False)
    segments.append(folder, table, timestamp_column="event_timestamp", segment=segment)


def online(store: FeatureStore, view: FeatureView, rows: pd.DataFrame) -> dict[str, list[Any]]:
    """All features of the rows' entities, as `to_dict` gives them."""
    names = [column.name for column in view.entity_columns if column.name != "__dummy_id"] or ["driver_id"]
    keys = [{name: row[name] for name in names} for row in rows.to_dict("records")]
    found = store.get_online_features([f"{view.name}:{field.name}" for field in view.features], keys)
    return dict(found.to_dict(include_event_timestamps=True))


@pytest.mark.parametrize("view", [plain, any_type], ids=lambda view: str(view.name))
def test_written_rows_read_as_in_feasts_own_store(stores: tuple[FeatureStore, FeatureStore], view: FeatureView) -> None:
    rows = frame(40)
    columns = ["driver_id", "city", "event_timestamp", "created", *(field.name for field in view.features)]
    asked = pd.concat([rows[::-3], rows[:2], rows[:1].assign(driver_id=999)])
    answers = []
    for store in stores:
        store.write_to_online_store(view.name, rows[columns])
        answers.append(online(store, store.get_feature_view(view.name), asked))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("view", [plain, any_type, alone], ids=lambda view: str(view.name))
def test_materialized_rows_read_as_in_feasts_own_store(
    stores: tuple[FeatureStore, FeatureStore], view: FeatureView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several rows an entity, in two segments; plain views do not pass through Feast's conversion."""
    rows = frame(60).assign(driver_id=np.arange(60) % 7, city="x", x=range(60))
    keys = [] if view is alone else ["driver_id", "city"]
    columns = [*keys, "event_timestamp", "created", *(field.name for field in view.features)]
    write_offline(stores[0], view, rows[columns][:45])
    write_offline(stores[0], view, rows[columns][45:], "b")
    carried = []
    own = ArrowBatchEngine._materialize_plain
    monkeypatch.setattr(
        ArrowBatchEngine, "_materialize_plain", lambda *args: (carried.append(args[2].feature_view.name), own(*args))
    )
    answers = []
    for store in stores:
        store.materialize(NOW, NOW + timedelta(seconds=50), feature_views=[view.name])
        answers.append(online(store, store.get_feature_view(view.name), rows[:8]))
    assert answers[0] == answers[1]
    assert carried == ([] if view is any_type else [view.name])
    assert any(value is not None for value in answers[0][view.features[0].name])


@pytest.mark.parametrize("full_names", [False, True])
def test_a_reply_made_of_wire_bytes_is_the_one_that_feast_makes(
    stores: tuple[FeatureStore, FeatureStore], monkeypatch: pytest.MonkeyPatch, full_names: bool
) -> None:
    """Every type, nulls, entities that are repeated and that are not there, a projection, several views."""
    ours, _ = stores
    rows = frame(30)
    for view in (plain, any_type):
        columns = ["driver_id", "city", "event_timestamp", "created", *(field.name for field in view.features)]
        ours.write_to_online_store(view.name, rows[[c for c in columns if c != "city" or view is plain]])
    renamed = any_type.with_name("renamed").with_join_key_map({"driver_id": "other_id"})
    service = FeatureService(name="all", features=[plain, renamed] if full_names else [renamed])
    ours.apply(service)
    asked = [{"driver_id": i, "other_id": i + 1, "city": f"city {i % 3}"} for i in (3, 999, 0, 3, *range(40))]

    def reply() -> Any:
        return ours.get_online_features(ours.get_feature_service("all"), asked, full_feature_names=full_names).proto

    made = reply()
    monkeypatch.setattr(PackedOnlineStore, "_read_features_per_fv", OnlineStore._read_features_per_fv)
    expected = reply()
    assert len(made.results) > 10
    assert made == expected


@pytest.mark.parametrize("asked", [{"driver_id": None, "city": "x"}, {"city": "x"}])
def test_keys_that_only_feast_can_tell_about_go_its_way(
    stores: tuple[FeatureStore, FeatureStore], asked: dict[str, Any]
) -> None:
    def outcome(store: FeatureStore) -> Any:
        try:
            return store.get_online_features(["plain:i8"], [asked]).to_dict()
        except Exception as error:
            return type(error)

    assert outcome(stores[0]) == outcome(stores[1])


def test_only_requested_features_come_back(stores: tuple[FeatureStore, FeatureStore]) -> None:
    store = stores[0]
    store.write_to_online_store("plain", frame(1).drop(columns=[field.name for field in OTHER]))
    view, key = (
        store.get_feature_view("plain"),
        EntityKey(join_keys=["city", "driver_id"], entity_values=[Value(string_val="city 0"), Value(int64_val=0)]),
    )
    provider = store._get_provider()
    ((event, values),) = provider.online_read(store.config, view, [key], ["i8", "text"])
    assert event == NOW
    assert sorted(values) == ["i8", "text"]
    ((_, values),) = provider.online_read(store.config, view, [key])
    assert sorted(values) == sorted(field.name for field in PLAIN)


def test_a_late_write_does_not_overwrite(stores: tuple[FeatureStore, FeatureStore]) -> None:
    store, rows = stores[0], frame(1).drop(columns=[field.name for field in OTHER])
    store.write_to_online_store("plain", rows.assign(i8=1))
    store.write_to_online_store("plain", rows.assign(i8=2, event_timestamp=NOW - timedelta(seconds=1)))
    store.write_to_online_store("plain", rows.assign(i8=3, created=NOW))
    assert online(store, plain, rows)["i8"] == [1]
    write_offline(store, plain, rows.assign(i8=4, event_timestamp=NOW - timedelta(seconds=9)))
    store.materialize(NOW - timedelta(days=1), NOW)
    assert online(store, plain, rows)["i8"] == [1]


def test_vectors_computed_beforehand_come_back_as_written(stores: tuple[FeatureStore, FeatureStore]) -> None:
    store = stores[0]
    online, keys = store._get_provider().online_store, [EntityKey(join_keys=["driver_id"]) for _ in range(2)]
    for i, key in enumerate(keys):
        key.entity_values.append(Value(int64_val=i))
    for vector in (b"old", b"\0new"):
        online.write_precomputed_vector(store.config, "service", store.project, keys[0], vector)
    asked = (store.config, "service", store.project, keys)
    assert online.read_precomputed_vectors(*asked) == [b"\0new", None]
    assert asyncio.run(online.read_precomputed_vectors_async(*asked)) == [b"\0new", None]


def brief_rows(*minutes_old: float) -> pd.DataFrame:
    """Rows of drivers 0, 1, 2, ... of view `brief`, some minutes before NOW."""
    n = len(minutes_old)
    return pd.DataFrame(
        {
            "driver_id": np.arange(n),
            "event_timestamp": [NOW - timedelta(minutes=old) for old in minutes_old],
            "created": NOW,
            "x": np.arange(n, dtype=np.float32) + 0.5,
            "i": np.arange(n) + 1,
            "text": [f"text {i}" for i in range(n)],
        }
    )


def test_expired_values_are_not_served(
    stores: tuple[FeatureStore, FeatureStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is exactly as old as the TTL is served, as a point-in-time join does."""
    store, rows, now = stores[0], brief_rows(61, 60, 0), [NOW]
    store.apply([brief])
    provider = store._get_provider()
    monkeypatch.setattr(provider.online_store, "_clock", lambda: round(now[0].timestamp() * 1000))
    store.write_to_online_store("brief", rows)
    asked = [{"driver_id": i} for i in (0, 1, 2, 999)]
    refs = ["brief:x", "brief:i", "brief:text"]
    found = store.get_online_features(refs, asked)
    values = found.to_dict()
    assert [values[name] for name in ("x", "i", "text")] == [
        [None, 1.5, 2.5, None],
        [None, 2, 3, None],
        [None, "text 1", "text 2", None],
    ]
    for name, vector in zip(found.proto.metadata.feature_names.val, found.proto.results, strict=True):
        if name != "driver_id":
            expected = ["OUTSIDE_MAX_AGE", "PRESENT", "PRESENT", "NOT_FOUND"]
            assert [FieldStatus.Name(status) for status in vector.statuses] == expected
            assert vector.event_timestamps[0].ToDatetime(tzinfo=UTC) == NOW - timedelta(minutes=61)
    keys = [EntityKey(join_keys=["driver_id"], entity_values=[Value(int64_val=i)]) for i in (0, 2)]
    (event, none), (_, some) = provider.online_read(store.config, store.get_feature_view("brief"), keys, ["i"])
    assert (event, none, some) == (NOW - timedelta(minutes=61), None, {"i": Value(int64_val=3)})

    now[0] += timedelta(minutes=30)
    assert store.get_online_features(refs, asked).to_dict()["i"] == [None, None, 3, None]
    store.write_to_online_store("brief", brief_rows(0))
    assert store.get_online_features(refs, asked).to_dict()["i"] == [1, None, 3, None]
    with monkeypatch.context() as generic:
        generic.setattr(PackedOnlineStore, "_read_features_per_fv", OnlineStore._read_features_per_fv)
        assert store.get_online_features(refs, asked).to_dict()["i"] == [1, None, 3, None]


def test_a_changed_schema_is_said_and_apply_makes_room(
    stores: tuple[FeatureStore, FeatureStore], caplog: pytest.LogCaptureFixture
) -> None:
    store, rows = stores[0], frame(1)
    write_offline(store, alone, rows[["event_timestamp", "created"]].assign(x=1))
    store.materialize(NOW, NOW, feature_views=["alone"])
    assert online(store, alone, rows)["x"] == [1]
    changed = FeatureView(name="alone", entities=[], schema=[Field(name="x", dtype=Float64)], source=source("alone"))
    provider, key = store._get_provider(), EntityKey(join_keys=["__dummy_id"], entity_values=[Value(string_val="")])
    with pytest.raises(StoreUnavailable, match="view alone holds rows of another schema"):
        provider.online_read(store.config, changed, [key])
    store.apply([changed])
    assert "schema of view alone changed" in caplog.text
    assert online(store, changed, rows)["x"] == [None]
    write_offline(store, alone, rows[["event_timestamp", "created"]].assign(x=0.5))
    store.materialize(NOW, NOW, feature_views=["alone"])
    assert online(store, changed, rows)["x"] == [0.5]


def test_rows_without_a_key_are_left_out_and_said(
    stores: tuple[FeatureStore, FeatureStore], caplog: pytest.LogCaptureFixture
) -> None:
    store, rows = stores[0], frame(3).drop(columns=[field.name for field in OTHER])
    write_offline(store, plain, rows.assign(city=["a", None, "c"]))
    store.materialize(NOW, NOW + timedelta(days=1), feature_views=["plain"])
    assert "view plain: 1 rows without driver_id and city are left out" in caplog.text
    assert online(store, plain, rows.assign(city=["a", "b", "c"]))["i4"][1] is None


def test_nan_is_null_as_in_feast(stores: tuple[FeatureStore, FeatureStore]) -> None:
    store, rows = stores[0], frame(2).drop(columns=[field.name for field in OTHER])
    write_offline(store, plain, rows.assign(f8=[math.nan, 2.0]))
    store.materialize(NOW, NOW + timedelta(days=1), feature_views=["plain"])
    assert online(store, plain, rows)["f8"] == [None, 2.0]


def test_teardown_and_removed_views(stores: tuple[FeatureStore, FeatureStore]) -> None:
    store, rows = stores[0], frame(1).drop(columns=[field.name for field in OTHER])
    store.write_to_online_store("plain", rows)
    store.apply([driver, city, alone], objects_to_delete=[store.get_feature_view("plain")], partial=False)
    store.apply([plain])
    assert online(store, plain, rows)["i8"] == [None]
    store.write_to_online_store("plain", rows)
    store.teardown()
    store.apply([driver, city, plain])
    assert online(store, plain, rows)["i8"] == [None]


def test_entity_keys_are_feasts() -> None:
    assert string_keys("url", ["", "ä", "https://x/"]) == [
        serialize_entity_key(EntityKey(join_keys=["url"], entity_values=[Value(string_val=value)]), 3)
        for value in ("", "ä", "https://x/")
    ]
    table = pa.table({"n": [-1, 2**40], "b": [b"\0", b""], "a": pa.array([7, -7], pa.int32()), "s": ["x", ""]})
    types = {"n": ValueType.INT64, "b": ValueType.BYTES, "a": ValueType.INT32, "s": ValueType.STRING}
    assert entity_keys(table, types) == [
        serialize_entity_key(
            EntityKey(
                join_keys=["n", "b", "a", "s"],
                entity_values=[Value(int64_val=n), Value(bytes_val=b), Value(int32_val=a), Value(string_val=s)],
            ),
            3,
        )
        for n, b, a, s in ((-1, b"\0", 7, "x"), (2**40, b"", -7, ""))
    ]
