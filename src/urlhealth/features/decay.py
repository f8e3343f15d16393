"""Sums that fade: what was added counts half as much after every half-life."""

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS

#: Half-lives in hours of the decayed sums: half an hour to 90 days, and one that never fades.
HALF_LIVES_H: Final = (0.5, 2.0, 12.0, 48.0, 168.0, 720.0, 2160.0, math.inf)
#: How names spell them.
HALF_LIFE_NAMES: Final = ("30m", "2h", "12h", "2d", "7d", "30d", "90d", "ever")

_HALF_LIVES: Final = np.array(HALF_LIVES_H)
_FADING: Final = _HALF_LIVES[:-1]


def decay(hours: Array) -> npt.NDArray[np.float64]:
    """What is left of 1 after `hours`, shape (n,): float64, shape (n, len(HALF_LIVES_H))."""
    left: npt.NDArray[np.float64] = np.exp2(hours[:, None] / -_HALF_LIVES)
    return left


def accrued(held_h: Array, since_h: Array | None = None) -> npt.NDArray[np.float64]:
    """The decayed length, in hours, of an interval of `held_h` hours that ended `since_h` hours ago (None: just now).

    This is the integral of 2^(-age / half-life) over the interval: half-life / ln 2 · (1 - 2^(-held / half-life)) ·
    2^(-since / half-life); simply `held_h` for the half-life that never fades. float64, (n, len(HALF_LIVES_H)).
    """
    held = np.empty((len(held_h), len(HALF_LIVES_H)))
    held[:, -1] = held_h
    held[:, :-1] = np.expm1(held_h[:, None] * (-math.log(2) / _FADING)) * (-_FADING / math.log(2))
    if since_h is not None and len(ended := np.flatnonzero(since_h)):  # most intervals ended just now
        held[ended] *= decay(since_h[ended])
    return held
