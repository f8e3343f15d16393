"""Feast online store of packed rows: one row per entity and view, in the embedded file or on a Redis server.

Imported by Feast, from `type` in `feature_store.yaml`. A row is written whole: a feature that a write lacks becomes
null. An older row never overwrites a newer one. One that is older than its view's TTL is not served.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from struct import Struct
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from feast import Entity, FeatureView, utils
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import compute_table_id
from feast.infra.online_stores.online_store import OnlineStore
from feast.metrics import track_feature_statuses
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.types import Array, PrimitiveFeastType
from feast.value_type import ValueType

from urlhealth.feast_stores import replies
from urlhealth.feast_stores.packed import Kind, Layout, PackedField
from urlhealth.feast_stores.paths import online_rows
from urlhealth.feast_stores.rows import OnlineRows, entity_keys
from urlhealth.vocabulary import Clock, system_clock

_log = logging.getLogger(__name__)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_KINDS: dict[PrimitiveFeastType, Kind] = {
    PrimitiveFeastType.FLOAT64: "float64",
    PrimitiveFeastType.FLOAT32: "float32",
    PrimitiveFeastType.INT64: "int64",
    PrimitiveFeastType.INT32: "int32",
    PrimitiveFeastType.BOOL: "bool",
    PrimitiveFeastType.UNIX_TIMESTAMP: "timestamp",
    PrimitiveFeastType.STRING: "string",
    PrimitiveFeastType.BYTES: "bytes",
}
_NUMBERS = ("float64", "float32", "int64", "int32", "bool")

#: For each field of Feast's `Value` that join keys have: number of its `ValueType`, and how an entity key holds it.
_KEYS: dict[str, tuple[int, Callable[[Any], bytes]]] = {
    "string_val": (ValueType.STRING.value, str.encode),
    "bytes_val": (ValueType.BYTES.value, bytes),
    "int32_val": (ValueType.INT32.value, Struct("<i").pack),
    "int64_val": (ValueType.INT64.value, Struct("<q").pack),
}

#: An event time that nothing is older than.
NEVER_US: Final = int(np.iinfo(np.int64).min)

#: Tag of a Feast field that says how many values its arrays have.
LENGTH_TAG = "length"


class PackedOnlineStoreConfig(FeastConfigBaseModel):
    """What `online_store` in `feature_store.yaml` may say."""

    type: Literal["urlhealth.feast_stores.online.PackedOnlineStore"] = "urlhealth.feast_stores.online.PackedOnlineStore"
    #: The LMDB file, relative to the repo; by default in the platform's home folder.
    path: str | None = None
    #: A Redis server instead, like redis://HOST:PORT/DB?prefix=NAME; by default the setting `online_store`.
    redis: str | None = None


class PackedOnlineStore(OnlineStore):
    """One packed row per entity and view, in an LMDB file or on a Redis server."""

    # Says so at once, where Feast would import several other stores to find out.
    _versioned_read_supported = False

    def __init__(self, *, clock: Clock = system_clock) -> None:
        self._rows: OnlineRows | None = None
        self._clock = clock

    def rows(self, config: RepoConfig) -> OnlineRows:
        """The place of the packed rows."""
        if self._rows is None:
            self._rows = online_rows(config.online_store.path, config.online_store.redis, config.repo_path)
        return self._rows

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write rows, in a file in one transaction; timestamps without a zone are UTC."""
        layout = layout_of(table)
        columns = [
            pa.array([_python(field, values.get(field.name)) for _, values, _, _ in data], field.arrow_type)
            for field in layout.fields
        ]
        packed = layout.pack(
            pa.table(columns, names=[field.name for field in layout.fields]),
            [_us(event) for _, _, event, _ in data],
            [_us(created) if created else 0 for _, _, _, created in data],
        )
        version = config.entity_key_serialization_version
        keys = [serialize_entity_key(key, version) for key, _, _, _ in data]
        self.rows(config).write(table_of(config, table), layout, zip(keys, packed, strict=True))
        if progress:
            progress(len(data))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """Event time and requested features of each entity, `None` for what is not there or has expired."""
        layout = layout_of(table)
        version = config.entity_key_serialization_version
        keys = [serialize_entity_key(key, version) for key in entity_keys]
        rows = self.rows(config).read(table_of(config, table), keys)
        packed = [row for row in rows if row is not None]
        names = [f.name for f in layout.fields if requested_features is None or f.name in requested_features]
        columns = layout.unpack(packed, names)
        values = [[replies.proto(layout.field(name), value) for value in columns[name]] for name in names]
        oldest_us = self._oldest_us(table)
        found = iter(
            [
                (_EPOCH + timedelta(microseconds=event_us), dict(zip(names, row, strict=True)))
                if event_us >= oldest_us
                else (_EPOCH + timedelta(microseconds=event_us), None)
                for event_us, row in zip(
                    layout.heads(packed)["event_us"].tolist(),
                    zip(*values, strict=True) if values else [()] * len(packed),
                    strict=True,
                )
            ]
        )
        return [(None, None) if row is None else next(found) for row in rows]

    def _oldest_us(self, view: FeatureView) -> int:
        """The event time, microseconds since 1970 UTC, before which a row of a view has expired."""
        return oldest_us(view.ttl, self._clock())

    def _read_features_per_fv(
        self,
        config: RepoConfig,
        grouped_refs: list[tuple[FeatureView, list[str]]],
        join_key_values: dict[str, list[Value]],
        entity_name_to_join_key_map: dict[str, str],
        online_features_response: GetOnlineFeaturesResponse,
        full_feature_names: bool,
        include_feature_view_version_metadata: bool,
    ) -> None:
        """Answers `get_online_features` as the base class does, but with wire bytes instead of a message a value."""
        keyed = [
            (view, names, _keys(utils._get_table_entity_values(view, entity_name_to_join_key_map, join_key_values)))
            for view, names in grouped_refs
        ]
        if (
            include_feature_view_version_metadata
            or config.entity_key_serialization_version != 3
            or any(len(keys) != _longest(join_key_values) for _, _, keys in keyed)
        ):
            super()._read_features_per_fv(
                config,
                grouped_refs,
                join_key_values,
                entity_name_to_join_key_map,
                online_features_response,
                full_feature_names,
                include_feature_view_version_metadata,
            )
            return
        for view, names, keys in keyed:
            rows = self.rows(config).read(table_of(config, view), keys)
            prefix = f"{view.projection.name_to_use()}__" if full_feature_names else ""
            online_features_response.metadata.feature_names.val.extend(prefix + name for name in names)
            encoded, hits = replies.results(layout_of(view), names, rows, self._oldest_us(view))
            online_features_response.MergeFromString(encoded)
            track_feature_statuses(view.name, hits * len(names), (len(rows) - hits) * len(names))

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],  # noqa: ARG002 (Feast's signature)
        entities_to_keep: Sequence[Entity],  # noqa: ARG002
        partial: bool,  # noqa: ARG002
    ) -> None:
        """Make the views' tables; one whose schema changed is emptied, because its rows cannot be read any more."""
        rows = self.rows(config)
        rows.drop(table_of(config, view) for view in tables_to_delete)
        for view in tables_to_keep:
            if rows.define(table_of(config, view), layout_of(view)):
                _log.warning(
                    "the schema of view %s changed: its online rows were deleted; fill them again with "
                    "`feast materialize --disable-event-timestamp`",
                    view.name,
                )

    def teardown(
        self,
        config: RepoConfig,
        tables: Sequence[FeatureView],
        entities: Sequence[Entity],  # noqa: ARG002 (Feast's signature)
    ) -> None:
        """Delete the views' tables."""
        self.rows(config).drop(table_of(config, view) for view in tables)


def table_of(config: RepoConfig, view: FeatureView) -> str:
    """Name of the table of a view (of its version, if versions are switched on)."""
    name: str = compute_table_id(config.project, view, config.registry.enable_online_feature_view_versioning)
    return name


def layout_of(view: FeatureView) -> Layout:
    """The layout of any Feast view's rows: numbers, text and bytes as they are, other types as Feast's own values."""
    return _layout(view.name, tuple((f.name, f.dtype, (f.tags or {}).get(LENGTH_TAG, "0")) for f in view.features))


@lru_cache(maxsize=256)
def _layout(view: str, features: tuple[tuple[str, Any, str], ...]) -> Layout:
    return Layout(view=view, fields=tuple(_field(name, dtype, int(length)) for name, dtype, length in features))


def _field(name: str, dtype: Any, length: int) -> PackedField:
    if isinstance(dtype, Array):
        kind = _KINDS.get(dtype.base_type)
        if kind in _NUMBERS:
            return PackedField(name=name, kind=kind, length=length if length > 1 else 0)
    elif dtype in _KINDS:
        return PackedField(name=name, kind=_KINDS[dtype])
    return PackedField(name=name, kind="value")


def oldest_us(ttl: timedelta | None, now_ms: int) -> int:
    """The event time, microseconds since 1970 UTC, before which a row has expired; a TTL of 0 is none."""
    return now_ms * 1000 - ttl // timedelta(microseconds=1) if ttl else NEVER_US


def _longest(columns: dict[str, list[Value]]) -> int:
    return max((len(values) for values in columns.values()), default=0)


def _keys(columns: dict[str, list[Value]]) -> list[bytes]:
    """Entity keys from the join keys' values; none if there is a value that only Feast's own way can tell about."""
    encoded: dict[str, tuple[int, list[bytes]]] = {}
    for name, values in columns.items():
        kinds = {value.WhichOneof("val") for value in values}
        kind = kinds.pop() if len(kinds) == 1 else None
        if kind is None or kind not in _KEYS:
            return []
        number, to_bytes = _KEYS[kind]
        encoded[name] = (number, [to_bytes(getattr(value, kind)) for value in values])
    return entity_keys(encoded)


def _python(field: PackedField, value: Value | None) -> Any:
    which = None if value is None else value.WhichOneof("val")
    if value is None or which is None:
        return None
    if field.kind == "value":
        return value.SerializeToString()
    held = getattr(value, which)
    return held if field.length == 1 else list(held.val)


def _us(moment: datetime) -> int:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)
