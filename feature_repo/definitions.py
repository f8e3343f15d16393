"""Entities, feature views and the feature service, all derived from the platform's own list of columns.

The only file here: Feast imports every Python file below this folder, and takes its objects from module-level names.
"""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Float32, Float64, Int32, Int64

from urlhealth.features.catalog import GROUP_STATE, HOST_STATE, URL_STATE
from urlhealth.features.columns import Column, StateView

_TYPES = {"float64": Float64, "float32": Float32, "int64": Int64, "int32": Int32}


def _field(column: Column) -> Field:
    scalar = _TYPES[column.dtype]
    if column.length == 1:
        return Field(name=column.name, dtype=scalar, description=column.about)
    tags = {"length": str(column.length)}
    return Field(name=column.name, dtype=Array(scalar), description=column.about, tags=tags)


def _view(view: StateView, entity: Entity) -> FeatureView:
    return FeatureView(
        name=view.name,
        entities=[entity],
        schema=[_field(column) for column in view.columns],
        source=FileSource(
            name=f"{view.name}_segments",
            path=view.name,
            timestamp_field="event_timestamp",
            created_timestamp_column="created_timestamp",
        ),
        # A state stays what it was until the next verdict; how long it counts as known is the platform's business.
        ttl=timedelta(0),
        online=True,
        description=f"State carried for each {view.entity}, as of the verdict at the event timestamp.",
    )


url = Entity(
    name=URL_STATE.entity,
    join_keys=[URL_STATE.entity],
    value_type=ValueType.STRING,
    description="A normalised URL, or URL#name for a monitor with options of its own.",
)
host = Entity(
    name=HOST_STATE.entity,
    join_keys=[HOST_STATE.entity],
    value_type=ValueType.STRING,
    description="The host of a URL.",
)
group = Entity(
    name=GROUP_STATE.entity,
    join_keys=[GROUP_STATE.entity],
    value_type=ValueType.STRING,
    description="Who runs it: as given with the monitor or the history, otherwise the registrable domain.",
)

url_state = _view(URL_STATE, url)
host_state = _view(HOST_STATE, host)
group_state = _view(GROUP_STATE, group)

url_health_v1 = FeatureService(
    name="url_health_v1",
    features=[url_state, host_state, group_state],
    description="All that a prediction of URL health is made from. Ask for full feature names.",
)
