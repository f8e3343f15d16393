"""What a model must beat: rules that anybody can write, and the logistic regression on eight features.

Computed from the raw history with exact windows, by none of the platform's feature code.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.dataset import History

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
#: More than any instant.
_SPAN_MS: Final = 1 << 43

#: The columns of :func:`eight`.
EIGHT: Final = ("state", "share_1d", "share_7d", "share_30d", "age", "state_age", "flips_24h", "flips_7d")


def eight(history: History, target: Ints, t_ms: Ints, *, known_for_s: float) -> Floats:
    """The eight features at each instant, shape (n, 8).

    State now (0, 1); share of the known time of the last 1, 7 and 30 days that it was failing; a = ln(1 + hours in the
    state); state x a; ln(1 + flips) in 24 h and in 7 days.

    Args:
        target, t_ms: shape (n,); each instant not before the target's first verdict.
    """
    order = np.lexsort((history.ts_ms, history.target))
    owner, ts_ms, down = history.target[order], history.ts_ms[order], history.health[order] == 0
    repeated = np.append(False, (np.diff(owner) == 0) & (np.diff(ts_ms) == 0))
    owner, ts_ms, down = owner[~repeated], ts_ms[~repeated], down[~repeated]
    known_for_ms = round(known_for_s * 1000)
    same = np.append(owner[1:] == owner[:-1], False)
    held = np.where(same, np.minimum(np.diff(ts_ms, append=0), known_for_ms), known_for_ms)
    seen = np.append(False, same[:-1] & (np.diff(ts_ms) <= known_for_ms))
    flip = seen & (down != np.append(False, down[:-1]))
    since = np.maximum.accumulate(np.where(flip | ~seen, np.arange(len(ts_ms)), 0))
    position = owner * _SPAN_MS + ts_ms
    first = np.searchsorted(owner, target)
    flips = np.append(0, np.cumsum(flip))

    def newest(at_ms: Ints) -> Ints:
        return np.searchsorted(position, target * _SPAN_MS + at_ms, side="right") - 1

    def held_until(which: npt.NDArray[np.bool_], at_ms: Ints) -> Ints:
        """Time held in the wanted states from the start of all until `at_ms`."""
        total = np.append(0, np.cumsum(held * which))
        last = newest(at_ms)
        open_ms = np.where(which[last], np.minimum(at_ms - ts_ms[last], held[last]), 0)
        return np.where(last >= first, total[last] + open_ms, total[first])

    last = newest(t_ms)
    state = down[last].astype(np.float64)
    shares = []
    for days in (1, 7, 30):
        failing, known = (
            held_until(which, t_ms) - held_until(which, t_ms - days * DAY_MS) for which in (down, np.ones_like(down))
        )
        shares.append(np.where(known > 0, failing / np.maximum(known, 1), state))
    age = np.log1p((t_ms - ts_ms[since[last]]) / HOUR_MS)
    counts = [
        np.log1p(flips[last + 1] - flips[np.maximum(newest(t_ms - days * DAY_MS), first - 1) + 1]) for days in (1, 7)
    ]
    return np.stack([state, *shares, age, state * age, *counts], axis=1)


def logistic(X: Floats, y: Floats) -> Any:
    """Standardised logistic regression with C = 1: a fitted scikit-learn pipeline."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=1.0, solver="newton-cholesky")).fit(X, y)
