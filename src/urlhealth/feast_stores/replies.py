"""Packed rows as Feast's protobuf messages: value by value, and whole replies at once.

Imported only by the online store.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import Value

from urlhealth.feast_stores import wire
from urlhealth.feast_stores.packed import Kind, Layout, PackedField

#: Field of Feast's `Value`, for scalars.
_VALUES: Final[dict[Kind, str]] = {
    "float64": "double_val",
    "float32": "float_val",
    "int64": "int64_val",
    "int32": "int32_val",
    "bool": "bool_val",
    "timestamp": "unix_timestamp_val",
    "string": "string_val",
    "bytes": "bytes_val",
}

#: Kinds that are numbers in the wire format too: how, and the type that they are taken for.
_WIRE: Final[dict[Kind, int]] = {
    "float64": wire.FIXED64,
    "float32": wire.FIXED32,
    "int64": wire.VARINT,
    "int32": wire.VARINT,
    "bool": wire.VARINT,
    "timestamp": wire.VARINT,
}
_VECTOR: Final = GetOnlineFeaturesResponse.FeatureVector.DESCRIPTOR.fields_by_name
_RESULTS: Final = wire.tag(GetOnlineFeaturesResponse.RESULTS_FIELD_NUMBER, wire.BYTES)
_PRESENT, _NOT_FOUND, _EXPIRED = FieldStatus.PRESENT, FieldStatus.NOT_FOUND, FieldStatus.OUTSIDE_MAX_AGE


def proto(field: PackedField, value: Any) -> Value:
    """A value as :meth:`Layout.unpack` gives it."""
    made = Value()
    if value is None:
        return made
    if field.kind == "value":
        made.ParseFromString(value)
        return made
    name = _VALUES[field.kind]
    if field.length == 1:
        return Value(**{name: value.decode() if field.kind == "string" else value})
    getattr(made, name.replace("_val", "_list_val")).val.extend(value)
    return made


def results(layout: Layout, names: Sequence[str], rows: Sequence[bytes | None], oldest_us: int) -> tuple[bytes, int]:
    """The field `results` of a `GetOnlineFeaturesResponse`, encoded: a vector for each named feature.

    Also returns how many entities have values.

    Args:
        rows: the packed row of each entity; None if there is none.
        oldest_us: event time, microseconds since 1970 UTC, before which a row has expired: its values are left out.

    Raises:
        StoreUnavailable: a row was written for another schema of the view.
    """
    known = np.array([row is not None for row in rows], bool)
    packed = [row for row in rows if row is not None]
    heads = layout.heads(packed)
    event_us = np.zeros(len(rows), np.int64)
    event_us[known] = heads["event_us"]
    found = known & (event_us >= oldest_us)
    if found.sum() < len(packed):
        packed = [row for row, there in zip(rows, found.tolist(), strict=True) if row is not None and there]
        heads = layout.heads(packed)
    after = _statuses(known, found) + _timestamps(known, event_us)
    encoded: dict[str, bytes] = {}
    by_kind: dict[Kind, list[str]] = {}
    for name in names:
        field = layout.field(name)
        if field.fixed and field.length == 1:
            by_kind.setdefault(field.kind, []).append(name)
        else:
            encoded[name] = _singly(layout, name, packed, found)
    for kind, alike in by_kind.items():
        encoded.update(_together(layout, kind, alike, heads, found))
    vectors = [encoded[name] + after for name in names]
    return b"".join(_RESULTS + wire.varint(len(vector)) + vector for vector in vectors), int(found.sum())


def _together(
    layout: Layout, kind: Kind, names: Sequence[str], heads: npt.NDArray[np.void], found: npt.NDArray[np.bool_]
) -> dict[str, bytes]:
    """The field `values` of the vectors of scalar features of one kind."""
    numbers = np.zeros((len(names), len(found)), heads.dtype["state"][names[0]])
    for row, name in zip(numbers, names, strict=True):
        row[found] = heads["state"][name]
    present = np.zeros(numbers.shape, bool)
    present[:, found] = ~layout.nulls(heads, names)
    present &= ~np.isnan(numbers)
    number, way = Value.DESCRIPTOR.fields_by_name[_VALUES[kind]].number, _WIRE[kind]
    tag, vector = wire.tag(number, way), _VECTOR["values"].number
    if way == wire.VARINT:
        flat = numbers.reshape(-1).astype(np.int64)
        bodies = wire.joined(wire.constant(tag, len(flat)), wire.varints(flat), where=present.reshape(-1))
        values = wire.messages(vector, bodies)
        sizes, whole = values.sizes.reshape(numbers.shape).sum(axis=1), bytes(values)
    else:
        sizes, whole = wire.fixed_messages(vector, tag, numbers, where=present)
    ends = np.cumsum(sizes).tolist()
    return {name: whole[start:end] for name, start, end in zip(names, [0, *ends], ends, strict=False)}


def _singly(layout: Layout, name: str, packed: Sequence[bytes], found: npt.NDArray[np.bool_]) -> bytes:
    """The field `values` of the vector of any feature."""
    field = layout.field(name)
    values = iter(layout.unpack(packed, [name])[name])
    tag = wire.tag(_VECTOR["values"].number, wire.BYTES)
    bodies = [proto(field, next(values)).SerializeToString() if there else b"" for there in found.tolist()]
    return b"".join(tag + wire.varint(len(body)) + body for body in bodies)


def _statuses(known: npt.NDArray[np.bool_], found: npt.NDArray[np.bool_]) -> bytes:
    words = np.where(found, _PRESENT, np.where(known, _EXPIRED, _NOT_FOUND))
    statuses = words.astype(np.uint8).tobytes()  # each a varint of one byte
    return wire.tag(_VECTOR["statuses"].number, wire.BYTES) + wire.varint(len(statuses)) + statuses


def _timestamps(found: npt.NDArray[np.bool_], event_us: npt.NDArray[np.int64]) -> bytes:
    seconds, rest_us = np.divmod(event_us, 1_000_000)
    parts = []
    for number, numbers in ((1, seconds), (2, rest_us * 1000)):  # `seconds` and `nanos` of a Timestamp
        parts += [wire.constant(wire.tag(number, wire.VARINT), len(found)), wire.varints(numbers)]
    return bytes(wire.messages(_VECTOR["event_timestamps"].number, wire.joined(*parts, where=found)))
