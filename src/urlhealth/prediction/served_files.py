"""The log of what was served, copied into the offline store: Parquet by day, for Feast and for whatever reads Parquet.

Columns are named as Feast names those of logged features, where it has a name: so `write_logged_features` takes the
folder as it is. No request waits for this; the database's log is what figures are made of.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from urlhealth.crawl.lease import Lease
from urlhealth.crawl.served import ServedLog
from urlhealth.feast_stores import segments
from urlhealth.feast_stores.compaction import Compactor
from urlhealth.features.decay import DAY_MS
from urlhealth.vocabulary import Clock

#: Name of the dataset in the offline store.
DATASET: Final = "served_predictions"
#: When the request was answered (as Feast calls it), its day and its id.
TIMESTAMP: Final = "__log_timestamp"
DATE: Final = "__log_date"
REQUEST_ID: Final = "__request_id"
#: The target: the join key of Feast's entity.
KEY: Final = "url"
#: Predictions in a file at most; the time between two files, so that requests have the processor; and that between two
#: looks when there are no more.
ROWS: Final = 5_000
REST_MS: Final = 500
LOOK_MS: Final = 60_000
#: Age at which a prediction is copied: of those that several processes log at once, none may come after a later one.
SETTLED_MS: Final = 10_000

#: What has the same name in the log.
_SAME: Final = ("owner", "sent_url", "horizon", "probability", "probability_at_end", "status", "health", "age_s")
_MODEL: Final = ("model", "model_version")


class ServedFiles:
    """Copies, for the writer; one thread uses it."""

    def __init__(self, log: ServedLog, folder: Path, *, lease: Lease, clock: Clock) -> None:
        """`folder`: of the dataset."""
        self._log = log
        self._folder = folder
        self._lease = lease
        self._clock = clock
        self._compactor = Compactor({folder: (TIMESTAMP,)})
        self._look_ms = 0
        self._leftovers = True

    def step(self) -> int:
        """Copy the next predictions, if it is time; returns how many there were.

        Raises:
            LeaseLost: another process is the writer; nothing was copied.
            StoreUnavailable: the folder cannot be written.
        """
        now_ms = self._clock()
        if now_ms < self._look_ms:
            return 0
        position, rows = self._log.not_copied(before_ms=now_ms - SETTLED_MS, most=ROWS)
        self._look_ms = now_ms + (REST_MS if len(rows) == ROWS else LOOK_MS)
        if not rows:
            return 0
        if self._leftovers:
            segments.discard_staged(self._folder)
            self._leftovers = False
        # The same name if this is repeated after a crash: it replaces what was written then.
        name = f"{position + 1:016d}"
        staged = [segments.stage(self._folder, _table(rows), timestamp_column=TIMESTAMP, segment=name)]
        try:
            merged = self._compactor.stage(before=name)
            staged += [merged] if merged else []
            with self._log.copied(position, rows[-1].id, lease=self._lease):
                for part in staged:
                    part.publish()
        finally:
            for part in staged:
                part.discard()
        for part in staged:
            self._compactor.published(part.files.values())
        return len(rows)

    def erase(self, key: str, *, until_ms: int) -> int:
        """Delete what was served about a target up to an instant; returns how many predictions there were."""
        return segments.erase(self._folder, {KEY: key}, timestamp_column=TIMESTAMP, until_us=until_ms * 1000)


def _table(rows: Sequence[Any]) -> Any:
    """Rows of the log as a `pyarrow.Table`."""
    import pyarrow as pa

    columns = dict(zip(rows[0]._fields, zip(*rows, strict=True), strict=True))
    served_ms = np.array(columns["ts_ms"], np.int64)
    observed = pa.array(columns["observed_ms"], pa.timestamp("ms", tz="UTC"))
    types = {"probability": pa.float64(), "probability_at_end": pa.float64(), "age_s": pa.float64()}
    return pa.table(
        {
            KEY: pa.array(columns["target"], pa.string()),
            **{name: pa.array(columns[name], types.get(name, pa.string())) for name in (*_SAME, *_MODEL)},
            "observed_at": observed.cast(pa.timestamp("us", tz="UTC")),
            TIMESTAMP: pa.array(served_ms * 1000, pa.timestamp("us", tz="UTC")),
            DATE: pa.array((served_ms // DAY_MS).astype(np.int32), pa.int32()).cast(pa.date32()),
            REQUEST_ID: pa.array(columns["request_id"], pa.string()),
        }
    )
