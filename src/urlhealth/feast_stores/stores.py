"""What the platform does with Feast: write states, read the newest ones without Feast, keep the registry up to date."""

import copy
import hashlib
import importlib.util
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from urlhealth.children import Child
from urlhealth.errors import ConfigurationError, StoreUnavailable
from urlhealth.feast_stores import segments
from urlhealth.feast_stores.compaction import Compactor
from urlhealth.feast_stores.consistency import Consistency, compare
from urlhealth.feast_stores.packed import Layout
from urlhealth.feast_stores.paths import OFFLINE_FOLDER, ONLINE_FILE, REGISTRY_FILE, online_rows, store_path
from urlhealth.feast_stores.rows import OnlineRows, Row, string_keys, table_name
from urlhealth.features.catalog import STATE_VIEWS, URL_STATE
from urlhealth.features.columns import StateRows, States, StateView
from urlhealth.settings import ROOT, Settings, quiet_third_parties

if TYPE_CHECKING:
    from feast import FeatureStore

_REPO = ROOT / "feature_repo"
_OFFLINE = "urlhealth.feast_stores.offline.UrlHealthOfflineStore"
_ONLINE = "urlhealth.feast_stores.online.PackedOnlineStore"
_REGISTRY = "urlhealth.feast_stores.registry.AtomicFileRegistryStore"
_EVENT, _CREATED = "event_timestamp", "created_timestamp"
#: Names of drafts begin so: of their hidden folders, and of their tables.
DRAFT = ".draft-"


@dataclass(frozen=True, kw_only=True, eq=False)
class OnlineStates:
    """The newest states of n entities."""

    #: Records of the view's dtype, shape (n,); the initial state where nothing is known.
    states: States
    #: int64, shape (n,): the instant that each state is of, ms since 1970 UTC; 0 where nothing is known.
    ts_ms: npt.NDArray[np.int64]


class FeatureStores:
    """The platform's offline and online store, the same ones that `feast -c feature_repo` uses.

    Reading is safe from any thread and process; one process writes at a time.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._leftovers = True

    @property
    def settings(self) -> Settings:
        """What another process makes the same stores from."""
        return self._settings

    @property
    def places(self) -> str:
        """Where the offline and the online store are, for people.

        Raises:
            ConfigurationError: Feast's stores are not the platform's.
        """
        return f"offline {self._offline}, online {self._online.place}"

    @property
    def offline_folder(self) -> Path:
        """Where the offline store's datasets are.

        Raises:
            ConfigurationError: Feast's stores are not the platform's.
        """
        return self._offline

    def online(self, view: StateView) -> tuple[OnlineRows, str]:
        """Where the newest states of a view are: the place, and the table in it.

        Raises:
            ConfigurationError: Feast's online store is not the platform's.
        """
        return self._online, self._table(view)

    def check(self) -> None:
        """Touch the offline and the online store and the registry.

        Raises:
            ConfigurationError: Feast's stores are not the platform's.
            StoreUnavailable: one cannot be used; names it.
        """
        self._online.tables()
        with suppress(FileNotFoundError), _touching("offline store", self._offline):
            next(self._offline.iterdir(), None)
        registry = self._registry_file
        if registry is not None:
            with suppress(FileNotFoundError), _touching("Feast's registry", registry):
                registry.read_bytes()

    def consistency(self) -> list[Consistency]:
        """Compare the online with the offline store, view by view, for every entity.

        Raises:
            ConfigurationError: Feast's stores are not the platform's.
            StoreUnavailable: a store cannot be read.
        """
        return [compare(view, self._offline / view.name, self._online, self._table(view)) for view in STATE_VIEWS]

    @contextmanager
    def staged(self, rows: Iterable[StateRows], *, segment: str, created_ms: int) -> Iterator[Callable[[], None]]:
        """Put states on disk; what is yielded makes them readable, offline and online, when it is called.

        Where there are many small segments, some are merged with them.

        States that were not published by the end of the `with` block are deleted.

        Args:
            segment: name of the rows' segment; published again under the same name, it replaces the first.
            created_ms: when the states were computed, ms since 1970 UTC; breaks ties of equal event times.

        Raises:
            ConfigurationError: Feast's stores are not the platform's.
            StoreUnavailable: a store cannot be written.
        """
        parts = [part for part in rows if len(part)]
        staged: list[segments.Staged] = []
        online = [(part.view, _packed(part, created_ms)) for part in parts]

        def publish() -> None:
            for item in staged:
                item.publish()
                self._compactor.published(item.files.values())
            for view, packed in online:
                self._online.write(self._table(view), _layout(view), packed)
            self._discard_leftovers()

        try:
            for part in parts:
                folder, table = self._offline / part.view.name, _arrow(part, created_ms)
                staged.append(segments.stage(folder, table, timestamp_column=_EVENT, segment=segment))
            merged = self._compactor.stage(before=segment)
            if merged is not None:
                staged.append(merged)
            yield publish
        finally:
            for item in staged:
                item.discard()

    @contextmanager
    def draft(self) -> Iterator["Draft"]:
        """Stores of all states made anew, which take the place of those in use by :meth:`Draft.publish`."""
        draft = self.draft_named(f"{DRAFT}{uuid.uuid4().hex}")
        try:
            yield draft
        finally:
            draft.discard()

    def draft_named(self, name: str) -> "Draft":
        """The draft that another process has made, to write to it as well."""
        return Draft(name, self._offline, self._online, {view: self._table(view) for view in STATE_VIEWS})

    def _discard_leftovers(self) -> None:
        """Once, and while this process is the only writer: delete what killed ones had staged and drafted."""
        if not self._leftovers:
            return
        for view in STATE_VIEWS:
            segments.discard_staged(self._offline / view.name)
        for folder in self._offline.glob(".*"):  # drafts, and what they have taken the place of
            shutil.rmtree(folder, ignore_errors=True)
        self._online.drop([table for table in self._online.tables() if table.startswith(DRAFT)])
        self._leftovers = False

    def erase(self, entity: str, key: str, *, until_ms: int, offline: bool = True) -> int:
        """Erase the states of an entity up to an instant; returns how many there were.

        Args:
            entity: `url`, `host` or `group`.
            offline: only the writer may erase there, from the thread that publishes.

        Raises:
            ConfigurationError: Feast's stores are not the platform's.
            StoreUnavailable: a store cannot be written.
        """
        count = 0
        for view in STATE_VIEWS:
            if view.entity == entity:
                count += self._online.erase(self._table(view), string_keys(entity, [key]), until_us=until_ms * 1000)
                if offline:
                    folder = self._offline / view.name
                    count += segments.erase(folder, {entity: key}, timestamp_column=_EVENT, until_us=until_ms * 1000)
        return count

    @property
    def online_is_embedded(self) -> bool:
        """Whether :meth:`read` waits for no other process."""
        return self._online.embedded

    def read(self, view: StateView, keys: Sequence[str]) -> OnlineStates:
        """The newest states of the entities with these keys, in their order; no Feast, no protobuf.

        Raises:
            ConfigurationError: Feast's online store is not the platform's.
            StoreUnavailable: the store cannot be read, or holds rows of another schema of the view.
        """
        states, ts_ms = view.initial(len(keys)), np.zeros(len(keys), np.int64)
        rows = self._online.read(self._table(view), string_keys(view.entity, keys))
        packed = [row for row in rows if row is not None]
        if packed:
            present = [row is not None for row in rows]
            heads = _layout(view).heads(packed)
            states[present] = heads["state"]
            ts_ms[present] = heads["event_us"] // 1000
        return OnlineStates(states=states, ts_ms=ts_ms)

    def as_of(self, view: StateView, keys: Sequence[str], t_ms: npt.NDArray[np.int64]) -> OnlineStates:
        """The states of the entities with these keys as of an instant each, shape (n,), from the offline store.

        Raises:
            StoreUnavailable: a file of the store is damaged.
        """
        import polars as pl

        from urlhealth.feast_stores.asof import AT, CREATED, values_at

        folder, until_us = self._offline / view.name, int(t_ms.max(initial=0)) * 1000
        if not (len(keys) and segments.files(folder, until_us=until_us)):
            return OnlineStates(states=view.initial(len(keys)), ts_ms=np.zeros(len(keys), np.int64))
        rows = segments.scan(folder, until_us=until_us).rename({_EVENT: AT, _CREATED: CREATED})
        at = pl.Series(t_ms * 1000).cast(pl.Datetime("us", "UTC"))
        left = pl.DataFrame({view.entity: pl.Series(list(keys), dtype=pl.String), AT: at})
        found = values_at(left, rows, [view.entity], [AT, *(column.name for column in view.columns)], None)
        ts_ms = found[AT].dt.epoch("ms").fill_null(0).to_numpy()
        return OnlineStates(states=view.from_arrow(found.to_arrow()), ts_ms=ts_ms)

    def lives(self, since_ms: int, until_ms: int) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """URLs with verdicts in [since, until], and the first and the last of these of each; from the offline store.

        Raises:
            StoreUnavailable: a file of the store is damaged.
        """
        import polars as pl

        folder, since_us, until_us = self._offline / URL_STATE.name, since_ms * 1000, until_ms * 1000
        if not segments.files(folder, since_us=since_us, until_us=until_us):
            return [], np.zeros(0, np.int64), np.zeros(0, np.int64)
        at = pl.col(_EVENT).dt.epoch("ms")
        found = (
            segments.scan(folder, since_us=since_us, until_us=until_us)
            .select(URL_STATE.entity, at=at)
            .filter(pl.col("at").is_between(since_ms, until_ms))
            .group_by(URL_STATE.entity)
            .agg(first=pl.col("at").min(), last=pl.col("at").max())
            .sort(URL_STATE.entity)
            .collect(engine="streaming")
        )
        return found[URL_STATE.entity].to_list(), found["first"].to_numpy(), found["last"].to_numpy()

    def feast(self) -> "FeatureStore":
        """Feast's own view of the same stores; made once (importing Feast takes seconds)."""
        with self._lock:
            return self._feast

    def apply(self) -> bool:
        """Make the registry match `feature_repo`, as `feast apply` does; whether it had to be changed.

        Costs next to nothing if these definitions were applied before. A view whose schema changed loses its
        online rows; they can be filled again with `feast materialize`.
        """
        if self._is_applied():
            return False
        _apply(self.feast())
        segments.replace_file(self._stamp, lambda temporary: temporary.write_text(self._definitions))
        return True

    def apply_apart(self) -> bool:
        """The same in a process of its own: importing Feast would take 140 MB of a server, and stall it for seconds."""
        if self._is_applied():
            return False
        with Child() as child:
            return child.call(_applied, self._settings)

    def _is_applied(self) -> bool:
        registry = self._registry_file
        return (
            (registry is None or registry.exists())
            and self._stamp.exists()
            and self._stamp.read_text() == self._definitions
        )

    @property
    def _stamp(self) -> Path:
        return self._settings.feast_home / "applied"

    @cached_property
    def _yaml(self) -> dict[str, Any]:
        """`feature_store.yaml`, with paths of the embedded stores filled in from the settings."""
        import yaml

        path = self._settings.feast_yaml
        try:
            content = yaml.safe_load(self._settings.feast_yaml_text())
        except (OSError, yaml.YAMLError) as error:
            raise ConfigurationError(f"Feast's configuration {path} cannot be read: {error}") from error
        if not isinstance(content, dict) or not {"project", "registry"} <= content.keys():
            raise ConfigurationError(f"Feast's configuration {path} names no project or no registry")
        for section, kind, marker, default in (
            ("offline_store", _OFFLINE, "type", OFFLINE_FOLDER),
            ("online_store", _ONLINE, "type", ONLINE_FILE),
            ("registry", _REGISTRY, "registry_store_type", REGISTRY_FILE),
        ):
            store = content.get(section)
            if isinstance(store, str) and store == kind:
                store = content[section] = {"type": kind}
            if isinstance(store, dict) and store.get(marker) == kind:
                if kind == _ONLINE and not (store.get("path") or store.get("redis")) and self._settings.online_store:
                    store["redis"] = self._settings.online_store
                if store.get("redis"):
                    continue
                store["path"] = str(store_path(store.get("path"), _REPO, default, self._settings))
        return content

    def _store(self, section: str, kind: str) -> dict[str, Any]:
        store = self._yaml.get(section)
        if not isinstance(store, dict) or store.get("type") != kind:
            named = store.get("type") if isinstance(store, dict) else store
            raise ConfigurationError(
                f"{self._settings.feast_yaml} names {named!r} as {section}, which the platform cannot use: write "
                f"`type: {kind}` there, or unset FEAST_FS_YAML_FILE_PATH"
            )
        return store

    @cached_property
    def _offline(self) -> Path:
        return Path(self._store("offline_store", _OFFLINE)["path"])

    @cached_property
    def _compactor(self) -> Compactor:
        return Compactor({self._offline / view.name: (view.entity, _EVENT, _CREATED) for view in STATE_VIEWS})

    @cached_property
    def _online(self) -> OnlineRows:
        store = self._store("online_store", _ONLINE)
        return online_rows(store.get("path"), store.get("redis"), _REPO, self._settings)

    @cached_property
    def _feast(self) -> "FeatureStore":
        with _types_unchecked():
            from feast import FeatureStore
            from feast.repo_config import RepoConfig

        config = RepoConfig(**copy.deepcopy(self._yaml))
        config.repo_path = _REPO
        return FeatureStore(config=config)

    def _table(self, view: StateView) -> str:
        return table_name(self._yaml["project"], view.name)

    @property
    def _registry_file(self) -> Path | None:
        registry = self._yaml.get("registry")
        if isinstance(registry, dict) and registry.get("registry_store_type") == _REGISTRY:
            return Path(registry["path"])
        return None

    @cached_property
    def _definitions(self) -> str:
        """Fingerprint of all that the registry is made from."""
        parts = [repr(STATE_VIEWS), (_REPO / "definitions.py").read_text(), repr(self._yaml), version("feast")]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class Draft:
    """All states made anew: datasets and online tables under hidden names, until they are published."""

    def __init__(self, name: str, offline: Path, online: OnlineRows, tables: Mapping[StateView, str]) -> None:
        """`tables`: name of each view's online table."""
        self.name = name
        self._offline = offline
        self._folder = offline / name
        self._online = online
        self._tables = tables
        self._drafts = {view: f"{name}.{table}" for view, table in tables.items()}

    def write(self, rows: StateRows, *, segment: str, created_ms: int) -> None:
        """Add states offline.

        Raises:
            StoreUnavailable: the store cannot be written.
        """
        if len(rows):
            folder, table = self._folder / rows.view.name, _arrow(rows, created_ms)
            segments.append(folder, table, timestamp_column=_EVENT, segment=segment, bulk=True)

    def write_newest(self, rows: StateRows, *, created_ms: int) -> None:
        """Add states online: of each entity the newest one of those that are written offline.

        Raises:
            StoreUnavailable: the store cannot be written.
        """
        if len(rows):
            self._online.write(self._drafts[rows.view], _layout(rows.view), _packed(rows, created_ms))

    def publish(self) -> None:
        """Delete all states in use, and let those of the draft take their place.

        Raises:
            StoreUnavailable: a store cannot be written.
        """
        try:
            for view in self._tables:
                segments.replace(self._offline / view.name, self._folder / view.name)
        except OSError as error:
            raise StoreUnavailable(f"offline store {self._offline} cannot be written: {error}") from error
        self._online.replace({table: self._drafts[view] for view, table in self._tables.items()})

    def discard(self) -> None:
        """Delete what was not published."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._online.drop(self._drafts.values())


@contextmanager
def _touching(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreUnavailable(
            f"{what} {path} cannot be used ({error.strerror}): give this user the right to use it, or move it away and "
            "run `urlhealth features build --rebuild`"
        ) from error


def _arrow(rows: StateRows, created_ms: int) -> Any:
    """The states as a `pyarrow.Table`, as the offline store keeps them."""
    import pyarrow as pa

    instant = pa.timestamp("us", "UTC")
    return pa.table(
        {
            rows.view.entity: pa.array(rows.keys, pa.string()),
            _EVENT: pa.array(rows.ts_ms * 1000).cast(instant),
            _CREATED: pa.array(np.full(len(rows), created_ms * 1000)).cast(instant),
            **rows.view.to_arrow(rows.states),
        }
    )


def _packed(rows: StateRows, created_ms: int) -> list[Row]:
    """The newest state of each entity, as the online store keeps it."""
    event_us = rows.ts_ms * 1000
    newest = _newest(rows.keys, event_us)
    keys = string_keys(rows.view.entity, rows.keys[newest].tolist())
    packed = _layout(rows.view).pack_states(rows.states[newest], event_us[newest], created_ms * 1000)
    return list(zip(keys, packed, strict=True))


@lru_cache
def _layout(view: StateView) -> Layout:
    return Layout.of(view)


def _newest(keys: npt.NDArray[Any], event_us: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Positions of the newest row of each key (of equal ones the last)."""
    order = np.argsort(event_us, kind="stable")
    last = dict(zip(keys[order].tolist(), order.tolist(), strict=True))
    return np.fromiter(last.values(), np.intp, len(last))


def _applied(settings: Settings) -> bool:
    quiet_third_parties()
    return FeatureStores(settings).apply()


@contextmanager
def _types_unchecked() -> Iterator[None]:
    """Feast is imported in a third of the time: to check types of callers, typeguard rewrites its sources each time."""
    import typeguard

    def unchecked(target: Any = None, **_: Any) -> Any:
        return unchecked if target is None else target

    checked, typeguard.typechecked = typeguard.typechecked, unchecked
    try:
        yield
    finally:
        typeguard.typechecked = checked


def _apply(store: "FeatureStore") -> None:
    """Apply the objects of `definitions.py`, and delete those of this project that are no longer in it.

    Feast's own `apply_total` would change the process's working folder.
    """
    import feast
    from feast.feature_view import DUMMY_ENTITY
    from feast.repo_contents import RepoContents
    from feast.repo_operations import extract_objects_for_apply_delete

    spec = importlib.util.spec_from_file_location("urlhealth_feature_definitions", _REPO / "definitions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    objects = list(vars(module).values())
    views = [item for item in objects if isinstance(item, feast.FeatureView)]
    contents = RepoContents(
        projects=[feast.Project(name=store.project)],
        data_sources=[view.batch_source for view in views],
        entities=[*(item for item in objects if isinstance(item, feast.Entity)), DUMMY_ENTITY],
        feature_views=views,
        feature_services=[item for item in objects if isinstance(item, feast.FeatureService)],
        on_demand_feature_views=[],
        stream_feature_views=[],
        label_views=[],
        permissions=[],
    )
    changed, gone, _, _ = extract_objects_for_apply_delete(store.project, store.registry, contents)
    store.apply(changed, objects_to_delete=gone, partial=False)
