"""Point-in-time features of one Feast view: its source's rows joined to entity rows.

Imported only by the offline store.
"""

from datetime import datetime

import pandas as pd
import polars as pl
import pyarrow as pa
from feast.feature_view import DUMMY_ENTITY_ID, FeatureView
from feast.infra.offline_stores.offline_utils import DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL
from feast.repo_config import RepoConfig
from feast.types import from_feast_to_pyarrow_type

from urlhealth.feast_stores import sources
from urlhealth.feast_stores.asof import AT, instant, values_at


def with_instants(entities: pd.DataFrame, event_column: str) -> pd.DataFrame:
    """Entity rows whose timestamps, if written as text or Python objects, are parsed."""
    if pd.api.types.is_datetime64_any_dtype(entities[event_column]):
        return entities
    return entities.assign(**{event_column: pd.to_datetime(entities[event_column], utc=True, format="mixed")})


def entities_seen(config: RepoConfig, views: list[FeatureView], start: datetime, end: datetime) -> pd.DataFrame:
    """One row per entity that any of the views has in [start, end], at `end`."""
    columns = {tuple(sorted(_join_keys(view).values())) for view in views}
    if len(columns) > 1:
        raise ValueError(f"retrieval without entity rows needs views of the same entities, not of {sorted(columns)}")
    frames = []
    for view in views:
        keys = _join_keys(view)
        rows = _read_view(config, view, [], since=start, until=end)
        frames.append(rows.select(pl.col(key).alias(keys[key]) for key in sorted(keys, key=keys.__getitem__)))
    seen = pl.concat(frames, how="vertical_relaxed").unique(maintain_order=True).collect()
    at = pl.Series(DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL, [end], pl.Datetime("us", "UTC"))
    return seen.join(at.to_frame(), how="cross").to_pandas() if seen.width else at.to_frame().to_pandas()


def _join_keys(view: FeatureView) -> dict[str, str]:
    """Join key of the view → column of the entity rows; empty for a view without entities."""
    names = [column.name for column in view.entity_columns if column.name != DUMMY_ENTITY_ID]
    return {name: view.projection.join_key_map.get(name, name) for name in names}


def _read_view(
    config: RepoConfig, view: FeatureView, features: list[str], *, since: datetime | None, until: datetime | None
) -> pl.LazyFrame:
    """Join keys and features of a view under its own names, with AT and CREATED."""
    types = {field.name: field.dtype for field in view.schema}

    def polars_type(name: str) -> pl.DataType:
        return pl.Series(pa.array([], from_feast_to_pyarrow_type(types[name]))).dtype

    source = view.batch_source
    return sources.read(
        config,
        source,
        [*_join_keys(view), *features],
        source.timestamp_field,
        source.created_timestamp_column,
        since=since,
        until=until,
        mapping=source.field_mapping,
        polars_type=polars_type,
    )


def join_view(
    config: RepoConfig, entities: pa.Table, event_column: str, view: FeatureView, features: list[str]
) -> pa.Table:
    """The named features of one view, a row for each entity row."""
    keys = _join_keys(view)
    missing = set(keys.values()).difference(entities.column_names)
    if missing:
        raise ValueError(f"feature view {view.name} needs entity columns {sorted(missing)}, which the rows lack")
    frame = pl.DataFrame(entities.select([*keys.values(), event_column]))
    left = frame.select(
        *(pl.col(name).alias(key) for key, name in keys.items()),
        instant(event_column, frame.schema[event_column]).alias(AT),
    )
    first, last = left.select(first=pl.col(AT).min(), last=pl.col(AT).max()).row(0)
    since = first - view.ttl if view.ttl and first is not None else None
    with sources.collecting(view.batch_source):
        rows = _read_view(config, view, features, since=since, until=last)
        stored = rows.collect_schema()
        left = left.with_columns(_comparable(key, left.schema[key], stored[key]) for key in keys)
        return sources.to_arrow(values_at(left, rows, list(keys), features, view.ttl or None))


def _comparable(key: str, given: pl.DataType, stored: pl.DataType) -> pl.Expr:
    """Entity keys in the type that the source stores; what cannot be converted becomes null and matches nothing."""
    column = pl.col(key)
    if given.is_float() and stored.is_integer():  # as pandas holds integers among which some are missing
        column = pl.when(column == column.round()).then(column)
    return column.cast(stored, strict=False).alias(key)
