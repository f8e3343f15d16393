"""One entity's features as one row of bytes, laid out by the schema of its Feast view.

    event_us, created_us   the instant that it is of, and when it was made (0: not known): microseconds since 1970 UTC
    schema   8 bytes, fingerprint of the layout: a row written for another schema is never misread
    nulls    one bit a field, set where the value is null
    state    a packed NumPy record: numbers and arrays of fixed length as they are, and for each field of varying
             length its size in bytes (uint32)
    tail     the bytes of the fields of varying length, in order

For a view of the platform `state` is exactly the record of `StateView.dtype`, so that rows become states without
touching single values. Everything is little-endian.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from struct import Struct
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt

from urlhealth.errors import StoreUnavailable
from urlhealth.features.columns import StateView

#: `timestamp` is in whole seconds since 1970, as in Feast; `value` is a serialized Feast `Value` of any other type.
Kind = Literal["float64", "float32", "int64", "int32", "bool", "timestamp", "string", "bytes", "value"]

#: How a row begins.
TIMES: Final = Struct("<qq")

_FIXED: dict[str, str] = {
    "float64": "<f8",
    "float32": "<f4",
    "int64": "<i8",
    "int32": "<i4",
    "bool": "?",
    "timestamp": "<i8",
}


@dataclass(frozen=True, kw_only=True)
class PackedField:
    """One feature of a view."""

    name: str
    kind: Kind
    #: Number of values: 1 is a scalar, more an array of that fixed length, 0 an array of varying length.
    length: int = 1

    @property
    def fixed(self) -> bool:
        """Whether each row spends the same number of bytes on it."""
        return self.kind in _FIXED and self.length > 0

    @property
    def arrow_type(self) -> Any:
        """The Arrow type of its values (of timestamps: of seconds as they are packed)."""
        import pyarrow as pa

        names = {"timestamp": "int64", "bytes": "binary", "value": "binary"}
        scalar = pa.type_for_alias(names.get(self.kind, self.kind))
        return scalar if self.length == 1 else pa.list_(scalar)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where each feature of a view is in a row."""

    #: Name of the view, for messages.
    view: str
    fields: tuple[PackedField, ...]

    @classmethod
    def of(cls, view: StateView) -> Self:
        """The layout of one of the platform's own views."""
        fields = tuple(PackedField(name=c.name, kind=c.dtype, length=c.length) for c in view.columns)
        return cls(view=view.name, fields=fields)

    @cached_property
    def fingerprint(self) -> int:
        """64 bits that differ when a name, a type, a length or the order of fields differs."""
        text = repr([(field.name, field.kind, field.length) for field in self.fields])
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """The NumPy record of a row without its tail."""
        state: list[Any] = [
            (f.name, "<u4") if not f.fixed else (f.name, _FIXED[f.kind], (f.length,) if f.length > 1 else ())
            for f in self.fields
        ]
        head = [("event_us", "<i8"), ("created_us", "<i8"), ("schema", "<u8")]
        return np.dtype([*head, ("nulls", "u1", ((len(self.fields) + 7) // 8,)), ("state", state)])

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {field.name: i for i, field in enumerate(self.fields)}

    @cached_property
    def _tails(self) -> tuple[PackedField, ...]:
        return tuple(field for field in self.fields if not field.fixed)

    def pack_states(
        self, states: npt.NDArray[np.void], event_us: npt.ArrayLike = 0, created_us: npt.ArrayLike = 0
    ) -> list[bytes]:
        """Rows of records that have this layout's `state` dtype, shape (n,), and their times (one, or n of them)."""
        rows = self._empty(len(states), event_us, created_us)
        rows["state"] = states
        return _as_bytes(rows)

    def _empty(self, n: int, event_us: npt.ArrayLike, created_us: npt.ArrayLike) -> npt.NDArray[np.void]:
        rows = np.zeros(n, self.dtype)
        rows["event_us"], rows["created_us"], rows["schema"] = event_us, created_us, self.fingerprint
        return rows

    def pack(self, table: Any, event_us: npt.ArrayLike = 0, created_us: npt.ArrayLike = 0) -> list[bytes]:
        """Rows of a `pyarrow.Table` that has a column for each field (others are ignored), and their times.

        Raises:
            ValueError: a column cannot be held by its field; names view and column.
        """
        rows = self._empty(table.num_rows, event_us, created_us)
        tails: list[list[bytes]] = []
        for i, field in enumerate(self.fields):
            array = _contiguous(table.column(field.name), field)
            present = np.asarray(array.is_valid())
            rows["nulls"][~present, i // 8] |= np.uint8(1 << (i % 8))
            try:
                if field.fixed:
                    self._fill(rows["state"][field.name], field, array, present)
                else:
                    tails.append(_tail(field, array))
                    rows["state"][field.name] = [len(tail) for tail in tails[-1]]
            except (ValueError, NotImplementedError) as error:  # pyarrow's own errors are among these
                raise ValueError(f"feature {field.name} of view {self.view} cannot be stored: {error}") from error
        heads = _as_bytes(rows)
        return [b"".join(parts) for parts in zip(heads, *tails, strict=True)] if tails else heads

    @staticmethod
    def _fill(out: npt.NDArray[Any], field: PackedField, array: Any, present: npt.NDArray[np.bool_]) -> None:
        if np.issubdtype(out.dtype, np.floating):
            out[~present] = np.nan  # so that a reader of whole records need not look at the null bits
        values = array.drop_null()
        if field.length > 1:
            lengths = set(_lengths(values).tolist()) - {field.length}
            if lengths:
                raise ValueError(f"arrays of {field.length} values are wanted, not of {min(lengths)}")
            out[present] = _numbers(field, values.flatten()).reshape(-1, field.length)
        else:
            out[present] = _numbers(field, values)

    def heads(self, rows: Sequence[bytes]) -> npt.NDArray[np.void]:
        """Records of `dtype`, shape (n,): the rows without their tails.

        Raises:
            StoreUnavailable: a row was written for another schema of the view.
        """
        size = self.dtype.itemsize
        joined = b"".join([row[:size] for row in rows] if self._tails else rows)
        if len(joined) == len(rows) * size:
            heads: npt.NDArray[np.void] = np.frombuffer(joined, self.dtype)
            if bool((heads["schema"] == self.fingerprint).all()):
                return heads
        raise StoreUnavailable(other_schema(self.view))

    def field(self, name: str) -> PackedField:
        """The field of that name."""
        return self.fields[self._positions[name]]

    def nulls(self, heads: npt.NDArray[np.void], names: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Where fields are null (a NaN may be beside it); shape (len(names), n)."""
        bits = np.unpackbits(heads["nulls"], axis=1, bitorder="little").view(bool)
        return bits.T[[self._positions[name] for name in names]]

    def unpack(self, rows: Sequence[bytes], names: Sequence[str]) -> dict[str, list[Any]]:
        """Values of the named fields by row: `None` for null or NaN, arrays as lists, other kinds as bytes.

        Raises:
            StoreUnavailable: a row was written for another schema of the view.
        """
        heads = self.heads(rows)
        ends = np.full(len(rows), self.dtype.itemsize, np.int64)
        spans: dict[str, tuple[list[int], list[int]]] = {}
        for field in self._tails:
            starts, ends = ends, ends + heads["state"][field.name]
            spans[field.name] = (starts.tolist(), ends.tolist())
        columns: dict[str, list[Any]] = {}
        nulls = dict(zip(names, self.nulls(heads, names), strict=True))
        for name in names:
            field, null = self.field(name), nulls[name]
            if field.fixed:
                column = heads["state"][name]
                if field.length == 1 and field.kind.startswith("float"):
                    null = null | np.isnan(column)
                values: list[Any] = column.tolist()
            else:
                pieces = [row[start:end] for row, start, end in zip(rows, *spans[name], strict=True)]
                values = (
                    [np.frombuffer(p, _FIXED[field.kind]).tolist() for p in pieces] if field.length == 0 else pieces
                )
            if null.any():
                values = [None if missing else value for value, missing in zip(values, null.tolist(), strict=True)]
            columns[name] = values
        return columns


def other_schema(view: str) -> str:
    """What to say of rows that another schema of a view wrote."""
    return (
        f"online store: view {view} holds rows of another schema than the one in use. Run `feast -c feature_repo apply`"
        " and then `feast -c feature_repo materialize --disable-event-timestamp`"
    )


def _as_bytes(rows: npt.NDArray[np.void]) -> list[bytes]:
    whole: list[bytes] = rows.view(f"V{rows.dtype.itemsize}").tolist()
    return whole


def _contiguous(column: Any, field: PackedField) -> Any:
    import pyarrow as pa

    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # no chunk at all
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_null(array.type):
        return array.cast(field.arrow_type)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _lengths(lists: Any) -> npt.NDArray[np.int64]:
    import pyarrow.compute as pc

    return np.asarray(pc.list_value_length(lists).fill_null(0), np.int64)


def _numbers(field: PackedField, values: Any) -> npt.NDArray[Any]:
    import pyarrow as pa

    if field.kind == "timestamp":
        if pa.types.is_timestamp(values.type):
            values = values.cast(pa.timestamp("s", values.type.tz), safe=False)
        values = values.cast(pa.int64())
    else:
        values = values.cast(pa.type_for_alias(field.kind))
    numbers: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return numbers


def _tail(field: PackedField, array: Any) -> list[bytes]:
    import pyarrow as pa

    if field.length == 1:
        if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
            array = array.cast(pa.large_string())
        return [value or b"" for value in array.cast(pa.large_binary()).to_pylist()]
    numbers = np.ascontiguousarray(_numbers(field, array.drop_null().flatten()), _FIXED[field.kind]).tobytes()
    width = np.dtype(_FIXED[field.kind]).itemsize
    ends = (np.cumsum(_lengths(array)) * width).tolist()
    return [numbers[start:end] for start, end in pairwise([0, *ends])]
