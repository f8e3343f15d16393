"""All features made anew, part by part of the targets, in processes of their own where there are several parts.

Targets of different parts share no host and no group, so parts know nothing of each other. A process reads the verdicts
of its part by time, folds them batch by batch, and writes the states into the draft that will take the place of the
stores in use. What is carried of the part goes back to the writer.
"""

import gc
import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from typing import Final

from urlhealth.children import Child
from urlhealth.crawl.database import open_database
from urlhealth.crawl.history import PartTarget
from urlhealth.crawl.store import CrawlStore
from urlhealth.feast_stores.stores import FeatureStores
from urlhealth.features.advance import CarriedStates
from urlhealth.settings import Settings, quiet_third_parties

#: Targets that make a part, unless more belong together: what is carried of one takes 5 kB and more.
TARGETS: Final = 2_000
#: Verdicts folded at once: 2 kB each while they are.
BATCH: Final = 30_000


@dataclass(frozen=True, kw_only=True)
class Folded:
    """What became of a part."""

    verdicts: int
    #: By kind and key.
    carried: dict[str, dict[str, bytes]]


@dataclass(frozen=True, kw_only=True)
class Rebuild:
    """What a process needs to know to fold parts."""

    database_url: str
    settings: Settings
    #: Name of the draft of the feature stores.
    draft: str
    #: Id of the last probe to fold.
    until: int
    known_for_s: float
    late_s: float
    created_ms: int

    def parts(self, probes: CrawlStore) -> Generator[Folded, None, None]:
        """Fold all parts; memory is bounded by the parts under way, two for each core."""
        parts = enumerate(probes.parts(targets_a_part=TARGETS))
        first = list(islice(parts, 2))
        if len(first) < 2:
            for number, part in first:
                yield self.fold(number, part, probes, FeatureStores(self.settings))
            return
        processes = len(os.sched_getaffinity(0))
        children = [Child() for _ in range(processes)]
        idle = deque(children)  # as many as there are threads: one that has work finds one
        waiting: deque[Future[Folded]] = deque()

        def folded(number: int, part: list[PartTarget]) -> Folded:
            child = idle.pop()
            try:
                return child.call(_folded, self, number, part)
            finally:
                idle.append(child)

        threads = ThreadPoolExecutor(processes)
        try:
            for number, part in chain(first, parts):
                waiting.append(threads.submit(folded, number, part))
                if len(waiting) > 2 * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            for child in children:
                child.close()
            threads.shutdown()

    def fold(self, number: int, part: Sequence[PartTarget], probes: CrawlStore, features: FeatureStores) -> Folded:
        """Fold a part, its segments named by its number."""
        draft = features.draft_named(self.draft)
        carried = CarriedStates({}, known_for_s=self.known_for_s, late_s=self.late_s)
        count = 0
        for batch, verdicts in enumerate(probes.verdicts_of(part, until=self.until, limit=BATCH)):
            advanced, _ = carried.advance(verdicts)
            for rows in advanced:
                draft.write(rows, segment=f"rebuilt-{number:08d}-{batch:08d}", created_ms=self.created_ms)
            count += len(verdicts)
        for rows in carried.newest():
            draft.write_newest(rows, created_ms=self.created_ms)
        return Folded(verdicts=count, carried=carried.packed())


def _folded(rebuild: Rebuild, number: int, part: list[PartTarget]) -> Folded:
    """In a child."""
    gc.set_threshold(100_000)  # by default the thousands of rows at a time start it over and over
    quiet_third_parties()
    engine = open_database(rebuild.database_url)
    try:
        return rebuild.fold(number, part, CrawlStore(engine), FeatureStores(rebuild.settings))
    finally:
        engine.dispose()
