"""What many verdicts add up to: counts by outcome, and durations as a sum, a sum of squares and a histogram.

All are whole numbers, so that the sums of parts, added in any order, are exactly those of the whole. The histogram's
buckets are the same everywhere and 5 % wide: a quantile read from it is within 2.5 % of the durations' own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from urlhealth.vocabulary import Outcome

Ints = npt.NDArray[np.int64]

#: One count as it is stored: of an outcome (its code), or of a bucket (`_OUTCOMES` and on).
ENTRY: Final = np.dtype([("key", "<u2"), ("count", "<u4")])
_OUTCOMES: Final = 32
_KEYS: Final = 512
_NAMES: Final = [outcome.value for outcome in Outcome]

#: Bounds of the buckets: from 0.1 ms to 10 minutes.
_BOUNDS_US: Final = np.floor(100 * 1.05 ** np.arange(321)).astype(np.int64)
_LONGEST_US: Final = int(_BOUNDS_US[-1])
#: What stands for the durations of each bucket: the geometric middle.
_MIDDLES_MS: Final = np.sqrt(np.append(_BOUNDS_US[0], _BOUNDS_US) * np.append(_BOUNDS_US, _BOUNDS_US[-1])) / 1000
_HALF: Final = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The sums of one row in words. Durations are those of verdicts that said up; None where there were none."""

    outcomes: dict[str, int]
    mean_ms: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    #: Standard deviation.
    deviation_ms: float | None = None


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums of n rows. Counts are kept sparsely: only those that are not 0, sorted by row and key."""

    #: int64, shape (m,): row x `_KEYS` + key.
    code: Ints
    #: int64, shape (m,).
    count: Ints
    #: int64, shape (n,): sums of the durations in µs, and of the upper and lower halves of their squares.
    sum_us: Ints
    squares_high: Ints
    squares_low: Ints

    def __len__(self) -> int:
        return len(self.sum_us)

    @classmethod
    def of_verdicts(cls, row: Ints, n: int, outcome: Ints, total_ms: npt.NDArray[np.float64]) -> "Sums":
        """The sums of n rows.

        Args:
            row, outcome, total_ms: shape (k,): each verdict's row, `Outcome.code`, and duration (NaN without one).
        """
        timed = (outcome == Outcome.OK.code) & (total_ms > 0)
        us = np.minimum(np.rint(total_ms[timed] * 1000), _LONGEST_US).astype(np.int64)
        bucket = np.searchsorted(_BOUNDS_US, us, side="right") + _OUTCOMES
        code = np.concatenate((row * _KEYS + outcome, row[timed] * _KEYS + bucket))
        code, count = np.unique(code, return_counts=True)
        squares = us * us
        sums = (us, squares >> _HALF, squares & (1 << _HALF) - 1)
        return cls(code, count, *(_added(row[timed], values, n) for values in sums))

    @classmethod
    def of_stored(cls, row: Ints, n: int, stored: Sequence[Sequence[Any]]) -> "Sums":
        """The sums of n rows, from stored ones: `counts`, `sum_us`, `squares_high` and `squares_low` of each.

        Args:
            row: shape (len(stored),).
        """
        if not stored:
            nothing = np.zeros(n, np.int64)
            return cls(nothing[:0], nothing[:0], nothing, nothing, nothing)
        blobs, *sums = zip(*stored, strict=True)
        entries = np.frombuffer(b"".join(blobs), ENTRY)
        lengths = np.array([len(blob) for blob in blobs]) // ENTRY.itemsize
        code = np.repeat(row, lengths) * _KEYS + entries["key"]
        added = (_added(row, np.array(values, np.int64), n) for values in sums)
        return cls(*_reduced(code, entries["count"].astype(np.int64)), *added)

    def __add__(self, other: "Sums") -> "Sums":
        """Row by row."""
        code, count = _reduced(np.append(self.code, other.code), np.append(self.count, other.count))
        return Sums(
            code=code,
            count=count,
            sum_us=self.sum_us + other.sum_us,
            squares_high=self.squares_high + other.squares_high,
            squares_low=self.squares_low + other.squares_low,
        )

    def stored(self) -> list[tuple[bytes, int, int, int]]:
        """Each row as it is stored: the inverse of :meth:`of_stored`."""
        entries = np.empty(len(self.code), ENTRY)
        entries["key"], entries["count"] = self.code % _KEYS, self.count
        blob = entries.tobytes()
        ends = (self._starts() * ENTRY.itemsize).tolist()
        blobs = [blob[start:end] for start, end in pairwise(ends)]
        sums = (self.sum_us.tolist(), self.squares_high.tolist(), self.squares_low.tolist())
        return list(zip(blobs, *sums, strict=True))

    def summaries(self) -> list[Summary]:
        """Each row in words."""
        row, key = np.divmod(self.code, _KEYS)
        counts: list[dict[str, int]] = [{} for _ in range(len(self))]
        of_outcome = key < _OUTCOMES
        named = (row[of_outcome].tolist(), key[of_outcome].tolist(), self.count[of_outcome].tolist())
        for number, code, count in zip(*named, strict=True):
            counts[number][_NAMES[code]] = count

        row, key, count = (values[~of_outcome] for values in (row, key, self.count))
        timed, first = np.unique(row, return_index=True)
        rising = count.cumsum()
        before = rising[first] - count[first]
        n = np.diff(np.append(before, rising[-1:]))
        # The smallest duration that is not less than this share of them.
        p50, p95 = (
            _MIDDLES_MS[key[rising.searchsorted(before + -(-n * percent // 100))] - _OUTCOMES].tolist()
            for percent in (50, 95)
        )
        summaries = [Summary(outcomes=outcomes) for outcomes in counts]
        sums = (self.sum_us[timed], self.squares_high[timed], self.squares_low[timed])
        for position, (number, of_row, us, high, low) in enumerate(
            zip(timed.tolist(), n.tolist(), *(values.tolist() for values in sums), strict=True)
        ):
            summaries[number] = Summary(
                outcomes=counts[number],
                mean_ms=us / of_row / 1000,
                p50_ms=p50[position],
                p95_ms=p95[position],
                deviation_ms=isqrt(of_row * ((high << _HALF) + low) - us * us) / of_row / 1000,
            )
        return summaries

    def _starts(self) -> npt.NDArray[np.intp]:
        """Where each row's counts begin, and the last one's end: shape (n + 1,)."""
        return np.searchsorted(self.code, np.arange(len(self) + 1) * _KEYS)


def _added(row: Ints, values: Ints, n: int) -> Ints:
    sums = np.zeros(n, np.int64)
    np.add.at(sums, row, values)
    return sums


def _reduced(code: Ints, count: Ints) -> tuple[Ints, Ints]:
    """Counts of the same code added up."""
    order = np.argsort(code, kind="stable")
    code, count = code[order], count[order]
    starts = np.flatnonzero(np.diff(code, prepend=-1))
    return code[starts], np.add.reduceat(count, starts) if len(starts) else count
