"""The vector path: what `get_online_features` answers for a feature service, as NumPy arrays instead of messages.

For any Feast repo whose online store is :class:`~urlhealth.feast_stores.online.PackedOnlineStore`.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.type_map import feast_value_type_to_python_type
from feast.value_type import ValueType

from urlhealth.errors import ConfigurationError, InvalidRequest
from urlhealth.feast_stores import replies
from urlhealth.feast_stores.online import PackedOnlineStoreConfig, layout_of, oldest_us, table_of
from urlhealth.feast_stores.packed import Layout
from urlhealth.feast_stores.paths import online_rows
from urlhealth.feast_stores.rows import entity_keys
from urlhealth.vocabulary import Freshness

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore

#: How an entity key holds a value of each type that join keys have.
_KEYS: Final[dict[ValueType, Callable[[Any], bytes]]] = {
    ValueType.STRING: str.encode,
    ValueType.BYTES: bytes,
    ValueType.INT32: struct.Struct("<i").pack,
    ValueType.INT64: struct.Struct("<q").pack,
}


_WORDS: Final = np.array([word.value for word in Freshness]).dtype


@dataclass(frozen=True, kw_only=True, eq=False)
class ViewArrays:
    """What one view of the service holds of n entities."""

    #: Its features in the service, in order.
    features: tuple[str, ...]
    #: int64, shape (n,): instant that each row is of, microseconds since 1970 UTC; 0 where there is none.
    event_us: npt.NDArray[np.int64]
    #: Words of :class:`Freshness`, shape (n,).
    status: npt.NDArray[np.str_]
    _view: "_View"
    #: Shape (n,): which entities have values, because they are known and their rows have not expired.
    _held: npt.NDArray[np.bool_]
    #: Of these, the packed rows, and the records that they begin with.
    _packed: Sequence[bytes]
    _heads: npt.NDArray[np.void]

    def column(self, feature: str) -> np.ma.MaskedArray[Any, Any]:
        """Values of a feature, masked where null (or NaN), and where the entity is missing or past the view's TTL.

        Shape (n,); for arrays of fixed length (n, length). Numbers have their own type, timestamps are
        `datetime64[s]` UTC; text, bytes, arrays of varying length and Feast's other types are objects.

        Raises:
            InvalidRequest: the service has no such feature of this view.
        """
        layout, heads = self._view.layout, self._heads
        if feature not in self.features:
            raise InvalidRequest(
                f"view {layout.view} of the service has no feature {feature!r}: choose among "
                + ", ".join(self.features)
            )
        field, n = layout.field(feature), len(self._held)
        if not field.fixed:
            found = _all_masked((n,), np.dtype(object))
            values = layout.unpack(self._packed, [feature])[feature]
            for i, value in zip(np.flatnonzero(self._held).tolist(), values, strict=True):
                if value is not None:
                    found[i] = feast_value_type_to_python_type(replies.proto(field, value))
            return found
        held = heads["state"][feature]
        null = layout.nulls(heads, [feature])[0]
        if held.ndim > 1:
            null = np.broadcast_to(null[:, None], held.shape)
        elif field.kind.startswith("float"):
            null = null | np.isnan(held)
        if field.kind == "timestamp":
            held = held.astype("datetime64[s]")
        column = _all_masked((n, *held.shape[1:]), held.dtype)
        column[self._held] = np.ma.masked_array(held, null)
        return column

    def matrix(self, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
        """All features side by side, shape (n, len(features)); NaN where a column would be masked.

        Raises:
            InvalidRequest: one is no number; names it.
        """
        heads = self._heads
        if self._view.block is not None:  # where they are null there is NaN already
            offset, kind = self._view.block
            end = offset + len(self.features) * kind.itemsize
            octets = heads.view(np.uint8).reshape(len(heads), heads.dtype.itemsize)
            found = octets[:, offset:end].view(kind).astype(dtype)
        else:
            found = self._view.columns(heads, np.dtype(dtype))
        if len(found) == len(self._held):
            return found
        matrix = np.full((len(self._held), len(self.features)), np.nan, dtype)
        matrix[self._held] = found
        return matrix


class ServiceReader:
    """Reads a feature service from the online store, past Feast's SDK. Safe to share between threads.

    It knows the service as it was when the reader was made: after `feast apply`, make another.
    """

    def __init__(self, store: "FeatureStore", service: "str | FeatureService") -> None:
        """
        Args:
            service: its name, or the service itself as `store.get_feature_service` gives it.

        Raises:
            ConfigurationError: the repo's online store is another, or the service has views without stored features.
        """
        config = store.config
        if not isinstance(config.online_store, PackedOnlineStoreConfig) or config.entity_key_serialization_version != 3:
            raise ConfigurationError(
                "arrays are read from urlhealth.feast_stores.online.PackedOnlineStore, with "
                "entity_key_serialization_version 3: name both in feature_store.yaml"
            )
        if isinstance(service, str):
            service = store.get_feature_service(service)
        self._rows = online_rows(config.online_store.path, config.online_store.redis, config.repo_path)
        on_demand = {view.name for view in store.list_on_demand_feature_views()}
        self._views: dict[str, _View] = {}
        for projection in service.feature_view_projections:
            if projection.name in on_demand:
                raise ConfigurationError(
                    f"service {service.name} has the on-demand view {projection.name}, which is computed and not "
                    "stored: use get_online_features"
                )
            view = store.get_feature_view(projection.name)
            self._views[projection.name_to_use()] = _View(
                table=table_of(config, view),
                layout=layout_of(view),
                features=tuple(field.name for field in projection.features),
                join_keys=tuple(
                    (column.name, projection.join_key_map.get(column.name, column.name), column.dtype.to_value_type())
                    for column in view.entity_columns
                ),
                ttl=view.ttl or timedelta(0),
            )

    @property
    def features(self) -> list[tuple[str, str]]:
        """The view and the name of each feature, in the order of the service."""
        return [(name, feature) for name, view in self._views.items() for feature in view.features]

    @property
    def join_keys(self) -> dict[str, str]:
        """By the name of each join key that is asked for, Feast's name of its type."""
        keys = (key for view in self._views.values() for key in view.join_keys)
        return {asked: kind.name for name, asked, kind in keys if name != DUMMY_ENTITY_ID}

    @property
    def is_embedded(self) -> bool:
        """Whether :meth:`read` waits for no other process."""
        return self._rows.embedded

    def read(
        self, entities: Mapping[str, Sequence[Any]], *, now_ms: int, fresh_for: timedelta | None = None
    ) -> dict[str, ViewArrays]:
        """What each view of the service holds of the entities, by the view's name in the service.

        Args:
            entities: for each join key its n values.
            now_ms: the instant of reading, ms since 1970 UTC.
            fresh_for: from which age (see :attr:`ViewArrays.event_us`) on rows are stale. Those that are older than
                their view's TTL (0: none) are stale in any case, and have no values.

        Raises:
            InvalidRequest: a join key is absent, has values of another type, or fewer than another.
            StoreUnavailable: the store cannot be read, or holds rows of another schema of a view.
        """
        lengths = {len(values) for values in entities.values()}
        if len(lengths) > 1:
            raise InvalidRequest(f"each join key needs one value an entity, not {min(lengths)} and {max(lengths)}")
        n = lengths.pop() if lengths else 0
        return {name: self._read(view, entities, n, now_ms, fresh_for) for name, view in self._views.items()}

    def _read(
        self, view: "_View", entities: Mapping[str, Sequence[Any]], n: int, now_ms: int, fresh_for: timedelta | None
    ) -> ViewArrays:
        rows = self._rows.read(view.table, view.keys(entities, n))
        packed = [row for row in rows if row is not None]
        heads = view.layout.heads(packed)
        known = np.ones(n, bool) if len(packed) == n else np.array([row is not None for row in rows], bool)
        event_us = np.zeros(n, np.int64)
        event_us[known] = heads["event_us"]
        expired_us = oldest_us(view.ttl, now_ms)
        stale_us = expired_us if fresh_for is None else now_ms * 1000 - fresh_for // timedelta(microseconds=1)
        status = np.full(n, Freshness.FRESH.value, _WORDS)
        status[event_us < max(stale_us, expired_us)] = Freshness.STALE.value
        status[~known] = Freshness.MISSING.value
        if view.ttl:
            valid = heads["event_us"] >= expired_us
            if not valid.all():
                known[known] = valid
                heads, packed = heads[valid], [row for row, is_valid in zip(packed, valid, strict=True) if is_valid]
        return ViewArrays(
            features=view.features,
            event_us=event_us,
            status=status,
            _view=view,
            _held=known,
            _packed=packed,
            _heads=heads,
        )


@dataclass(frozen=True, kw_only=True)
class _View:
    table: str
    layout: Layout
    features: tuple[str, ...]
    #: Of each: its name in the view, what the service calls it, its type.
    join_keys: tuple[tuple[str, str, ValueType], ...]
    ttl: timedelta

    @cached_property
    def block(self) -> tuple[int, np.dtype[Any]] | None:
        """Offset in a row and type of the features, if they are side by side there and floats of one type."""
        kinds = {self.layout.field(name).kind for name in self.features}
        if len(kinds) != 1 or not kinds <= {"float32", "float64"}:
            return None
        row, state = self.layout.dtype, self.layout.dtype["state"]
        assert row.fields is not None
        assert state.fields is not None
        places = [state.fields[name][:2] for name in self.features]
        kind, start = places[0]
        if any(place != (kind, start + i * kind.itemsize) for i, place in enumerate(places)):
            return None
        return row.fields["state"][1] + start, kind

    def columns(self, heads: npt.NDArray[np.void], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """The features side by side, NaN where they are null.

        Raises:
            InvalidRequest: one is no number; names it.
        """
        for name in self.features:
            field = self.layout.field(name)
            if not field.fixed or field.length > 1 or field.kind == "timestamp":
                raise InvalidRequest(f"feature {name} of view {self.layout.view} is no number: ask for its column")
        found = np.empty((len(heads), len(self.features)), dtype)
        for j, name in enumerate(self.features):
            found[:, j] = heads["state"][name]
        found[self.layout.nulls(heads, self.features).T] = np.nan
        return found

    def keys(self, entities: Mapping[str, Sequence[Any]], n: int) -> list[bytes]:
        """Feast's entity keys."""
        columns = {}
        for name, asked, kind in self.join_keys:
            values = [DUMMY_ENTITY_VAL] * n if name == DUMMY_ENTITY_ID else entities.get(asked)
            if values is None or kind not in _KEYS:
                raise InvalidRequest(
                    f"view {self.layout.view} is read by {asked}, which "
                    + ("is not among the entities" if values is None else f"is of type {kind.name}: use the SDK")
                )
            try:
                columns[name] = (kind.value, [*map(_KEYS[kind], values)])
            except (TypeError, ValueError, struct.error) as error:
                raise InvalidRequest(f"{asked}: values of type {kind.name} are wanted: {error}") from error
        return entity_keys(columns)


def _all_masked(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ma.MaskedArray[Any, Any]:
    return np.ma.MaskedArray(np.zeros(shape, dtype), mask=np.ones(shape, bool))
