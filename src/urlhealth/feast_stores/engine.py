"""Feast batch engine that carries Arrow from the offline store into packed rows, without a protobuf per value.

Imported by Feast, from `batch_engine` in `feature_store.yaml`. Whatever is not a plain feature view on the packed
online store goes Feast's own way.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from struct import pack
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from feast import FeatureView
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel
from feast.utils import _get_column_names, _run_pyarrow_field_mapping
from feast.value_type import ValueType

from urlhealth.feast_stores.online import PackedOnlineStore, layout_of, table_of
from urlhealth.feast_stores.packed import Layout
from urlhealth.feast_stores.rows import Row
from urlhealth.feast_stores.rows import entity_keys as key_bytes
from urlhealth.vocabulary import Clock, system_clock

_ROWS_A_BATCH = 20_000
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)

_log = logging.getLogger(__name__)


def _text(value: Any) -> bytes:
    encoded: bytes = value.encode()
    return encoded


#: How Feast's entity keys hold a value of each type.
_KEY_BYTES: dict[ValueType, Callable[[Any], bytes]] = {
    ValueType.STRING: _text,
    ValueType.BYTES: bytes,
    ValueType.INT32: lambda value: pack("<i", value),
    ValueType.INT64: lambda value: pack("<q", value),
}


class ArrowBatchEngineConfig(FeastConfigBaseModel):
    """What `batch_engine` in `feature_store.yaml` may say."""

    type: Literal["urlhealth.feast_stores.engine.ArrowBatchEngine"] = "urlhealth.feast_stores.engine.ArrowBatchEngine"


class ArrowBatchEngine(LocalComputeEngine):
    """Materializes plain feature views straight into packed rows, all in one transaction."""

    def __init__(self, *, clock: Clock = system_clock, **kwargs: Any) -> None:
        kwargs.pop("type", None)  # Feast hands over every key of the YAML
        super().__init__(**kwargs)
        self._clock = clock

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> LocalMaterializationJob:
        view = task.feature_view
        job_id = f"{view.name}-{task.start_time}-{task.end_time}"
        try:
            task = self._begun(task)
            if not self._is_plain(view):
                return super()._materialize_one(registry, task, **kwargs)
            self._materialize_plain(registry, task)
        except Exception as error:  # Feast raises it again
            return LocalMaterializationJob(job_id=job_id, status=MaterializationJobStatus.ERROR, error=error)
        return LocalMaterializationJob(job_id=job_id, status=MaterializationJobStatus.SUCCEEDED)

    def _begun(self, task: MaterializationTask) -> MaterializationTask:
        """The task from the very beginning, if it would begin in the future.

        An end that lay in the future is recorded by Feast as done, and an incremental run begins there: it would leave
        out all that came meanwhile. What is online already is not replaced by older rows.
        """
        if task.start_time <= datetime.fromtimestamp(self._clock() / 1000, UTC):
            return task
        return replace(task, start_time=_BEGINNING, end_time=max(task.start_time, task.end_time))

    def _is_plain(self, view: FeatureView) -> bool:
        return (
            type(view) is FeatureView
            and isinstance(self.online_store, PackedOnlineStore)
            and self.repo_config.entity_key_serialization_version == 3
            and view.online
            and not view.offline
            and not view.enable_validation
            and not view.source_views
            and all(column.dtype.to_value_type() in _KEY_BYTES for column in view.entity_columns)
            and all(field.kind != "value" for field in layout_of(view).fields)
        )

    def _materialize_plain(self, registry: BaseRegistry, task: MaterializationTask) -> None:
        view, source = task.feature_view, task.feature_view.batch_source
        entities = [registry.get_entity(name, task.project) for name in view.entities]
        join_keys, features, timestamp, created = _get_column_names(view, entities)
        table = self.offline_store.pull_latest_from_table_or_query(
            config=self.repo_config,
            data_source=source,
            join_key_columns=join_keys,
            feature_name_columns=features,
            timestamp_field=timestamp,
            created_timestamp_column=created,
            start_date=task.start_time,
            end_date=task.end_time,
        ).to_arrow()
        table = _run_pyarrow_field_mapping(table, source.field_mapping)
        if not table.num_rows:
            return
        names = dict(source.field_mapping)
        self.online_store.rows(self.repo_config).write(
            table_of(self.repo_config, view),
            layout_of(view),
            _rows(
                table,
                layout_of(view),
                {column.name: column.dtype.to_value_type() for column in view.entity_columns},
                names.get(timestamp, timestamp),
                names.get(created, created) if created else None,
            ),
        )


def _rows(
    table: pa.Table, layout: Layout, keys: dict[str, ValueType], timestamp: str, created: str | None
) -> Iterator[Row]:
    """The table's rows, packed; those without a key cannot be found again and are left out, which is logged."""
    keyed = np.ones(table.num_rows, bool)
    for name in keys:
        keyed &= np.asarray(table.column(name).is_valid())
    if not keyed.all():
        _log.warning("view %s: %d rows without %s are left out", layout.view, int((~keyed).sum()), " and ".join(keys))
        table = table.filter(keyed)
    for start in range(0, table.num_rows, _ROWS_A_BATCH):
        part = table.slice(start, _ROWS_A_BATCH)
        created_us = _microseconds(part.column(created)) if created else 0
        packed = layout.pack(part, _microseconds(part.column(timestamp)), created_us)
        yield from zip(entity_keys(part, keys), packed, strict=True)


def entity_keys(table: pa.Table, keys: dict[str, ValueType]) -> list[bytes]:
    """Feast's entity keys (serialization version 3) of a table's rows, from join keys and their types."""
    return key_bytes(
        {
            name: (kind.value, [_KEY_BYTES[kind](value) for value in table.column(name).to_pylist()])
            for name, kind in keys.items()
        }
    )


def _microseconds(column: Any) -> npt.NDArray[np.int64]:
    whole = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast("int64").fill_null(0)
    return np.asarray(whole, np.int64)
