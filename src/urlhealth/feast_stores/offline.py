"""Feast offline store over Parquet datasets of segments, joined by Polars.

Imported by Feast, from `type` in `feature_store.yaml`. A `FileSource` whose path is relative names a dataset in the
store's folder, unless that path exists in the repo; any other path is a Parquet file or a folder of such files.
"""

import uuid
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import polars as pl
import pyarrow as pa
from feast.data_source import DataSource
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL, FeatureView
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.saved_dataset import SavedDatasetStorage
from feast.utils import compute_non_entity_date_range

from urlhealth.feast_stores import history, segments, sources
from urlhealth.feast_stores.asof import AT, CREATED, newest


class UrlHealthOfflineStoreConfig(FeastConfigBaseModel):
    """What `offline_store` in `feature_store.yaml` may say."""

    type: Literal["urlhealth.feast_stores.offline.UrlHealthOfflineStore"] = (
        "urlhealth.feast_stores.offline.UrlHealthOfflineStore"
    )
    #: Folder of the datasets, relative to the repo; by default in the platform's home folder.
    path: str | None = None


class UrlHealthRetrievalJob(RetrievalJob):
    """A retrieval that runs when its result is asked for."""

    def __init__(
        self,
        evaluate: Callable[[], pa.Table],
        config: RepoConfig,
        *,
        full_feature_names: bool = False,
        on_demand_feature_views: list[OnDemandFeatureView] | None = None,
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        self._evaluate = evaluate
        self._config = config
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = on_demand_feature_views or []
        self._metadata = metadata

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002 (Feast's signature)
        # One chunk a column: Feast reads only the first of a table's batches.
        return self._evaluate().combine_chunks()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()

    def persist(
        self,
        storage: SavedDatasetStorage,
        allow_overwrite: bool = False,
        timeout: int | None = None,
    ) -> None:
        """Write the result, on-demand features included, to one Parquet file, or to a folder that holds one."""
        assert isinstance(storage, SavedDatasetFileStorage)
        path = sources.locate(self._config, storage.file_options.uri)
        if path.exists():
            if not allow_overwrite:
                raise SavedDatasetLocationAlreadyExists(location=str(path))
            if path.is_dir():
                segments.clear(path)
        table = self.to_arrow(timeout=timeout)
        segments.write_atomically(table, path if path.suffix == ".parquet" else path / "data.parquet")


class UrlHealthOfflineStore(OfflineStore):
    """Parquet datasets joined by Polars; timestamps are compared in microseconds, UTC."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: "pd.DataFrame | pa.Table | pl.DataFrame | str | None",
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        *,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Entity rows in their order, each with the feature values that were the newest at its timestamp.

        They may be a query (Polars SQL), in which the sources of the views are tables by their names.

        Without entity rows: every entity with values in [start_date, end_date], as of end_date.
        """
        if isinstance(entity_df, str):
            entity_df = sources.query(config, [view.batch_source for view in feature_views], entity_df)
        if entity_df is None:
            start_date, end_date = compute_non_entity_date_range(feature_views, start_date, end_date)
            rows = history.entities_seen(config, feature_views, start_date, end_date)
        else:
            rows = entity_df if isinstance(entity_df, pd.DataFrame) else entity_df.to_pandas()
        event_column = infer_event_timestamp_from_entity_df(dict(zip(rows.columns, rows.dtypes, strict=True)))
        rows = history.with_instants(rows, event_column)

        def evaluate() -> pa.Table:
            entities = pa.Table.from_pandas(rows, preserve_index=False)
            result = entities
            for view in feature_views:
                prefix = f"{view.projection.name_to_use()}:"
                features = [ref.removeprefix(prefix) for ref in feature_refs if ref.startswith(prefix)]
                joined = history.join_view(config, entities, event_column, view, features)
                for name in features:
                    full = f"{view.projection.name_alias or view.name}__{name}" if full_feature_names else name
                    if full in result.column_names:
                        raise ValueError(f"column {full} comes twice: rename it, or ask for full_feature_names=True")
                    result = result.append_column(full, joined.column(name))
            return result

        return UrlHealthRetrievalJob(
            evaluate,
            config,
            full_feature_names=full_feature_names,
            on_demand_feature_views=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in rows.columns if name != event_column],
                min_event_timestamp=rows[event_column].min(),
                max_event_timestamp=rows[event_column].max(),
            ),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """The newest row of each entity in [start_date, end_date]."""

        pull = partial(
            sources.read,
            config,
            data_source,
            [*join_key_columns, *feature_name_columns],
            timestamp_field,
            created_timestamp_column,
            since=start_date,
            until=end_date,
        )

        def evaluate() -> pa.Table:
            with sources.collecting(data_source):
                rows = pull().collect()
            rows = rows.select(pl.all().gather(newest(rows, join_key_columns)))
            return _as_stored(rows, join_key_columns, timestamp_field, created_timestamp_column)

        return UrlHealthRetrievalJob(evaluate, config)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """All rows in [start_date, end_date]."""

        pull = partial(
            sources.read,
            config,
            data_source,
            [*join_key_columns, *feature_name_columns],
            timestamp_field,
            created_timestamp_column,
            since=start_date,
            until=end_date,
        )

        def evaluate() -> pa.Table:
            with sources.collecting(data_source):
                rows = pull().collect()
            return _as_stored(rows, join_key_columns, timestamp_field, created_timestamp_column)

        return UrlHealthRetrievalJob(evaluate, config)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Append rows to the view's dataset; a source that is a single file is written anew with them."""
        source = feature_view.batch_source
        path = sources.locate(config, source.path)
        known = segments.files(path)
        if known:
            wanted = list(pl.read_parquet_schema(known[-1]))
            if set(wanted) != set(table.column_names):
                raise ValueError(
                    f"rows for feature view {feature_view.name} have columns {table.column_names}, "
                    f"its source {path} has {wanted}"
                )
            table = table.select(wanted)
        table = sources.as_declared(feature_view, table)
        if path.is_file():
            segments.append_to_file(path, table)
        else:
            segments.append(path, table, timestamp_column=source.timestamp_field, segment=uuid.uuid4().hex)
        if progress:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: "pa.Table | Path",
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,  # noqa: ARG004 (Feast's signature)
    ) -> None:
        """Append served features to the destination, partitioned by day whatever its `partition_by` says."""
        import pyarrow.parquet as pq

        assert isinstance(logging_config.destination, FileLoggingDestination)
        # Of a dataset of segments, those that are in force.
        table = pq.read_table(segments.files(data), partitioning=None) if isinstance(data, Path) else data
        path = sources.locate(config, logging_config.destination.path)
        segments.append(path, table, timestamp_column=source.get_log_timestamp_column(), segment=uuid.uuid4().hex)

    def validate_data_source(self, config: RepoConfig, data_source: DataSource) -> None:
        """A path that is neither a dataset nor there is an error; a dataset may still be empty."""
        sources.source_path(config, data_source)

    def get_table_column_names_and_types_from_data_source(
        self, config: RepoConfig, data_source: DataSource
    ) -> list[tuple[str, str]]:
        """Names and Arrow types of a source's columns."""
        import pyarrow.parquet as pq

        found = segments.files(sources.source_path(config, data_source))
        schema = pq.read_schema(found[-1]) if found else pa.schema([])
        return [(field.name, str(sources.plain(field.type))) for field in schema]


def _as_stored(rows: pl.DataFrame, keys: list[str], timestamp: str, created: str | None) -> pa.Table:
    """The rows under the source's column names; Feast's stand-in for a key is added where there is none."""
    rows = rows.rename({AT: timestamp, **({CREATED: created} if created else {})})
    if not keys:
        rows = rows.with_columns(pl.lit(DUMMY_ENTITY_VAL).alias(DUMMY_ENTITY_ID))
    return sources.to_arrow(rows)
