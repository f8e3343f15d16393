"""The durable store of everything that the crawl knows, over SQLite or PostgreSQL."""

from collections.abc import Iterable
from dataclasses import fields
from itertools import chain
from typing import Final

from urlhealth.crawl.bulk import Bulk
from urlhealth.crawl.database import chunks, run, writing
from urlhealth.crawl.erasing import Erasing
from urlhealth.crawl.history import History
from urlhealth.crawl.monitors import MonitorStore
from urlhealth.crawl.newest import NewestProbes
from urlhealth.crawl.pools import PoolReading
from urlhealth.crawl.reading import Reading
from urlhealth.crawl.retention import Retention
from urlhealth.crawl.schedule import Schedule
from urlhealth.crawl.schema import predictions as prediction_log
from urlhealth.crawl.tasks import TaskStore
from urlhealth.crawl.work import WorkStore
from urlhealth.vocabulary import Prediction, Served

#: What of a prediction is logged under the same name: all but its reasons.
_LOGGED: Final = tuple(f.name for f in fields(Prediction) if f.name in prediction_log.c)
_COLUMNS: Final = ("owner", "request_id", "ts_ms", *_LOGGED)
_INSERT: Final = f"INSERT INTO predictions ({', '.join(_COLUMNS)}) VALUES"
_ROW: Final = f"({', '.join('?' * len(_COLUMNS))})"
#: Rows of the log in one statement: with one each, the thread that answers requests would be interrupted for each.
_ROWS: Final = 250


class CrawlStore(
    TaskStore, History, Reading, NewestProbes, Erasing, Retention, Bulk, MonitorStore, PoolReading, Schedule, WorkStore
):
    """Tasks, targets with their history, monitors, the runner's work, and the log of what was predicted.

    Usable from any thread, and from any number of processes on one database. Every change is on disk when its method
    returns.
    """

    def log_predictions(self, served: Iterable[Served]) -> None:
        """Log what requests were answered with, in one transaction."""
        rows = [
            (answer.owner, answer.request_id, answer.ts_ms, *row)
            for answer in served
            for row in answer.forecasts.rows()
        ]
        if rows:
            with writing(self._engine) as connection:
                for some in chunks(rows, _ROWS):
                    values = ", ".join([_ROW] * len(some))
                    run(connection, f"{_INSERT} {values}", [tuple(chain.from_iterable(some))])
