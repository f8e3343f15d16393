"""A history replayed: the vectors that serving would have made at instants of the past.

States are folded as the pipeline folds them, written where Feast reads them, joined by Feast point in time, and made
vectors by `features.vector.at`: so nothing later than an instant can enter its vector, and there is no second way of
computing a feature.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from urlhealth.feast_stores.paths import OFFLINE_FOLDER
from urlhealth.feast_stores.segments import write_atomically
from urlhealth.feast_stores.stores import FeatureStores
from urlhealth.features import vector
from urlhealth.features.advance import CarriedStates
from urlhealth.features.catalog import STATE_VIEWS, URL_STATE, VECTOR
from urlhealth.features.columns import StateRows, States
from urlhealth.features.verdicts import Verdicts
from urlhealth.settings import ROOT, Settings
from urlhealth.vocabulary import FEATURE_SERVICE, Freshness

if TYPE_CHECKING:
    from feast import FeatureStore

Ints = npt.NDArray[np.int64]

#: Verdicts folded at once, and instants looked up in Feast at once: bound the memory.
VERDICTS: Final = 50_000
INSTANTS: Final = 200_000
#: More than any instant.
_SPAN_MS: Final = 1 << 43


@dataclass(frozen=True, kw_only=True, eq=False)
class Replayed:
    """What was known at n instants."""

    #: float32 (n, len(VECTOR)), NaN where not known.
    X: npt.NDArray[np.float32]
    #: `Freshness`, shape (n,): as a prediction at the instant would have said it.
    freshness: npt.NDArray[Any]


def replay(history: Verdicts, url: npt.NDArray[Any], t_ms: Ints, *, known_for_s: float) -> Replayed:
    """What was known of URLs at instants, each from the verdicts not later than it.

    Args:
        history: ordered by time.
        url, t_ms: shape (n,); a URL need not be in the history.
    """
    if not len(url):
        return Replayed(X=np.zeros((0, len(VECTOR)), np.float32), freshness=np.zeros(0, dtype=object))
    number, keys = pd.factorize(url)
    owners = dict(zip(history.target, zip(history.host, history.group, strict=True), strict=True))
    entities = np.array([(key, *owners.get(key, ("", ""))) for key in keys], dtype=object).reshape(-1, 3)[number]
    parts: list[Replayed] = []
    with TemporaryDirectory(prefix="urlhealth-replay-") as home:
        # Feast's own embedded stores, whatever stores the platform uses.
        feast_yaml = ROOT / "feature_repo" / "feature_store.yaml"
        settings = Settings(home=Path(home), feast_yaml=feast_yaml, known_for_s=known_for_s)
        wanted = [Wanted.of(entities[:, i], t_ms) for i in range(len(STATE_VIEWS))]
        _write_states(settings, history, wanted)
        stores = FeatureStores(settings)
        stores.apply()
        for start in range(0, len(url), INSTANTS):
            part = slice(start, start + INSTANTS)
            states = point_in_time(stores.feast(), entities[part], t_ms[part])
            parts.append(
                Replayed(
                    X=vector.at(states, t_ms[part], known_for_s=known_for_s),
                    freshness=_freshness(states, t_ms[part], known_for_s),
                )
            )
    return Replayed(
        X=np.concatenate([part.X for part in parts]), freshness=np.concatenate([part.freshness for part in parts])
    )


def point_in_time(store: "FeatureStore", entities: npt.NDArray[Any], t_ms: Ints) -> dict[str, States]:
    """The states that Feast has of URLs, hosts and groups at each instant, by view name.

    Args:
        entities: strings (object), shape (n, 3): keys of the url, the host and the group.
        t_ms: shape (n,).
    """
    rows = pd.DataFrame(entities, columns=[view.entity for view in STATE_VIEWS])
    rows["event_timestamp"] = pd.to_datetime(t_ms, unit="ms", utc=True).as_unit("us")
    rows["row"] = np.arange(len(rows))
    service = store.get_feature_service(FEATURE_SERVICE)
    table = store.get_historical_features(entity_df=rows, features=service, full_feature_names=True).to_arrow()
    table = table.take(np.argsort(table.column("row").to_numpy()))  # A join need not keep the order.
    return {view.name: view.from_arrow(table, prefix=f"{view.name}__") for view in STATE_VIEWS}


@dataclass(frozen=True, kw_only=True, eq=False)
class Wanted:
    """The instants at which states of entities are looked up, ready to tell which states will be found."""

    number: Mapping[str, int]
    #: Instants of each entity on an axis of its own, one after the other, ascending.
    position: Ints

    @classmethod
    def of(cls, keys: npt.NDArray[Any], t_ms: Ints) -> "Wanted":
        codes, distinct = pd.factorize(keys)
        return cls(
            number={key: i for i, key in enumerate(distinct)},
            position=np.sort(codes.astype(np.int64) * _SPAN_MS + t_ms),
        )

    def found(self, rows: StateRows) -> npt.NDArray[np.bool_]:
        """Whether each row of a batch may be the newest of its entity at a wanted instant, whatever batches follow."""
        number = np.array([self.number.get(key, -1) for key in rows.keys], dtype=np.int64)
        order = np.lexsort((rows.ts_ms, number))
        number, ts_ms = number[order], rows.ts_ms[order]
        last = np.append(number[1:] != number[:-1], True)[: len(number)]
        until_ms = np.where(last, _SPAN_MS, np.append(ts_ms[1:], _SPAN_MS)[: len(ts_ms)])
        first, end = (np.searchsorted(self.position, number * _SPAN_MS + at_ms) for at_ms in (ts_ms, until_ms))
        found = np.zeros(len(order), dtype=bool)
        found[order] = (number >= 0) & (end > first)
        return found


def _write_states(settings: Settings, history: Verdicts, wanted: Sequence[Wanted]) -> None:
    """Fold the history batch by batch, and write those states that will be looked up into the offline store.

    One file a view and batch: a day's folder of its own for each day, as the pipeline makes it, is slow for years.
    """
    carried = CarriedStates({}, known_for_s=settings.known_for_s, late_s=settings.late_s)
    for start in range(0, len(history), VERDICTS):
        advanced, _ = carried.advance(history.take(slice(start, start + VERDICTS)))
        for rows, instants in zip(advanced, wanted, strict=True):
            found = instants.found(rows)
            if not found.any():
                continue
            table = pa.table(
                {
                    rows.view.entity: pa.array(rows.keys[found], pa.string()),
                    "event_timestamp": _instant(rows.ts_ms[found]),
                    "created_timestamp": _instant(np.full(int(found.sum()), start)),
                    **rows.view.to_arrow(rows.states[found]),
                }
            )
            write_atomically(table, settings.feast_home / OFFLINE_FOLDER / rows.view.name / f"{start:012d}.parquet")


def _instant(ts_ms: Ints) -> pa.Array:
    return pa.array(ts_ms * 1000).cast(pa.timestamp("us", "UTC"))


def _freshness(states: Mapping[str, States], t_ms: Ints, known_for_s: float) -> npt.NDArray[Any]:
    url = states[URL_STATE.name]
    stale = t_ms - url["known_ms"] > known_for_s * 1000
    return np.select(
        [url["probed_ms"] == 0, stale], [Freshness.MISSING.value, Freshness.STALE.value], Freshness.FRESH.value
    ).astype(object)
