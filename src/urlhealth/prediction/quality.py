"""What became of what was served: predictions joined with what later probes revealed, by version and horizon.

Labels are those of training (`models/labels.py`, to which a test holds them): 1 if the target is seen failing within
the horizon, 0 if it is known to be up all through it; unknown as long as neither is known.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from urlhealth.crawl.served import Lives
from urlhealth.prediction.served import Answers, ServedLog
from urlhealth.vocabulary import HORIZONS, LOCAL_OWNER

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Of the reliability diagram, equally wide.
BINS: Final = 10
_HOUR_MS: Final = 3_600_000
_NEVER: Final = np.iinfo(np.int64).max


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Predictions between two probabilities: how many, what they said on average, and how often it came true."""

    low: float
    high: float
    n: int
    predicted: float
    observed: float


@dataclass(frozen=True, kw_only=True)
class LiveFigures:
    """One version's forecasts of failures within one horizon, made of targets that were up."""

    model_version: str
    horizon: str
    #: Predictions whose outcome is known, and those of which it is not (yet).
    n: int
    unknown: int
    #: Share of the outcomes that were failures; this and what follows is None while n is 0.
    base_rate: float | None
    #: None while no outcome was a failure.
    average_precision: float | None
    brier: float | None
    reliability: Sequence[Bin]


@dataclass(frozen=True, kw_only=True)
class LiveQuality:
    """Figures by version and horizon, of what was served in [from, to)."""

    from_ms: int
    to_ms: int
    #: Of how many predictions one was looked at.
    every: int
    figures: Sequence[LiveFigures]


def live_quality(log: ServedLog, *, from_ms: int, to_ms: int, owner: str = LOCAL_OWNER) -> LiveQuality:
    """Join the log with what happened, and judge it. Takes part of a second, whatever the log's size.

    Raises:
        StoreUnavailable.
    """
    answers = log.answers(from_ms=from_ms, to_ms=to_ms, owner=owner)
    lives = log.lives(np.unique(answers.target_id), from_ms=from_ms)
    failing, onset = outcomes(lives, answers)
    return LiveQuality(
        from_ms=from_ms, to_ms=to_ms, every=answers.every, figures=list(_figures(answers, failing, onset))
    )


def outcomes(lives: Lives, answers: Answers) -> tuple[Floats, Floats]:
    """State of each answer's target when it was given (1 failing, 0 up), and label; NaN where not known. Shape (n,).

    The records end with the newest verdict on any of the targets.
    """
    n = len(answers.ts_ms)
    if not len(lives.start_ms):
        return np.full(n, np.nan), np.full(n, np.nan)
    t, hours = answers.ts_ms, np.array([HORIZONS.get(h, 0) for h in answers.horizon.tolist()], np.int64)
    until_ms = int(lives.last_ms.max())
    ends = np.append(lives.target_id[1:] != lives.target_id[:-1], True)
    breaks = ends | np.append(lives.start_ms[1:] > lives.end_ms[:-1], True)
    known_until = np.minimum(_at_next(breaks, lives.end_ms), until_ms)
    down_ms = _next_down(lives)

    last = _last(lives, answers.target_id, t)
    some = np.maximum(last, 0)
    known = (last >= 0) & (lives.target_id[some] == answers.target_id) & (t <= lives.end_ms[some]) & (t <= until_ms)
    failing = ~lives.up[some]
    end_ms = t + hours * _HOUR_MS
    seen = failing | (down_ms[some] <= end_ms)
    onset = np.where(seen, 1.0, np.where(known_until[some] >= end_ms, 0.0, np.nan))
    return np.where(known, failing, np.nan), np.where(known, onset, np.nan)


def _last(lives: Lives, target_id: Ints, t: Ints) -> Ints:
    """Position of the last spell, of this or an earlier target, that began at or before each instant; -1 for none."""
    origin = min(int(lives.start_ms.min()), int(t.min(initial=_NEVER)))
    span = max(int(lives.start_ms.max()), int(t.max(initial=0))) - origin + 1
    # Targets are few, and their numbers may be large: their ranks put all lives on one axis.
    ranks = np.unique(lives.target_id)
    axis = np.searchsorted(ranks, lives.target_id) * span + (lives.start_ms - origin)
    return np.searchsorted(axis, np.searchsorted(ranks, target_id) * span + (t - origin), side="right") - 1


def _next_down(lives: Lives) -> Ints:
    """For each spell, when the same target was next seen failing, after its start."""
    m = len(lives.up)
    following = np.where(lives.up, m, np.arange(m))
    following = np.minimum.accumulate(np.append(following, m)[::-1])[::-1][1:]
    same = np.append(lives.target_id, -1)[following] == lives.target_id
    return np.where(same, np.append(lives.start_ms, _NEVER)[following], _NEVER)


def _at_next(marks: npt.NDArray[np.bool_], values: Ints) -> Ints:
    """For each position, the value at the first mark at or after it; the last position is marked."""
    marked = np.flatnonzero(marks)
    return values[marked[np.searchsorted(marked, np.arange(len(values)))]]


def _figures(answers: Answers, failing: Floats, onset: Floats) -> Iterator[LiveFigures]:
    for version in np.unique(answers.model_version):
        for horizon in HORIZONS:
            asked = (answers.model_version == version) & (answers.horizon == horizon) & (failing != 1)
            if asked.any():
                counted = asked & ~np.isnan(onset)
                yield _of(str(version), horizon, answers.probability[counted], onset[counted], int(asked.sum()))


def _of(version: str, horizon: str, p: Floats, y: Floats, asked: int) -> LiveFigures:
    from sklearn.metrics import average_precision_score

    place = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    bins = [
        Bin(
            low=b / BINS,
            high=(b + 1) / BINS,
            n=int(inside.sum()),
            predicted=_mean(p[inside]),
            observed=_mean(y[inside]),
        )
        for b in range(BINS)
        for inside in [place == b]
        if inside.any()
    ]
    return LiveFigures(
        model_version=version,
        horizon=horizon,
        n=len(p),
        unknown=asked - len(p),
        base_rate=_mean(y) if len(y) else None,
        average_precision=float(average_precision_score(y, p)) if y.any() else None,
        brier=_mean((p - y) ** 2) if len(y) else None,
        reliability=bins,
    )


def _mean(values: Floats) -> float:
    return float(values.mean())
