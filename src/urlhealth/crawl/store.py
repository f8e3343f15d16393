"""The durable store of everything that the crawl knows, over SQLite or PostgreSQL."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Final

import sqlalchemy as sa

from urlhealth.crawl.database import writing
from urlhealth.crawl.history import History
from urlhealth.crawl.monitors import MonitorStore
from urlhealth.crawl.schema import predictions as prediction_log
from urlhealth.crawl.tasks import TaskStore
from urlhealth.crawl.work import WorkStore
from urlhealth.vocabulary import LOCAL_OWNER, Prediction

#: What of a prediction is logged under the same name.
_LOGGED: Final = tuple(f.name for f in fields(Prediction) if f.name in prediction_log.c)


class CrawlStore(TaskStore, History, MonitorStore, WorkStore):
    """Tasks, targets with their history, monitors, the runner's work, and the log of what was predicted.

    Usable from any thread, and from any number of processes on one database. Every change is on disk when its method
    returns.
    """

    def log_predictions(self, request_id: str, predictions: Sequence[Prediction], *, owner: str = LOCAL_OWNER) -> None:
        """Log what was served in answer to one request."""
        if not predictions:
            return
        said = {"owner": owner, "request_id": request_id, "ts_ms": self._clock()}
        # Enumerations by value: a driver may take the name otherwise.
        enums = ("status", "health")
        rows = [
            said
            | {name: getattr(prediction, name) for name in _LOGGED}
            | {name: getattr(prediction, name).value for name in enums}
            for prediction in predictions
        ]
        with writing(self._engine) as connection:
            connection.execute(sa.insert(prediction_log), rows)
