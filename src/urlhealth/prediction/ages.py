"""How old the states were that requests read."""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Final

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

    def add(self, statuses: Sequence[Freshness], ages_s: Sequence[float | None]) -> None:
        """Count states that were read.

        Args:
            ages_s: seconds since the newest probe of each; None if it is missing.
        """
        ages = [age_s for age_s in ages_s if age_s is not None]
        counts = Counter(bisect_left(AGES_S, age_s) for age_s in ages)
        reads = Counter(statuses)
        with self._lock:
            self.sum_s += sum(ages)
            for place, count in counts.items():
                self.counts[place] += count
            for status, count in reads.items():
                self.reads[status] += count
