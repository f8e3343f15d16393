"""The log of what was served, in the offline store: Parquet by day, for Feast and for whatever reads Parquet.

`FeatureStore.write_logged_features` takes the folder as it is.
"""

import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from urlhealth.crawl.lease import Lease
from urlhealth.crawl.served import ServedBatches, WaitingBatch
from urlhealth.feast_stores import segments
from urlhealth.feast_stores.compaction import Compactor
from urlhealth.prediction.served_batch import KEY, TIMESTAMP, instant, unpack

if TYPE_CHECKING:
    import pyarrow as pa

#: Name of the dataset in the offline store.
DATASET: Final = "served_predictions"
#: Predictions in a file, about, at most; thus what is in memory while they are moved or merged.
ROWS: Final = 250_000
#: Size of a file that is merged from others, at most.
_MERGED_BYTES: Final = 64_000_000


class ServedFiles:
    """Moves batches from the database into the files, for the writer. Usable from any thread."""

    def __init__(self, batches: ServedBatches, folder: Path, *, lease: Lease) -> None:
        """`folder`: of the dataset."""
        self._batches = batches
        self._folder = folder
        self._lease = lease
        # Sorted by target, so that a reader finds one without the rest.
        self._compactor = Compactor({folder: (KEY, TIMESTAMP)}, merged_bytes=_MERGED_BYTES, merged_rows=ROWS)
        self._lock = threading.Lock()
        self._leftovers = True
        #: Target → until when it was erased: what another process logs late of it goes too.
        self._erased_us: dict[str, int] = {}

    def step(self) -> int:
        """Move the oldest batches, `ROWS` predictions or somewhat more if there are as many; returns how many.

        Raises:
            LeaseLost: another process is the writer; nothing was moved.
            StoreUnavailable: the folder cannot be written.
        """
        with self._lock:
            return self._step()

    def _step(self) -> int:
        import pyarrow as pa

        with self._batches.waiting() as waiting:
            batches: list[WaitingBatch] = []
            for batch in waiting.batches:
                if sum(each.rows for each in batches) >= ROWS:
                    break
                batches.append(batch)
            data = [waiting.data(batch) for batch in batches]
        if not batches:
            return 0
        # The same number if this is repeated after a crash: it replaces what was published then, whatever that was.
        number = waiting.position + 1
        if self._leftovers:
            segments.discard_staged(self._folder)
            newest = segments.newest_number(self._folder)
            if newest > number:  # the database was restored from a copy that is older than the files
                number = newest + 1
            self._leftovers = False
        name = f"{number:016d}"
        table = self._left(pa.concat_tables(map(unpack, data)), first_us=min(each.first_ms for each in batches) * 1000)
        staged = [segments.stage(self._folder, table.unify_dictionaries(), timestamp_column=TIMESTAMP, segment=name)]
        try:
            merged = self._compactor.stage(before=name)
            staged += [merged] if merged else []
            ids = [batch.id for batch in batches]
            with self._batches.moved(waiting.position, ids, segment=number, lease=self._lease):
                for part in staged:
                    part.publish()
        finally:
            for part in staged:
                part.discard()
        for part in staged:
            self._compactor.published(part.files.values())
        return sum(batch.rows for batch in batches)

    def _left(self, table: "pa.Table", *, first_us: int) -> "pa.Table":
        """The rows of batches, without those of targets that were erased since they were served."""
        import pyarrow as pa
        import pyarrow.compute as pc

        for key, until_us in self._erased_us.items():
            if first_us <= until_us:
                gone = (pc.field(KEY) == key) & (pc.field(TIMESTAMP) <= pa.scalar(until_us, instant()))
                table = table.filter(~gone)
        return table

    def erase(self, key: str, *, until_ms: int) -> int:
        """Delete what was served about a target up to an instant; returns how many predictions there were.

        Raises:
            LeaseLost: another process is the writer.
            StoreUnavailable: the folder cannot be read or written.
        """
        with self._lock:
            with self._batches.waiting() as waiting:
                left = sum(batch.rows for batch in waiting.batches)
            while left > 0:
                left -= self._step()
            self._erased_us[key] = until_ms * 1000
            return segments.erase(self._folder, {KEY: key}, timestamp_column=TIMESTAMP, until_us=until_ms * 1000)

    def drop_old(self, *, before_ms: int) -> None:
        """Delete the days that were over by then."""
        with self._lock:
            for day in segments.days_before(self._folder, before_ms * 1000):
                shutil.rmtree(day, ignore_errors=True)
