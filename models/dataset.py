"""Rows to learn from: instants on a grid, state as Feast knew it then, vectors of it, and labels of what followed.

Imported only by training, for it imports pandas.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.labels import HOUR_MS, Timelines, Windows
from models.replay import INSTANTS, point_in_time
from urlhealth.crawl.store import CrawlStore
from urlhealth.errors import NotEnoughHistory
from urlhealth.features import vector
from urlhealth.features.catalog import VECTOR
from urlhealth.features.columns import names
from urlhealth.features.verdicts import Verdicts
from urlhealth.vocabulary import HORIZONS_H, PROBABILITIES

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
#: Makes vectors of entities (strings (object), shape (n, 3): url, host, group) at instants, shape (n,).
Vectors = Callable[[npt.NDArray[Any], Ints], npt.NDArray[np.float32]]

#: Time between two instants of the grid.
STEP_MS = HOUR_MS
#: Of each target's history, the first part has no instants: its features are not yet what they will be.
WARM_UP_MS = 24 * HOUR_MS
#: Nor have the last hours of the records: what they forecast has not happened yet.
AHEAD_MS = max(HORIZONS_H) * HOUR_MS
#: Shares of the rows that fitting keeps: of those with a change within a week before or a day after, and of the others.
#: Those with a change within a day before or an onset within the hour are all kept.
MIDDLING_SHARE = 0.3
QUIET_SHARE = 0.04
#: Verdicts read at once: bounds the memory.
VERDICTS = 200_000


@dataclass(frozen=True, kw_only=True, eq=False)
class History:
    """What labels and the grid need of all verdicts. m verdicts of targets that are numbered from 0."""

    #: Keys by number: of the targets, of their hosts and of their groups; strings (object).
    url: npt.NDArray[Any]
    host: npt.NDArray[Any]
    group: npt.NDArray[Any]
    #: Shape (m,): the target's number, ms since 1970 UTC, and health as in `Verdicts`.
    target: Ints
    ts_ms: Ints
    health: npt.NDArray[np.int8]
    maintenance: Windows = field(default_factory=dict)

    @classmethod
    def of(cls, verdicts: Verdicts) -> "History":
        """The history that some verdicts are; host and group of a target are those of its last verdict."""
        target, url = pd.factorize(verdicts.target)
        newest = np.zeros(len(url), dtype=np.int64)
        newest[target] = np.arange(len(target))
        return cls(
            url=np.asarray(url, dtype=object),
            host=verdicts.host[newest],
            group=verdicts.group[newest],
            target=target.astype(np.int64),
            ts_ms=verdicts.ts_ms,
            health=verdicts.health,
        )

    @property
    def until_ms(self) -> int:
        """The newest verdict of any target."""
        return int(self.ts_ms.max())


def read_history(crawl: CrawlStore) -> History:
    """All stored verdicts that feed features. A target's host and group are those of its newest verdict.

    Maintenance is what the monitors have now: of windows that were changed or deleted nothing is kept.

    Raises:
        NotEnoughHistory: there is none.
    """
    number: dict[str, int] = {}
    owners: dict[str, tuple[str, str]] = {}
    parts: list[tuple[Ints, Ints, npt.NDArray[np.int8]]] = []
    position = 0
    while len(verdicts := crawl.verdicts_after(position, limit=VERDICTS)):
        position = int(verdicts.probe_id[-1])
        codes, urls = pd.factorize(verdicts.target)
        newest = np.zeros(len(urls), dtype=np.int64)
        newest[codes] = np.arange(len(codes))
        for url, row in zip(urls, newest, strict=True):
            owners[url] = (verdicts.host[row], verdicts.group[row])
        numbers = np.array([number.setdefault(url, len(number)) for url in urls], dtype=np.int64)
        parts.append((numbers[codes], verdicts.ts_ms, verdicts.health))
    if not parts:
        raise NotEnoughHistory(
            "there is no history to learn from: no probe is stored yet. Crawl some URLs again and again for some days "
            "(`urlhealth crawl`, monitors), or load a past"
        )
    target, ts_ms, health = (np.concatenate(column) for column in zip(*parts, strict=True))
    return History(
        url=np.array(list(number), dtype=object),
        host=np.array([owners[url][0] for url in number], dtype=object),
        group=np.array([owners[url][1] for url in number], dtype=object),
        target=target,
        ts_ms=ts_ms,
        health=health,
        maintenance={
            number[monitor.target.key]: monitor.maintenance
            for monitor in crawl.iter_monitors()
            if monitor.maintenance and monitor.target.key in number
        },
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """n rows: a target at an instant, its features, and what came of it."""

    #: float32 (n, len(VECTOR)), NaN where not known.
    X: npt.NDArray[np.float32]
    #: float64 (n, 6) in the order of `vocabulary.PROBABILITIES`: 0, 1, or NaN where not known.
    Y: Floats
    #: float64 (n,): 1 where the target is failing at the instant, 0 where it is up.
    failing: Floats
    #: int64 (n,): the instants, ms since 1970 UTC.
    t_ms: Ints
    #: Strings (object), shape (n,).
    target: npt.NDArray[Any]
    group: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.t_ms)

    def take(self, index: npt.NDArray[Any]) -> "Dataset":
        """The rows at `index` (positions or a mask)."""
        return Dataset(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def fingerprint(self) -> str:
        """Whether two runs saw the same rows: 16 hex digits of SHA-256 over keys, instants, features and labels."""
        digest = hashlib.sha256()
        for array in (self.t_ms, self.X, self.Y):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update("\n".join(self.target).encode())
        return digest.hexdigest()[:16]


def instants(history: History, *, max_rows: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Targets and instants to learn from, shape (n,) each, ordered by time.

    One instant an hour, the same for all targets, at a random time within its hour: with probes at fixed intervals,
    full hours would always see the same age of the newest probe. A target has those from its first verdict and the
    warm-up on until its last verdict. Where that makes more than `max_rows` rows, instants are left out at random, for
    all targets.
    """
    births, deaths = _lives(history)
    births += WARM_UP_MS
    deaths = np.minimum(deaths, history.until_ms - AHEAD_MS)

    grid = np.arange(births.min() // STEP_MS, deaths.max() // STEP_MS + 1) * STEP_MS
    grid += rng.integers(0, STEP_MS, len(grid))
    alive = np.searchsorted(np.sort(births), grid, side="right") - np.searchsorted(np.sort(deaths), grid, side="left")
    order = rng.permutation(len(grid))
    kept = np.sort(grid[order[np.cumsum(np.maximum(alive[order], 0)) <= max_rows]])

    first, last = np.searchsorted(kept, births), np.searchsorted(kept, deaths, side="right")
    count = np.maximum(last - first, 0)
    target = np.repeat(np.arange(len(count)), count)
    t_ms = kept[np.arange(len(target)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)]
    by_time = np.lexsort((target, t_ms))
    return target[by_time], t_ms[by_time]


def thinned(rows: Dataset, rng: np.random.Generator) -> tuple[Dataset, Floats]:
    """Fewer rows to fit to, and how many each stands for: instants in quiet times tell much the same."""
    flips_24h, flips_7d = (rows.X[:, names(VECTOR).index(f"log_flips_{span}")] > 0 for span in ("24h", "7d"))
    up = rows.failing == 0
    changes = [np.where(up, Y == 1, Y == 0) for Y in rows.Y.T]
    soon, later = changes[0] & up, changes[PROBABILITIES.index("onset_24h")] & up
    for output in changes[len(HORIZONS_H) :]:
        later |= output
    share = np.where(soon | flips_24h, 1.0, np.where(later | flips_7d, MIDDLING_SHARE, QUIET_SHARE))
    kept = rng.random(len(rows)) < share
    return rows.take(kept), 1 / share[kept]


def whole_grid(history: History, *, known_for_s: float) -> tuple[Ints, Ints]:
    """Targets and instants, shape (n,) each: every full UTC hour while the target may be known, by target and time."""
    first_ms, last_ms = _lives(history)
    begin = -(-first_ms // HOUR_MS)
    count = (last_ms + round(known_for_s * 1000)) // HOUR_MS - begin + 1
    target = np.repeat(np.arange(len(count)), count)
    return target, (np.arange(len(target)) - np.repeat(np.cumsum(count) - count - begin, count)) * HOUR_MS


def _lives(history: History) -> tuple[Ints, Ints]:
    """First and last verdict of each target."""
    first_ms = np.full(len(history.url), np.iinfo(np.int64).max)
    np.minimum.at(first_ms, history.target, history.ts_ms)
    last_ms = np.zeros(len(history.url), dtype=np.int64)
    np.maximum.at(last_ms, history.target, history.ts_ms)
    return first_ms, last_ms


def build(store: Any, history: History, *, known_for_s: float, max_rows: int, rng: np.random.Generator) -> Dataset:
    """Rows at the instants of :func:`instants`, their features from the `feast.FeatureStore` of the platform."""

    def vectors(rows: npt.NDArray[Any], t_ms: Ints) -> npt.NDArray[np.float32]:
        parts = [
            vector.at(point_in_time(store, rows[part], t_ms[part]), t_ms[part], known_for_s=known_for_s)
            for part in (slice(start, start + INSTANTS) for start in range(0, len(rows), INSTANTS))
        ]
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)

    target, t_ms = instants(history, max_rows=max_rows, rng=rng)
    return labelled(history, target, t_ms, vectors, known_for_s=known_for_s)


def labelled(history: History, target: Ints, t_ms: Ints, vectors: Vectors, *, known_for_s: float) -> Dataset:
    """Features, and labels from the history, for those of the instants at which the state is known.

    Args:
        known_for_s: how long a state is known after the verdict that showed it.
    """
    lines = Timelines.of(
        history.target,
        history.ts_ms,
        history.health,
        targets=len(history.url),
        known_for_s=known_for_s,
        maintenance=history.maintenance,
    )
    failing = lines.failing(target, t_ms)
    known = ~np.isnan(failing)
    target, t_ms, failing = target[known], t_ms[known], failing[known]
    entities = np.stack([history.url, history.host, history.group], axis=1)
    return Dataset(
        X=vectors(entities[target], t_ms),
        Y=lines.labels(target, t_ms),
        failing=failing,
        t_ms=t_ms,
        target=history.url[target],
        group=history.group[target],
    )
