"""How feature state is described: typed columns of fixed size, from which everything else derives.

A :class:`StateView` is a list of columns. From it come the NumPy record that carries state in memory and on disk, the
Arrow schema of the offline store, and the Feast feature view.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Dtype = Literal["float64", "float32", "int64", "int32"]
#: `log_hours`, `log_ms` and `log_count` are ln(1 + x), `log_short_hours` is ln(0.1 + x); `log_rate` is ln(1 / hours);
#: `log_ratio` and `log_share` are ln(x).
Form = Literal[
    "state",
    "share",
    "hours",
    "days",
    "log_hours",
    "log_short_hours",
    "log_rate",
    "log_ms",
    "log_count",
    "log_ratio",
    "log_share",
    "number",
]

#: Records of a view's dtype, shape (n,).
States = npt.NDArray[np.void]


def whole_records(dtype: np.dtype[np.void]) -> np.dtype[np.void]:
    """What to view records as to copy them whole: NumPy copies field by field, which takes up to 20 times as long."""
    return np.dtype((np.void, dtype.itemsize))


def taken(records: npt.NDArray[np.void], some: npt.NDArray[Any]) -> npt.NDArray[np.void]:
    """`records[some]`, positions or a mask; the records themselves where a mask leaves none out."""
    if some.dtype == bool and some.all():
        return records
    chosen: npt.NDArray[np.void] = records.view(whole_records(records.dtype))[some].view(records.dtype)
    return chosen


def put(records: npt.NDArray[np.void], some: npt.NDArray[Any], new: npt.NDArray[np.void]) -> None:
    """`records[some] = new`, of the same dtype."""
    whole = whole_records(records.dtype)
    records.view(whole)[some] = new.view(whole)


def joined(*parts: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """`np.concatenate(parts)`, of one dtype; a part itself where all others are empty."""
    some = [part for part in parts if len(part)] or [parts[0]]
    if len(some) == 1:
        return some[0]
    whole = whole_records(parts[0].dtype)
    together: npt.NDArray[np.void] = np.concatenate([part.view(whole) for part in some]).view(parts[0].dtype)
    return together


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of carried state."""

    name: str
    dtype: Dtype
    #: One sentence: what it holds, in which unit.
    about: str
    #: Number of values; 1 is a scalar, more is a Feast array of that fixed length.
    length: int = 1
    #: Value (of each element) before anything was observed.
    initial: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StateView:
    """A set of columns carried for one kind of entity: a Feast feature view."""

    #: Name of the Feast view, and of the folder of its Parquet segments.
    name: str
    #: Name of the Feast entity and of its join key.
    entity: str
    columns: tuple[Column, ...]

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """The NumPy record of one entity's state (packed, no padding)."""
        return np.dtype([(c.name, c.dtype) if c.length == 1 else (c.name, c.dtype, (c.length,)) for c in self.columns])

    def initial(self, n: int) -> States:
        """State of `n` entities of which nothing was observed."""
        states = np.zeros(n, self.dtype)
        for column in self.columns:
            states[column.name] = column.initial
        return states

    def to_arrow(self, states: States) -> dict[str, Any]:
        """The states as Arrow arrays by column name: scalars as they are, arrays as lists."""
        import pyarrow as pa

        arrays: dict[str, Any] = {}
        for column in self.columns:
            values = np.ascontiguousarray(states[column.name])
            if column.length == 1:
                arrays[column.name] = pa.array(values)
            else:
                offsets = np.arange(0, values.size + 1, column.length, dtype=np.int32)
                arrays[column.name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)))
        return arrays

    def from_arrow(self, table: Any, *, prefix: str = "") -> States:
        """The inverse of :meth:`to_arrow` for a `pyarrow.Table` whose columns may carry a prefix.

        Rows without a state (nulls) get the initial one.
        """
        import pyarrow as pa

        states = self.initial(table.num_rows)
        for column in self.columns:
            data = table.column(prefix + column.name).combine_chunks()
            if isinstance(data, pa.ChunkedArray):
                data = pa.concat_arrays(data.chunks) if data.num_chunks else pa.array([], data.type)
            present = np.asarray(data.is_valid())
            if column.length == 1:
                values = data.drop_null().to_numpy(zero_copy_only=False)
            else:
                values = data.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, column.length)
            states[column.name][present] = values
        return states


@dataclass(frozen=True, kw_only=True, eq=False)
class StateRows:
    """States of one view at n instants: what the pipeline writes to Feast."""

    view: StateView
    #: Strings (object), shape (n,): keys of the view's entity.
    keys: npt.NDArray[Any]
    #: int64, shape (n,): the instant that each state is of, ms since 1970 UTC.
    ts_ms: npt.NDArray[np.int64]
    #: Records of `view.dtype`, shape (n,).
    states: States

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One entry of the vector that models see."""

    name: str
    #: One sentence: what it is, in which unit.
    about: str
    #: How it reads as a reason; `{value}` is replaced by the formatted value.
    reason: str
    #: How the value is formatted: what it is a logarithm of, and its unit.
    form: Form
    #: How a value of 0 reads, where that is not the reason with a zero in it.
    zero: str | None = None


def names(items: Sequence[Column] | Sequence[Feature]) -> tuple[str, ...]:
    """The names, in order."""
    return tuple(item.name for item in items)
