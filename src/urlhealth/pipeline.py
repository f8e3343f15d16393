"""Stored probes become carried state, and carried state becomes Feast rows: one micro-batch at a time.

This is the page to read first. A stored probe is the record from which all else can be rebuilt, so the pipeline keeps
only a position: the last probe that its state has seen. Position and state are saved in one transaction, after the
Feast rows are written. A crash in between repeats the batch: its segment has the same name and replaces the first, and
the online store takes no row that is older than what it has. So a crash counts nothing twice and skips nothing. (A
writer that stalls past its lease is only stopped at the save: its segment may replace the new writer's.)
"""

import numpy as np

from urlhealth.crawl.carried import CarriedStore
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.store import CrawlStore
from urlhealth.feast_stores.stores import FeatureStores
from urlhealth.features.advance import advance
from urlhealth.features.verdicts import Verdicts
from urlhealth.vocabulary import Clock

#: Verdicts that one step takes at most: bounds its memory and the time until its state is saved.
BATCH = 20_000


class Pipeline:
    """Folds new verdicts into features. Only the process that holds the lease may run it."""

    def __init__(
        self,
        *,
        probes: CrawlStore,
        carried: CarriedStore,
        features: FeatureStores,
        lease: Lease,
        clock: Clock,
        known_for_s: float,
        late_s: float,
    ) -> None:
        self._probes = probes
        self._carried = carried
        self._features = features
        self._lease = lease
        self._clock = clock
        self._known_for_s = known_for_s
        self._late_s = late_s
        #: Verdicts that came too late to be put in order, since this object was made.
        self.late_total = 0

    def step(self) -> int:
        """Take the next micro-batch; returns how many verdicts it had, 0 when there are none.

        Raises:
            LeaseLost: another process has become the writer; the position has not moved.
        """
        verdicts = self._probes.verdicts_after(self._carried.position(), limit=BATCH)
        if not len(verdicts):
            return 0
        carried = {
            "url": self._carried.load("url", np.unique(verdicts.target).tolist()),
            "host": self._carried.load("host", np.unique(verdicts.host).tolist()),
            "group": self._carried.load("group", np.unique(verdicts.group).tolist()),
        }
        advanced = advance(carried, verdicts, known_for_s=self._known_for_s, late_s=self._late_s)
        for rows in advanced.rows:
            self._features.write(rows, segment=f"{verdicts.probe_id[0]:016d}", created_ms=self._clock())
        self._carried.save(int(verdicts.probe_id[-1]), advanced.carried, lease=self._lease)
        self.late_total += advanced.late
        return len(verdicts)

    def rebuild(self) -> int:
        """Forget all features and fold every stored verdict anew in the order of time; returns how many there were.

        So verdicts that came too late find their place.
        """
        self._features.clear()
        self._carried.clear(lease=self._lease)
        history = self._all_verdicts()
        carried: dict[str, dict[str, bytes]] = {"url": {}, "host": {}, "group": {}}
        for start in range(0, len(history), BATCH):
            advanced = advance(
                carried, history.take(slice(start, start + BATCH)), known_for_s=self._known_for_s, late_s=self._late_s
            )
            for rows in advanced.rows:
                self._features.write(rows, segment=f"rebuilt-{start:016d}", created_ms=self._clock())
            for kind, states in advanced.carried.items():
                carried[kind].update(states)
        if len(history):
            self._carried.save(int(history.probe_id.max()), carried, lease=self._lease)
        return len(history)

    def _all_verdicts(self) -> Verdicts:
        parts = [self._probes.verdicts_after(0, limit=BATCH)]
        while len(parts[-1]) == BATCH:
            parts.append(self._probes.verdicts_after(int(parts[-1].probe_id[-1]), limit=BATCH))
        history = Verdicts.concatenate(parts)
        return history.take(np.lexsort((history.probe_id, history.ts_ms)))
