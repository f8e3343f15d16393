"""The point-in-time join: for each entity row, which feature row was the newest at its instant. Polars, no Feast.

Imported only where history is read.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

Ints = npt.NDArray[np.int64]

#: Columns of instants, `Datetime("us", "UTC")`; CREATED may be absent.
AT = "__at"
CREATED = "__created"
_CODE, _RANK, _ROW = "__code", "__rank", "__row"
#: Whole numbers of entities serve as codes if that makes at most so many codes an entity: a count is kept for each.
_CODES_AN_ENTITY: Final = 4


def instant(column: str, dtype: pl.DataType) -> pl.Expr:
    """`column` as microseconds, UTC; without a zone it is taken for UTC, as Feast does.

    Raises:
        ValueError: the column holds no timestamps.
    """
    if not isinstance(dtype, pl.Datetime):
        raise ValueError(f"column {column} holds {dtype}, not timestamps")
    expression = pl.col(column)
    if dtype.time_unit != "us":
        expression = expression.dt.cast_time_unit("us")
    if dtype.time_zone is None:
        return expression.dt.replace_time_zone("UTC")
    return expression if dtype.time_zone == "UTC" else expression.dt.convert_time_zone("UTC")


def newest_at(code: Ints, at_us: Ints, known_code: Ints, known_us: Ints, ttl: timedelta | None) -> Ints:
    """For each entity row the position of its newest row of history, or -1; int64, shape (n,).

    A row of history counts from its own instant until `ttl` after it, both included. Of those of one instant the last
    one wins.

    Args:
        code: number of the entity, int64, shape (n,); a negative one matches nothing.
        at_us: its instant, int64, shape (n,).
        known_code: the same of the history, int64, shape (m,), sorted by instant.
        known_us: int64, shape (m,).
    """
    if not len(known_us):
        return np.full(len(code), -1)
    grouped = _stable_order(known_code)
    times_us = known_us[grouped]
    counts = np.bincount(known_code, minlength=int(code.max(initial=0)) + 1)
    ends = np.cumsum(counts)
    end, last = ends[code], len(times_us) - 1
    position = end - counts[code] - 1
    start = position
    # By halves, as in a binary search: each step goes on to the last row that is not later than the instant.
    for step in 1 << np.arange(int(counts.max()).bit_length())[::-1]:
        further = position + step
        position = np.where((further < end) & (times_us[np.minimum(further, last)] <= at_us), further, position)
    matches = (code >= 0) & (position > start)
    if ttl is not None:
        matches &= at_us - times_us[position] <= ttl // timedelta(microseconds=1)
    return np.where(matches, grouped[position], -1)


def _stable_order(code: Ints) -> Ints:
    """The positions that sort codes, none of them negative; of equal ones the first comes first.

    By 16 bits at a time, which NumPy sorts by counting.
    """
    order = np.argsort(code.astype(np.uint16), kind="stable")
    for shift in range(16, int(code.max(initial=0)).bit_length(), 16):
        order = order[np.argsort((code[order] >> shift).astype(np.uint16), kind="stable")]
    return order


def _coded(entities: pl.DataFrame, frames: Sequence[pl.DataFrame]) -> list[pl.DataFrame]:
    """The frames with the column _CODE: the number of each row's entity, null for others.

    A key that is a whole number serves as such, less the least one, if all are near each other: to join takes longer.
    """
    keys = entities.columns
    if not keys:
        return [frame.with_columns(pl.lit(0).alias(_CODE)) for frame in frames]
    if len(keys) == 1 and len(entities) and entities.dtypes[0].is_integer() and entities.dtypes[0] != pl.UInt64:
        only = entities.to_series().cast(pl.Int64)
        least, most = int(only.min()), int(only.max())  # type: ignore[arg-type]
        if most - least < _CODES_AN_ENTITY * len(only):
            return [frame.with_columns((pl.col(keys[0]).cast(pl.Int64) - least).alias(_CODE)) for frame in frames]
    numbers = entities.with_row_index(_CODE)
    return [frame.join(numbers, on=keys, how="left", maintain_order="left") for frame in frames]


def values_at(
    left: pl.DataFrame, rows: pl.LazyFrame, keys: Sequence[str], columns: Sequence[str], ttl: timedelta | None
) -> pl.DataFrame:
    """The named columns of `rows` as of each row of `left`; nulls where there is no row. See :func:`newest_at`.

    Of rows of one instant the one created last wins, then the one that comes last. Null keys and instants match none.
    In two passes, so that of a long history only entities, instants, and the rows that were found are in memory.
    """
    numbered = rows.with_row_index(_ROW)
    order = [AT, CREATED] if CREATED in rows.collect_schema() else [AT]
    left = left.select(*keys, AT)
    known = numbered.select(_ROW, *keys, *order).drop_nulls(AT)
    entities = left.select(keys).drop_nulls().unique()
    if keys:
        known = known.join(entities.lazy(), on=list(keys), how="semi", maintain_order="left")
    left, right = _coded(entities, (left, known.collect(engine="streaming")))
    if len(order) > 1 or not right[AT].is_sorted():
        right = right.sort(order, maintain_order=True)
    code = pl.when(pl.col(AT).is_not_null()).then(pl.col(_CODE).cast(pl.Int64)).fill_null(-1)
    asked = left.select(code, pl.col(AT).to_physical().fill_null(0))
    known_code, known_us = right[_CODE].cast(pl.Int64).to_numpy(), right[AT].to_physical().to_numpy()
    position = newest_at(asked[_CODE].to_numpy(), asked[AT].to_numpy(), known_code, known_us, ttl)
    hit = position >= 0
    wanted, place = np.unique(right[_ROW].to_numpy()[position[hit]], return_inverse=True)

    def found(some: pl.DataFrame) -> pl.DataFrame:
        """Those of some rows, which are numbered one after the other."""
        if some.is_empty():
            return some
        first = some[_ROW][0]
        since, until = np.searchsorted(wanted, [first, first + some.height])
        chosen: pl.DataFrame = some[wanted[since:until] - first]
        return chosen

    values = numbered.select(_ROW, *columns).map_batches(found, streamable=True).collect(engine="streaming")
    index = np.zeros(left.height, np.uint32)
    index[hit] = place
    at = pl.select(pl.when(pl.Series(hit)).then(pl.Series(index))).to_series()
    if not values[_ROW].is_sorted():  # most often they come as they are read
        values = values.sort(_ROW)
    return values.select(pl.col(columns).gather(at))


def newest(frame: pl.DataFrame, keys: list[str]) -> pl.Series:
    """Position of the newest row of each key (of all rows, if there are no keys), in order; UInt32, shape (n,).

    The tie-breaks are those of :func:`values_at`.
    """
    order = [AT, CREATED] if CREATED in frame.columns else [AT]
    ranked = frame.select(*keys, *order).with_row_index(_RANK).drop_nulls(AT).sort(order, maintain_order=True)
    kept = ranked.unique(keys, keep="last", maintain_order=True) if keys else ranked.tail(1)
    return kept[_RANK].sort()
