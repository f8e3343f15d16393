"""Feast's file sources as Polars frames: where they are, and their rows between two instants.

Imported only by the offline store.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from feast.data_source import DataSource
from feast.feature_view import FeatureView
from feast.infra.offline_stores.file_source import FileSource
from feast.repo_config import RepoConfig
from feast.types import Bool, Bytes, Float32, Float64, Int32, Int64, String, from_feast_to_pyarrow_type
from feast.utils import make_tzaware

from urlhealth.errors import StoreUnavailable
from urlhealth.feast_stores import segments
from urlhealth.feast_stores.asof import AT, CREATED, instant
from urlhealth.feast_stores.paths import OFFLINE_FOLDER, store_path

_SCALARS = (Bool, Bytes, Float32, Float64, Int32, Int64, String)


def locate(config: RepoConfig, path: str) -> Path:
    """Where a source, saved dataset or log is: as a path of the repo if that exists, else a dataset of the store."""
    if "://" in path:
        raise ValueError(f"{path}: this offline store reads and writes local files only")
    in_repo = Path(config.repo_path or "").absolute() / path
    if in_repo.exists():
        return in_repo
    return store_path(config.offline_store.path, config.repo_path, OFFLINE_FOLDER) / path


def source_path(config: RepoConfig, source: DataSource) -> Path:
    """Where a source is; a dataset of the store need not exist yet.

    Raises:
        ValueError: not a file source, or not a local one.
        FileNotFoundError: its file is not there.
    """
    if not isinstance(source, FileSource):
        raise ValueError(f"source {source.name} is a {type(source).__name__}: this offline store reads FileSource only")
    path = locate(config, source.path)
    if not path.exists() and (path.suffix == ".parquet" or Path(source.path).is_absolute()):
        raise FileNotFoundError(f"source {source.name}: there is no {path}")
    return path


def read(
    config: RepoConfig,
    source: DataSource,
    columns: Sequence[str],
    timestamp: str,
    created: str | None,
    *,
    since: datetime | None,
    until: datetime | None,
    mapping: Mapping[str, str] | None = None,
    polars_type: Callable[[str], pl.DataType] = lambda _: pl.Null(),
) -> pl.LazyFrame:
    """The named columns of rows whose timestamp is in [since, until], with the instants AT and, if any, CREATED.

    Args:
        mapping: stored name → name, for columns that Feast knows under another name.
        polars_type: type of a column that a dataset still lacks, whose values are null.

    Raises:
        ValueError: columns are missing that must be there, or a timestamp column holds none.
    """
    mapping = mapping or {}
    since, until = since and make_tzaware(since), until and make_tzaware(until)
    path = source_path(config, source)
    frame = segments.scan(path, since_us=_us(since), until_us=_us(until))
    renamed = {old: new for old, new in mapping.items() if old in frame.collect_schema()}
    frame = frame.rename(renamed)
    timestamp, created = renamed.get(timestamp, timestamp), renamed.get(created or "", created)
    present = frame.collect_schema()
    if not len(present):  # nothing was written yet
        frame = pl.LazyFrame(schema={name: pl.Datetime("us", "UTC") for name in (timestamp, created) if name})
        present = frame.collect_schema()
    absent = set(columns).difference(present)
    # A column that came with a newer schema is not yet in a dataset; a single file never changes.
    if (path.is_file() and absent) or timestamp not in present or (created and created not in present):
        wanted = sorted({*columns, timestamp, created or timestamp}.difference(present))
        raise ValueError(f"source {source.name}: {path} has no columns {wanted}, only {present.names()}")
    rows = frame.select(
        *(pl.col(c) if c in present else pl.lit(None, polars_type(c)).alias(c) for c in columns),
        instant(timestamp, present[timestamp]).alias(AT),
        *([instant(created, present[created]).alias(CREATED)] if created else []),
    )
    if since is not None:
        rows = rows.filter(pl.col(AT) >= since)
    if until is not None:
        rows = rows.filter(pl.col(AT) <= until)
    return rows


def query(config: RepoConfig, tables: Sequence[DataSource], sql: str) -> pl.DataFrame:
    """What a SELECT gives, by Polars; these sources are tables by their names, other files by `read_parquet('...')`.

    Raises:
        ValueError: the query cannot be answered; says why.
    """
    frames = {source.name: segments.scan(source_path(config, source)) for source in tables}
    try:
        return pl.SQLContext(frames).execute(sql).collect()
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"entity rows as SQL: {error}; tables are {sorted(frames)}") from error


@contextmanager
def collecting(source: DataSource) -> Iterator[None]:
    """Says in words that a source's files do not fit together, which shows when they are read.

    Raises:
        StoreUnavailable: a column has several types, as after a view's was changed.
    """
    try:
        yield
    except pl.exceptions.SchemaError as error:
        raise StoreUnavailable(
            f"offline store: files of source {source.name} differ in the type of a column: {error}. Write the older "
            "ones anew in the new type, or give what is of another type a column of its own"
        ) from error


def as_declared(view: FeatureView, table: Any) -> Any:
    """The `pyarrow.Table` with numbers, truth values, text and bytes in the types that the view declares.

    One file of another type would keep all others from being read.

    Raises:
        ValueError: a value cannot be converted; names the column.
    """
    types = {field.name: from_feast_to_pyarrow_type(field.dtype) for field in view.schema if field.dtype in _SCALARS}
    for i, column in enumerate(table.schema):
        wanted = types.get(view.batch_source.field_mapping.get(column.name, column.name))
        if wanted is not None and plain(column.type) != wanted:
            try:
                table = table.set_column(i, column.name, table.column(i).cast(wanted))
            except pa.ArrowException as error:
                raise ValueError(
                    f"rows for feature view {view.name}: column {column.name} is declared as {wanted}: {error}"
                ) from error
    return table


def _us(moment: datetime | None) -> int | None:
    if moment is None:
        return None
    return (moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def to_arrow(frame: pl.DataFrame) -> Any:
    """A `pyarrow.Table` with the plain strings, bytes and lists that Feast's type checks know."""
    table = frame.to_arrow()
    return table.cast(pa.schema([field.with_type(plain(field.type)) for field in table.schema]))


def plain(dtype: Any) -> Any:
    """The Arrow type without large and view variants, which Feast does not know."""
    if pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype):
        return pa.string()
    if pa.types.is_large_binary(dtype) or pa.types.is_binary_view(dtype):
        return pa.binary()
    if pa.types.is_large_list(dtype):
        return pa.list_(plain(dtype.value_type))
    if pa.types.is_struct(dtype):
        return pa.struct([field.with_type(plain(field.type)) for field in dtype])
    return dtype
