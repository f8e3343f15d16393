"""The point-in-time join: for each entity row, which feature row was the newest at its instant. Polars, no Feast.

Imported only where history is read.
"""

from collections.abc import Sequence
from datetime import timedelta

import polars as pl

#: Columns of instants, `Datetime("us", "UTC")`; CREATED may be absent.
AT = "__at"
CREATED = "__created"
_LEFT, _RIGHT, _ROW = "__left", "__right", "__row"


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


def newest_at(left: pl.DataFrame, right: pl.DataFrame, keys: list[str], ttl: timedelta | None) -> pl.Series:
    """For each row of `left` the position in `right` of its newest row at `left[AT]`, or null; UInt32, shape (n,).

    A row of `right` counts from its own `AT` until `ttl` after it, both included. Of those with the same `AT` the one
    created last wins, then the one that comes last. Null keys and instants match nothing.
    """
    needed = [*keys, AT]
    tie_break = [CREATED] if CREATED in right.columns else []
    right = (
        right.select(*needed, *tie_break)
        .with_row_index(_RIGHT)
        .drop_nulls(needed)
        .sort([AT, *tie_break], maintain_order=True)
    )
    joined = (
        left.select(needed)
        .with_row_index(_LEFT)
        .drop_nulls(needed)
        .sort(AT)
        .join_asof(right, on=AT, by=keys or None, tolerance=ttl, check_sortedness=False)
        .select(_LEFT, _RIGHT)
    )
    rows = pl.select(pl.int_range(left.height, dtype=pl.UInt32).alias(_LEFT))
    return rows.join(joined, on=_LEFT, how="left", maintain_order="left")[_RIGHT]


def values_at(
    left: pl.DataFrame, rows: pl.LazyFrame, keys: Sequence[str], columns: Sequence[str], ttl: timedelta | None
) -> pl.DataFrame:
    """The named columns of `rows` as of each row of `left`; nulls where there is no row. See :func:`newest_at`.

    In two passes, so that of a long history only keys and instants, and the rows that were found, are in memory.
    """
    numbered = rows.with_row_index(_ROW)
    present = rows.collect_schema()
    known = numbered.select(_ROW, *keys, *(column for column in (AT, CREATED) if column in present))
    if keys:
        known = known.join(left.lazy().select(list(keys)).unique(), on=list(keys), how="semi", maintain_order="left")
    right = known.collect(engine="streaming")
    found = right[_ROW].gather(newest_at(left, right.drop(_ROW), list(keys), ttl)).alias(_ROW)
    wanted = found.drop_nulls().unique().to_frame()
    values = numbered.select(_ROW, *columns).join(wanted.lazy(), on=_ROW, how="semi").collect(engine="streaming")
    return found.to_frame().join(values, on=_ROW, how="left", maintain_order="left").drop(_ROW)


def newest(frame: pl.DataFrame, keys: list[str]) -> pl.Series:
    """Position of the newest row of each key (of all rows, if there are no keys), in order; UInt32, shape (n,).

    The tie-breaks are those of :func:`newest_at`.
    """
    order = [AT, CREATED] if CREATED in frame.columns else [AT]
    ranked = frame.select(*keys, *order).with_row_index(_RIGHT).drop_nulls(AT).sort(order, maintain_order=True)
    kept = ranked.unique(keys, keep="last", maintain_order=True) if keys else ranked.tail(1)
    return kept[_RIGHT].sort()
