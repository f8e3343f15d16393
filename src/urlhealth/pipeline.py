"""Stored probes become carried state, and carried state becomes Feast rows: one micro-batch at a time.

This is the page to read first. A stored probe is the record from which all else can be rebuilt, so the pipeline keeps
only a position: the last probe that its state has seen. A batch's Feast rows are staged, which no reader sees. Then, in
one transaction that first makes sure that this process is still the writer, they are published, and position and state
are saved. So a writer that stalled, and was replaced, publishes nothing. A crash between publishing and saving repeats
the batch: its segment has the same name and replaces the first, and the online store takes no row that is older than
what it has. So a crash counts nothing twice and skips nothing.

A rebuild is a position too. Whoever is the writer then makes all features anew, beside those in use, and publishes them
in the same way; a crash leaves it to the next writer. Targets that share no host and no group are folded apart
(`rebuild.py`).
"""

from contextlib import closing

import numpy as np

from urlhealth.crawl.carried import REBUILD, CarriedStore
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.store import CrawlStore
from urlhealth.feast_stores.stores import FeatureStores
from urlhealth.features.advance import advance
from urlhealth.rebuild import Rebuild
from urlhealth.vocabulary import Clock

#: Verdicts that one step takes at most: bounds its memory and the time until its state is saved.
BATCH = 5_000


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
        """Take the next micro-batch, or make the rebuild that is due; returns how many verdicts it had, 0 for none.

        Raises:
            LeaseLost: another process has become the writer, or a rebuild was asked for; the position has not moved.
        """
        position = self._carried.position()
        if position == REBUILD:
            return self._rebuild()
        verdicts = self._probes.verdicts_after(position, limit=BATCH)
        if not len(verdicts):
            return 0
        carried = {
            "url": self._carried.load("url", np.unique(verdicts.target).tolist()),
            "host": self._carried.load("host", np.unique(verdicts.host).tolist()),
            "group": self._carried.load("group", np.unique(verdicts.group).tolist()),
        }
        advanced = advance(carried, verdicts, known_for_s=self._known_for_s, late_s=self._late_s)
        segment = f"{verdicts.probe_id[0]:016d}"
        with self._features.staged(advanced.rows, segment=segment, created_ms=self._clock()) as publish:
            self._carried.save(int(verdicts.probe_id[-1]), advanced.carried, lease=self._lease, publish=publish)
        self.late_total += advanced.late
        return len(verdicts)

    def request_rebuild(self) -> None:
        """Let the writer, whichever process that is, forget all features and fold the whole history anew.

        So verdicts that came too late find their place. Until it is done the features stay as they are.
        """
        self._carried.clear(lease=self._lease)

    def is_current(self) -> bool:
        """Whether every stored verdict is in the features."""
        position = self._carried.position()
        return position != REBUILD and not self._probes.count_verdicts_after(position)

    def _rebuild(self) -> int:
        """Fold every stored verdict; returns how many there were.

        What is carried is stored part by part, in transactions between which others write: as long as the position is
        REBUILD, nobody goes by it.
        """
        self._carried.forget(lease=self._lease)
        position = self._probes.last_verdict()
        count = 0
        with self._features.draft() as draft:
            rebuild = Rebuild(
                database_url=self._probes.database_url,
                settings=self._features.settings,
                draft=draft.name,
                until=position,
                known_for_s=self._known_for_s,
                late_s=self._late_s,
                created_ms=self._clock(),
            )
            with closing(rebuild.parts(self._probes)) as parts:
                for folded in parts:
                    self._carried.add(folded.carried, lease=self._lease)
                    count += folded.verdicts
            self._carried.save(position, {}, lease=self._lease, publish=draft.publish)
        return count
