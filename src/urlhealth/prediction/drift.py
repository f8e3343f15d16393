"""Vectors of a period, drawn from the stores, and what became of the features from one period to another.

A period's vectors are those of targets at instants drawn evenly from the time that the targets were watched in it. So a
target that is probed often counts as much as one that is probed seldom, and any two periods are drawn alike: the time
that a model was trained on, and the time that it serves. Memory holds a fixed number of
vectors, however long the history.
"""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from urlhealth.crawl.store import CrawlStore
from urlhealth.errors import InvalidRequest, NotEnoughHistory
from urlhealth.feast_stores.segments import replace_file
from urlhealth.feast_stores.stores import FeatureStores
from urlhealth.features import vector
from urlhealth.features.catalog import GROUP_STATE, HOST_STATE, URL_STATE
from urlhealth.features.drift import Drift, FeatureDrift, Vectors, compare
from urlhealth.prediction.champion import champion_version, has_registry

#: Vectors drawn from each period: enough that chance alone gives a PSI below 0.01.
ROWS: Final = 10_000


@dataclass(frozen=True, kw_only=True)
class Period:
    """A span of time, ms since 1970 UTC, both ends included."""

    since_ms: int
    until_ms: int

    @classmethod
    def parse(cls, text: str) -> "Period":
        """A period written `FROM/TO`, each an instant (ISO 8601; UTC unless it says else).

        Raises:
            InvalidRequest: it is none.
        """
        try:
            since_ms, until_ms = (_instant_ms(part) for part in text.split("/"))
        except ValueError as error:
            raise InvalidRequest(f"{text!r} is no period: write FROM/TO, like 2026-11-01/2026-11-08T12:00") from error
        if since_ms >= until_ms:
            raise InvalidRequest(f"the period {text!r} ends before it begins")
        return cls(since_ms=since_ms, until_ms=until_ms)

    def __str__(self) -> str:
        return "/".join(
            datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            for ms in (self.since_ms, self.until_ms)
        )


def between(
    crawl: CrawlStore,
    features: FeatureStores,
    reference: Period,
    current: Period,
    *,
    known_for_s: float,
    rng: np.random.Generator,
    rows: int = ROWS,
) -> Drift:
    """What became of the features from one period to another.

    Args:
        rows: vectors to draw from each.

    Raises:
        NotEnoughHistory: a period has no verdict.
        StoreUnavailable: a store cannot be read.
    """
    was, now = (
        sample(crawl, features, period, known_for_s=known_for_s, rng=rng, rows=rows) for period in (reference, current)
    )
    return compare(was, now)


def sample(
    crawl: CrawlStore,
    features: FeatureStores,
    period: Period,
    *,
    known_for_s: float,
    rng: np.random.Generator,
    rows: int = ROWS,
) -> Vectors:
    """Vectors of a period; float32, shape (rows, len(VECTOR)). Raises as :func:`between` does."""
    urls, first_ms, last_ms = features.lives(period.since_ms, period.until_ms)
    if not urls:
        raise NotEnoughHistory(f"the period {period} has no features: nothing was probed then, or it is not built yet")
    which, t_ms = _drawn(first_ms, last_ms, rng, rows)
    targets = crawl.find_targets([urls[i] for i in np.unique(which).tolist()])
    known = np.array([urls[i] in targets for i in which.tolist()], bool)
    which, t_ms = which[known], t_ms[known]
    keys = [targets[urls[i]] for i in which.tolist()]
    states = {
        URL_STATE.name: features.as_of(URL_STATE, [target.key for target in keys], t_ms).states,
        HOST_STATE.name: features.as_of(HOST_STATE, [target.host for target in keys], t_ms).states,
        GROUP_STATE.name: features.as_of(GROUP_STATE, [target.group for target in keys], t_ms).states,
    }
    return vector.at(states, t_ms, known_for_s=known_for_s)


def training_period(tracking_uri: str) -> Period:
    """All time until the champion was trained.

    Raises:
        InvalidRequest: it was not trained here.
        StoreUnavailable: the registry cannot say.
    """
    version = champion_version(tracking_uri) if has_registry(tracking_uri) else None
    if version is None or version.tags.get("origin") == "bundled":
        raise InvalidRequest(
            "the model in use was not trained on the history here: run `urlhealth train`, or name two periods "
            "(--reference FROM/TO)"
        )
    return Period(since_ms=0, until_ms=int(version.creation_timestamp))


def save(found: Drift, file: Path) -> None:
    """Keep a comparison for :func:`load`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, lambda temporary: temporary.write_text(json.dumps(as_json(found))))


def load(file: Path) -> Drift | None:
    """The comparison saved last; None if there is none, or one that another version wrote."""
    try:
        saved = json.loads(file.read_text())
        features = tuple(_feature(item) for item in saved.pop("features"))
        return Drift(features=features, **saved)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def as_json(found: Drift) -> dict[str, Any]:
    """The comparison as JSON has it: a distance that is not known is null."""
    plain = asdict(found)
    for item in plain["features"]:
        item["ks"] = None if np.isnan(item["ks"]) else item["ks"]
    return plain


def _drawn(
    first_ms: npt.NDArray[np.int64], last_ms: npt.NDArray[np.int64], rng: np.random.Generator, rows: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    """Targets by number and instants, shape (rows,) each, evenly from all time between first and last verdicts."""
    ends: npt.NDArray[np.int64] = np.cumsum(last_ms - first_ms + 1)
    at = rng.integers(0, ends[-1], rows)
    which = np.searchsorted(ends, at, side="right")
    t_ms: npt.NDArray[np.int64] = last_ms[which] - (ends[which] - 1 - at)
    return which, t_ms


def _instant_ms(text: str) -> int:
    moment = datetime.fromisoformat(text.strip())
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _feature(saved: dict[str, Any]) -> FeatureDrift:
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in saved.items()}
    return FeatureDrift(**{**values, "ks": float("nan") if values["ks"] is None else values["ks"]})
