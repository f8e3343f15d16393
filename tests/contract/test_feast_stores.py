"""The platform's own way into Feast's stores: what is written is what every reader sees, offline and online."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from urlhealth.errors import ConfigurationError, StoreUnavailable
from urlhealth.feast_stores import segments
from urlhealth.feast_stores.lmdb_rows import LmdbRows
from urlhealth.feast_stores.online import layout_of
from urlhealth.feast_stores.packed import Layout
from urlhealth.feast_stores.stores import FeatureStores
from urlhealth.features.catalog import HOST_STATE, STATE_VIEWS, URL_STATE
from urlhealth.features.columns import StateRows, States, StateView
from urlhealth.settings import Settings

T0_MS = 1_700_000_000_000
VIEWS = pytest.mark.parametrize("view", STATE_VIEWS, ids=lambda view: str(view.name))


def states(view: StateView, n: int, seed: int) -> States:
    """Random states; one float in four is NaN."""
    drawn, rng = view.initial(n), np.random.default_rng(seed)
    for column in view.columns:
        shape = drawn[column.name].shape
        if column.dtype.startswith("float"):
            drawn[column.name] = np.where(rng.random(shape) < 0.25, np.nan, rng.normal(size=shape))
        else:
            drawn[column.name] = rng.integers(-(2**31), 2**31, shape)
    return drawn


def rows(view: StateView, keys: list[str], ts_ms: list[int], seed: int = 0) -> StateRows:
    return StateRows(
        view=view, keys=np.array(keys, object), ts_ms=np.array(ts_ms, np.int64), states=states(view, len(keys), seed)
    )


def write(stores: FeatureStores, written: StateRows, segment: str, created_ms: int = T0_MS) -> None:
    with stores.staged([written], segment=segment, created_ms=created_ms) as publish:
        publish()


def empty(stores: FeatureStores) -> None:
    """Delete the online store: the file itself, where it is one."""
    if isinstance(stores._online, LmdbRows):
        stores._online.path.unlink()
    else:
        stores._online.drop(stores._online.tables())


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, online_store: str) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"), online_store=online_store)


@pytest.fixture(scope="module")
def home(settings: Settings) -> Path:
    return settings.home


@pytest.fixture(scope="module")
def applied(settings: Settings) -> FeatureStores:
    """Stores whose registry is filled, which costs seconds."""
    stores = FeatureStores(settings)
    assert stores.apply()
    return stores


@pytest.fixture
def stores(applied: FeatureStores) -> FeatureStores:
    with applied.draft() as empty:
        empty.publish()
    return applied


@VIEWS
def test_online_equals_offline_at_the_same_instant(stores: FeatureStores, view: StateView) -> None:
    """Through the vector path, Feast's SDK and a point-in-time join: the same states, bit for bit."""
    rng = np.random.default_rng(1)
    for batch in range(5):
        keys = [f"k{i}" for i in rng.integers(0, 12, 20)]
        # Batches overlap in time, so that some rows come late.
        instants = np.sort(T0_MS + batch * 10_000 + rng.integers(0, 25_000, 20)).tolist()
        write(stores, rows(view, keys, instants, batch), f"{batch}", T0_MS + 10**6 + batch)
    asked = [*(f"k{i}" for i in range(12)), "never seen", "k3"]
    online = stores.read(view, asked)
    assert (online.ts_ms[-2] == 0, online.states[-2].tobytes()) == (True, view.initial(1)[0].tobytes())
    store = stores.feast()
    features = [f"{view.name}:{column.name}" for column in view.columns]
    now = pd.to_datetime([T0_MS + 10**6] * len(asked), unit="ms", utc=True)
    entities = pd.DataFrame({view.entity: asked, "event_timestamp": now})
    table = store.get_historical_features(entities, features, full_feature_names=True).to_arrow()
    assert view.from_arrow(table, prefix=f"{view.name}__").tobytes() == online.states.tobytes()
    reply = store.get_online_features(features, [{view.entity: key} for key in asked], full_feature_names=True)
    table = reply.to_arrow()
    known = online.ts_ms > 0
    assert known.sum() == 13
    for column in view.columns:
        values = table.column(f"{view.name}__{column.name}").to_pylist()
        for value, state, there in zip(values, online.states[column.name], known, strict=True):
            if there and value is not None:
                np.testing.assert_array_equal(np.array(value, column.dtype), state)
            elif there:
                assert np.isnan(state)
            else:
                assert value is None


@VIEWS
def test_feast_and_the_platform_agree_on_the_layout(stores: FeatureStores, view: StateView) -> None:
    registered = stores.feast().get_feature_view(view.name)
    assert layout_of(registered) == Layout.of(view)
    assert {f.name: f.description for f in registered.features} == {c.name: c.about for c in view.columns}
    assert [column.name for column in registered.entity_columns] == [view.entity]


def test_the_service_has_every_column(stores: FeatureStores) -> None:
    service = stores.feast().get_feature_service("url_health_v1")
    assert {p.name: [f.name for f in p.features] for p in service.feature_view_projections} == {
        view.name: [column.name for column in view.columns] for view in STATE_VIEWS
    }


def test_a_repeated_segment_changes_nothing(stores: FeatureStores, home: Path) -> None:
    batch = rows(URL_STATE, ["a", "b", "a"], [T0_MS, T0_MS + 1, T0_MS + 2])
    for _ in range(2):
        write(stores, batch, "0001")
    assert segments.scan(home / "feast" / "offline" / "url_state").collect().height == 3
    assert stores.read(URL_STATE, ["a"]).states[0].tobytes() == batch.states[2].tobytes()


def test_a_late_row_is_kept_offline_and_not_served(stores: FeatureStores) -> None:
    new, late = rows(HOST_STATE, ["h"], [T0_MS + 5000], 1), rows(HOST_STATE, ["h"], [T0_MS], 2)
    write(stores, new, "1")
    write(stores, late, "2", T0_MS + 9000)
    online = stores.read(HOST_STATE, ["h"])
    assert online.ts_ms.tolist() == [T0_MS + 5000]
    assert online.states[0].tobytes() == new.states[0].tobytes()
    when = pd.to_datetime([T0_MS + 4999], unit="ms", utc=True)
    features = [f"host_state:{column.name}" for column in HOST_STATE.columns]
    table = stores.feast().get_historical_features(pd.DataFrame({"host": ["h"], "event_timestamp": when}), features)
    assert HOST_STATE.from_arrow(table.to_arrow())[0].tobytes() == late.states[0].tobytes()


def test_materialize_gives_back_a_deleted_online_store(stores: FeatureStores) -> None:
    for view in STATE_VIEWS:
        batch = rows(view, [f"k{i % 9}" for i in range(30)], [T0_MS + i for i in range(30)])
        write(stores, batch, "1")
    asked = [f"k{i}" for i in range(10)]
    before = [stores.read(view, asked) for view in STATE_VIEWS]
    empty(stores)
    assert not stores.read(URL_STATE, asked).ts_ms.any()
    stores.feast().materialize(pd.Timestamp(0, tz="UTC").to_pydatetime(), pd.Timestamp.now(tz="UTC").to_pydatetime())
    for view, was in zip(STATE_VIEWS, before, strict=True):
        now = stores.read(view, asked)
        assert now.states.tobytes() == was.states.tobytes()
        assert now.ts_ms.tolist() == was.ts_ms.tolist()


def test_nothing_written_and_nothing_asked(stores: FeatureStores) -> None:
    write(stores, rows(URL_STATE, [], []), "1")
    assert len(stores.read(URL_STATE, []).states) == 0
    assert stores.read(URL_STATE, ["x"]).ts_ms.tolist() == [0]


def test_apply_costs_nothing_when_nothing_changed(applied: FeatureStores, settings: Settings, home: Path) -> None:
    assert not applied.apply()
    again = FeatureStores(settings)
    assert not again.apply()
    (home / "feast" / "registry.db").unlink()
    assert again.apply_apart()
    assert len(again.feast().list_feature_views()) == 3


def test_a_changed_catalog_is_never_misread(stores: FeatureStores) -> None:
    write(stores, rows(HOST_STATE, ["h"], [T0_MS]), "1")
    newer = StateView(name=HOST_STATE.name, entity=HOST_STATE.entity, columns=HOST_STATE.columns[::-1])
    with pytest.raises(StoreUnavailable, match="view host_state holds rows of another schema"):
        stores.read(newer, ["h"])
    with pytest.raises(StoreUnavailable, match="view host_state holds rows of another schema"):
        write(stores, rows(newer, ["h"], [T0_MS]), "2")


READ = """
import sys
from pathlib import Path
from urlhealth.feast_stores.stores import FeatureStores
from urlhealth.features.catalog import URL_STATE
from urlhealth.settings import Settings
settings = Settings(home=Path(sys.argv[1]), online_store=sys.argv[3])
assert FeatureStores(settings).read(URL_STATE, ["k"]).ts_ms.tolist() == [int(sys.argv[2])]
heavy = {"feast", "pandas", "polars", "pyarrow"} & set(sys.modules)
assert not heavy, heavy
"""


def test_reading_imports_neither_feast_nor_pandas(stores: FeatureStores, settings: Settings) -> None:
    write(stores, rows(URL_STATE, ["k"], [T0_MS]), "1")
    command = (sys.executable, "-c", READ, str(settings.home), str(T0_MS), settings.online_store)
    subprocess.run(command, check=True, timeout=60)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("project: p\nregistry: r.db\nonline_store:\n  type: redis\n", "names 'redis' as online_store"),
        ("project: p\nregistry: r.db\n", "names None as online_store"),
        ("project: p\n", "names no project or no registry"),
        ("project: [\n", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_stores_that_are_not_ours_are_refused_in_words(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "other.yaml"
    if text is not None:
        path.write_text(text)
    stores = FeatureStores(Settings(home=tmp_path, feast_yaml=path))
    with pytest.raises(ConfigurationError, match=message):
        stores.read(URL_STATE, ["x"])


def test_paths_of_the_yaml_and_variables_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELSEWHERE", str(tmp_path / "elsewhere"))
    path = tmp_path / "own.yaml"
    path.write_text(
        "project: own\nregistry: r.db\n"
        "online_store:\n  type: urlhealth.feast_stores.online.PackedOnlineStore\n  path: ${ELSEWHERE}/rows.db\n"
        "offline_store: urlhealth.feast_stores.offline.UrlHealthOfflineStore\n"
    )
    stores = FeatureStores(Settings(home=tmp_path / "home", feast_yaml=path))
    write(stores, rows(URL_STATE, ["x"], [T0_MS]), "1")
    assert (tmp_path / "elsewhere" / "rows.db").exists()
    assert segments.files(tmp_path / "home" / "feast" / "offline" / "url_state")
    assert stores.read(URL_STATE, ["x"]).ts_ms.tolist() == [T0_MS]


def test_a_redis_server_of_the_settings_or_of_the_yaml(tmp_path: Path) -> None:
    """The YAML counts where it says something; passwords stay out of messages, and no server is one line."""
    settings = Settings(home=tmp_path, online_store="redis://me:secret@127.0.0.1:1/3?prefix=p")
    stores = FeatureStores(settings)
    assert stores.places.endswith("online redis://127.0.0.1:1/3?prefix=p")
    with pytest.raises(
        StoreUnavailable, match=r"^online store redis://127\.0\.0\.1:1/3\?prefix=p cannot be read: .*refused"
    ):
        stores.check()
    path = tmp_path / "own.yaml"
    path.write_text(
        "project: own\nregistry: r.db\nonline_store:\n  type: urlhealth.feast_stores.online.PackedOnlineStore\n"
        "  path: rows.db\noffline_store: urlhealth.feast_stores.offline.UrlHealthOfflineStore\n"
    )
    assert FeatureStores(Settings(feast_yaml=path, **settings.model_dump(exclude={"feast_yaml"}))).places.endswith(
        "rows.db"
    )
    for wrong in ("http://127.0.0.1/", "redis://127.0.0.1:port/0"):
        with pytest.raises(ConfigurationError, match="write redis://HOST:PORT/DB"):
            FeatureStores(Settings(home=tmp_path, online_store=wrong)).check()


def test_the_registry_is_replaced_whole(applied: FeatureStores, home: Path) -> None:
    registry = home / "feast" / "registry.db"
    before = registry.stat().st_ino
    applied.feast().registry.commit()
    assert registry.stat().st_ino != before
    assert not list(registry.parent.glob(".registry.db*"))


@VIEWS
def test_feast_knows_the_types_of_what_a_rebuild_wrote(stores: FeatureStores, view: StateView) -> None:
    """Polars writes it, whose lists and strings are Arrow's large ones."""
    from feast.type_map import pa_to_feast_value_type

    with stores.draft() as draft:
        draft.write(rows(view, ["k"], [T0_MS]), segment="1", created_ms=T0_MS)
        draft.publish()
    feast = stores.feast()
    source, offline = feast.get_feature_view(view.name).batch_source, feast._get_provider().offline_store
    types = offline.get_table_column_names_and_types_from_data_source(feast.config, source)
    assert [name for name, _ in types[3:]] == [column.name for column in view.columns]
    kinds = {"float64": "DOUBLE", "float32": "FLOAT", "int64": "INT64", "int32": "INT32"}
    wanted = [kinds[column.dtype] + "_LIST" * (column.length > 1) for column in view.columns]
    assert [pa_to_feast_value_type(dtype).name for _, dtype in types[3:]] == wanted


@pytest.mark.parametrize("damage", [b"no database" * 1000, b"", None])
def test_an_online_file_that_is_none_is_named_and_made_anew(tmp_path: Path, damage: bytes | None) -> None:
    """None: cut in half."""
    stores, file = FeatureStores(Settings(home=tmp_path)), tmp_path / "feast" / "online.db"
    stores.check()  # nothing is there yet
    batch = rows(URL_STATE, [f"k{i}" for i in range(100)], [T0_MS] * 100)
    write(stores, batch, "1")
    stores.check()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    again = FeatureStores(Settings(home=tmp_path))
    message = rf"online store {file} cannot be (read|written): .* moved away, .*features build --rebuild`$"
    with pytest.raises(StoreUnavailable, match=message):
        again.check()
    with pytest.raises(StoreUnavailable, match=message), again.draft() as draft:
        draft.write_newest(batch, created_ms=T0_MS)
    file.rename(file.with_name("moved away"))
    with again.draft() as draft:
        draft.write_newest(batch, created_ms=T0_MS)
        draft.publish()
    assert again.read(URL_STATE, ["k3"]).states[0].tobytes() == batch.states[3].tobytes()
    again.check()


def test_an_offline_folder_and_a_registry_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    stores, folder = FeatureStores(Settings(home=tmp_path)), tmp_path / "feast"
    folder.mkdir()
    (folder / "offline").write_text("a file where a folder must be")
    with pytest.raises(StoreUnavailable, match=rf"offline store {folder}/offline cannot be used \(Not a directory\)"):
        stores.check()
    (folder / "offline").unlink()
    (folder / "registry.db").mkdir()
    with pytest.raises(StoreUnavailable, match=rf"Feast's registry {folder}/registry.db cannot be used"):
        stores.check()
    (folder / "registry.db").rmdir()
    (folder / "registry.db").write_bytes(b"no registry")
    with pytest.raises(StoreUnavailable, match=rf"registry {folder}/registry.db cannot be read: .* Move it away"):
        stores.apply()


def test_after_an_end_in_the_future_incremental_runs_still_find_what_came(stores: FeatureStores) -> None:
    """Feast records that end as done, and begins there the next time."""
    write(stores, rows(HOST_STATE, ["h"], [T0_MS]), "1")
    feast, now = stores.feast(), pd.Timestamp.now(tz="UTC").to_pydatetime()
    feast.materialize_incremental(now + timedelta(days=1))
    later = int(now.timestamp() * 1000)
    write(stores, rows(HOST_STATE, ["h"], [later], seed=1), "2")
    for end in (now + timedelta(days=2), now + timedelta(seconds=1)):
        empty(stores)
        feast.materialize_incremental(end)
        assert stores.read(HOST_STATE, ["h"]).ts_ms.tolist() == [later]
