"""Where a URL's features stand among those of all."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from urlhealth.features.catalog import VECTOR
from urlhealth.features.columns import names
from urlhealth.prediction.predictor import Predictor
from urlhealth.vocabulary import Clock, Target

#: Targets that stand for all, where there are more.
SAMPLE: Final = 1_000
#: The others' features are as old as this at most.
_KEPT_MS: Final = 300_000
#: Owners whose others are kept in memory.
_OWNERS: Final = 16


class Ranks:
    """Percentiles among an owner's targets, or an even sample of them. Many threads may use one."""

    def __init__(self, *, predictor: Predictor, sample: Callable[[str], Sequence[Target]], clock: Clock) -> None:
        """`sample`: the targets, `SAMPLE` at most, that stand for all of an owner."""
        self._predictor = predictor
        self._sample = sample
        self._clock = clock
        self._lock = threading.Lock()
        #: When they were read, and float32 (n, len(VECTOR)), each column sorted, NaN last.
        self._sorted: dict[str, tuple[int, npt.NDArray[np.float32]]] = {}

    def percentiles(self, values: Mapping[str, float], *, owner: str) -> dict[str, float | None]:
        """For each feature the share, in per cent, of the others that are below, those that are equal counted half;
        None where it is not known, of the URL or of any other.
        """
        others = self._others(owner)
        known = (~np.isnan(others)).sum(axis=0)
        found: dict[str, float | None] = {}
        for column, name in enumerate(names(VECTOR)):
            value, n = np.float32(values[name]), known[column]
            place = sum(np.searchsorted(others[:n, column], value, side) for side in ("left", "right"))
            found[name] = None if np.isnan(value) or not n else float(50 * place / n)
        return found

    def _others(self, owner: str) -> npt.NDArray[np.float32]:
        now_ms = self._clock()
        with self._lock:
            known = self._sorted.get(owner)
            if known is not None and 0 <= now_ms - known[0] < _KEPT_MS:
                return known[1]
            others = np.sort(self._predictor.vectors(self._sample(owner)), axis=0)
            if len(self._sorted) >= _OWNERS:
                self._sorted.clear()
            self._sorted[owner] = now_ms, others
            return others
