"""How old the states were that requests read."""

import threading
from collections.abc import Sequence
from typing import Final

import numpy as np

from urlhealth.vocabulary import Freshness

#: Upper bounds of the buckets: from 10 s to 30 days.
AGES_S: Final = (10.0, 60.0, 300.0, 900.0, 3_600.0, 21_600.0, 86_400.0, 172_800.0, 604_800.0, 2_592_000.0)


class Ages:
    """Ages at read, and how many reads were of each freshness. Many threads may use one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: How many ages were up to each of `AGES_S`, and above; and their sum.
        self.counts = [0] * (len(AGES_S) + 1)
        self.sum_s = 0.0
        self.reads = dict.fromkeys(Freshness, 0)

    def add(self, statuses: Sequence[Freshness], ages_s: Sequence[float]) -> None:
        """Count the states of one request.

        Args:
            ages_s: of those that are not missing: seconds since their newest probe.
        """
        counts = np.bincount(np.searchsorted(AGES_S, ages_s), minlength=len(self.counts)).tolist()
        with self._lock:
            self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)]
            self.sum_s += float(sum(ages_s))
            for status in statuses:
                self.reads[status] += 1
