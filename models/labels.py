"""What came of it: labels of forecasts, from the verdicts that followed.

A target's state is piecewise constant. A verdict shows it, and it is then known until the next verdict, but for
`known_for_s` at most; verdicts that say nothing (health -1) do not count. For an instant t and a horizon of H hours:

- `onset_H`: whether the target is seen failing at any time in (t, t+H]. One such verdict makes it 1; for 0 the state
  must be known all through to t+H. Of a target that is failing at t it is 1.
- `failing_H`: whether it is failing at t+H, where that is known.

Time under planned maintenance is no failure, and no evidence of the contrary: verdicts given in it do not count, at an
instant in it nothing is known, and `onset_H` passes it over as it passes over the time between two verdicts.

Where the state at t itself is unknown, so are all labels. Nothing is known after `until_ms`, the end of the records:
after the newest instants, the future has not happened yet, recently though the state was seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from urlhealth.vocabulary import HORIZONS_H, Maintenance

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
#: Windows of planned maintenance by a target's number.
Windows = Mapping[int, Sequence[Maintenance]]
NO_WINDOWS: Final[Windows] = MappingProxyType({})

HOUR_MS = 3_600_000
_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, kw_only=True, eq=False)
class Timelines:
    """The known verdicts of many targets by target and time, ready to be asked for states and labels.

    Targets are numbers 0, 1, ... here. The fields up to `next_down_ms` are arrays of shape (m,).
    """

    #: Position of each verdict on one axis on which the targets' lives lie one after the other, ascending.
    position: Ints
    #: When the verdict was given, ms since 1970 UTC.
    ts_ms: Ints
    down: npt.NDArray[np.bool_]
    #: Until when the state is known without a break from this verdict on.
    known_until_ms: Ints
    #: When the same target was next seen failing, after this verdict.
    next_down_ms: Ints
    #: int64 (targets + 1,): the first verdict of each target.
    first: Ints
    #: Instant 0 of the axis and length of each target's part of it.
    origin_ms: int
    span_ms: int
    known_for_ms: int
    until_ms: int
    maintenance: Windows

    @classmethod
    def of(
        cls,
        target: Ints,
        ts_ms: Ints,
        health: npt.NDArray[np.int8],
        *,
        targets: int,
        known_for_s: float,
        until_ms: int | None = None,
        maintenance: Windows = NO_WINDOWS,
    ) -> "Timelines":
        """Timelines of verdicts in any order; of several of a target at one time, the first counts, as for features.

        Args:
            target: shape (m,), numbers below `targets`.
            ts_ms, health: shape (m,), as in `Verdicts`.
            until_ms: end of the records; by default the newest verdict of any target.
            maintenance: what was planned for whom.
        """
        if until_ms is None:
            until_ms = int(ts_ms.max()) if len(ts_ms) else 0
        order = np.lexsort((ts_ms, target))
        target, ts_ms, health = target[order], ts_ms[order], health[order]
        repeated = np.append(False, (np.diff(target) == 0) & (np.diff(ts_ms) == 0))[: len(target)]
        keep = (health >= 0) & (ts_ms <= until_ms) & ~repeated & ~planned(maintenance, target, ts_ms)
        target, ts_ms, down = target[keep], ts_ms[keep], health[keep] == 0

        known_for_ms = round(known_for_s * 1000)
        origin_ms = int(ts_ms.min()) if len(ts_ms) else 0
        span_ms = until_ms - origin_ms + 1
        ends = np.append(target[1:] != target[:-1], True)[: len(target)]
        breaks = ends | (np.diff(ts_ms, append=_NEVER) > known_for_ms)
        next_down = np.where(down, np.arange(len(down)), len(down))
        next_down = np.minimum.accumulate(np.append(next_down, len(down))[::-1])[::-1][1:]
        same = np.append(target, -1)[next_down] == target
        return cls(
            position=target * span_ms + (ts_ms - origin_ms),
            ts_ms=ts_ms,
            down=down,
            known_until_ms=np.minimum(_next(breaks, ts_ms + known_for_ms), until_ms),
            next_down_ms=np.where(same, np.append(ts_ms, _NEVER)[next_down], _NEVER),
            first=np.searchsorted(target, np.arange(targets + 1)),
            origin_ms=origin_ms,
            span_ms=span_ms,
            known_for_ms=known_for_ms,
            until_ms=until_ms,
            maintenance=maintenance,
        )

    def failing(self, target: Ints, t_ms: Ints) -> Floats:
        """State at each instant, shape (n,): 1 failing, 0 up, NaN unknown."""
        last, known = self._last(target, t_ms)
        return np.where(known, self._at(self.down, last).astype(np.float64), np.nan)

    def labels(self, target: Ints, t_ms: Ints) -> Floats:
        """Labels in the order of `vocabulary.PROBABILITIES`, float64 (n, 6): 1, 0, or NaN where not known."""
        last, known = self._last(target, t_ms)
        failing = self._at(self.down, last)
        known_until_ms, next_down_ms = self._at(self.known_until_ms, last), self._at(self.next_down_ms, last)
        onsets, at_ends = [], []
        for hours in HORIZONS_H:
            end_ms = t_ms + hours * HOUR_MS
            seen = failing | (next_down_ms <= end_ms)
            onset = np.where(seen, 1.0, np.where(known_until_ms >= end_ms, 0.0, np.nan))
            onsets.append(np.where(known, onset, np.nan))
            at_ends.append(np.where(known, self.failing(target, end_ms), np.nan))
        return np.stack([*onsets, *at_ends], axis=1)

    def _last(self, target: Ints, t_ms: Ints) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """The last verdict at or before each instant, and whether it still holds then."""
        at = np.clip(t_ms - self.origin_ms, -1, self.span_ms - 1)
        last = np.searchsorted(self.position, target * self.span_ms + at, side="right") - 1
        seen = last >= self.first[target]
        known = seen & (t_ms - self._at(self.ts_ms, last) <= self.known_for_ms) & (t_ms <= self.until_ms)
        return last, known & ~planned(self.maintenance, target, t_ms)

    @staticmethod
    def _at(values: npt.NDArray[Any], index: Ints) -> npt.NDArray[Any]:
        return values[index] if len(values) else np.zeros(len(index), values.dtype)


def planned(maintenance: Windows, target: Ints, ts_ms: Ints) -> npt.NDArray[np.bool_]:
    """Whether each instant of a target lies in a window of its planned maintenance, shape (n,)."""
    under = np.zeros(len(ts_ms), dtype=bool)
    if not maintenance:
        return under
    order = np.argsort(target, kind="stable")
    numbers = np.array([*maintenance])
    begin, end = (np.searchsorted(target[order], numbers, side=side) for side in ("left", "right"))
    for windows, first, last in zip(maintenance.values(), begin, end, strict=True):
        rows = order[first:last]
        for window in windows:
            since_ms = ts_ms[rows] - window.start_ms
            if window.every_ms is not None:
                since_ms = np.where(since_ms >= 0, since_ms % window.every_ms, since_ms)
            under[rows] |= (since_ms >= 0) & (since_ms < window.end_ms - window.start_ms)
    return under


def _next(marks: npt.NDArray[np.bool_], values: Ints) -> Ints:
    """For each position, the value at the first mark at or after it; the last position is marked."""
    marked = np.flatnonzero(marks)
    return values[marked[np.searchsorted(marked, np.arange(len(values)))]] if len(values) else values
