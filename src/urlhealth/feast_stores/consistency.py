"""Whether the online store holds, for each entity, the newest state that the offline store has."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from urlhealth.feast_stores import segments
from urlhealth.feast_stores.packed import Layout
from urlhealth.feast_stores.rows import OnlineRows, string_keys
from urlhealth.features.columns import StateView

#: Entities compared at once.
_BATCH: Final = 20_000
_EXAMPLES: Final = 5


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """What a comparison of one view's stores found."""

    view: str
    #: Entities that the offline store knows.
    entities: int
    #: Of these, how many have another state online, or none.
    different: int
    #: Keys of some of them.
    examples: tuple[str, ...]
    #: Entities that are online only.
    unknown: int

    @property
    def ok(self) -> bool:
        """Whether the stores agree."""
        return not self.different and not self.unknown


@dataclass(frozen=True, kw_only=True)
class Check:
    """A comparison of all views."""

    #: When it was made, ms since 1970 UTC.
    checked_ms: int
    views: tuple[Consistency, ...]

    @property
    def ok(self) -> bool:
        """Whether the stores agree."""
        return all(view.ok for view in self.views)


def save(check: Check, file: Path) -> None:
    """Keep a comparison for :func:`load`."""
    segments.replace_file(file, lambda temporary: temporary.write_text(json.dumps(asdict(check))))


def load(file: Path) -> Check | None:
    """The comparison saved last; None if there is none, or one that another version wrote."""
    try:
        saved = json.loads(file.read_text())
        views = tuple(Consistency(**{**view, "examples": tuple(view["examples"])}) for view in saved["views"])
        return Check(checked_ms=int(saved["checked_ms"]), views=views)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def compare(view: StateView, folder: Path, rows: OnlineRows, table: str) -> Consistency:
    """Compare the newest offline state of every entity with the online one, byte for byte.

    A writer may be at work: what differs is looked at again, and counts only if it differs again.

    Raises:
        StoreUnavailable: a store cannot be read.
    """
    layout = Layout.of(view)
    known, different = 0, []
    for keys, packed in _newest(view, folder, layout, None):
        known += len(keys)
        different += _different(view, rows, table, keys, packed)
    again: list[str] = []
    if different:
        for keys, packed in _newest(view, folder, layout, different):
            again += _different(view, rows, table, keys, packed)
    return Consistency(
        view=view.name,
        entities=known,
        different=len(again),
        examples=tuple(again[:_EXAMPLES]),
        unknown=max(rows.count(table) - known, 0),
    )


def _different(
    view: StateView,
    rows: OnlineRows,
    table: str,
    keys: Sequence[str],
    packed: Sequence[bytes],
) -> list[str]:
    online = rows.read(table, string_keys(view.entity, keys))
    return [key for key, row, found in zip(keys, packed, online, strict=True) if found != row]


def _newest(
    view: StateView, folder: Path, layout: Layout, only: Sequence[str] | None
) -> Iterator[tuple[list[str], list[bytes]]]:
    """Keys and packed rows of the newest offline states."""
    import polars as pl

    from urlhealth.feast_stores.asof import AT, CREATED, newest

    if not segments.files(folder):
        return
    numbered = segments.scan(folder).with_row_index("row")
    if only is not None:
        numbered = numbered.filter(pl.col(view.entity).is_in(pl.Series(only, dtype=pl.String).implode()))
    instants = (pl.col("event_timestamp").alias(AT), pl.col("created_timestamp").alias(CREATED))
    known = numbered.select("row", view.entity, *instants).collect(engine="streaming")
    wanted = known.select(pl.col("row").gather(newest(known, [view.entity]))).sort("row")
    for start in range(0, wanted.height, _BATCH):
        part = wanted.slice(start, _BATCH).lazy()
        table = numbered.join(part, on="row", how="semi").collect(engine="streaming").to_arrow()
        states = view.from_arrow(table)
        event_us, created_us = (
            table.column(name).cast("int64").to_numpy() for name in ("event_timestamp", "created_timestamp")
        )
        yield table.column(view.entity).to_pylist(), layout.pack_states(states, event_us, created_us)
