"""What was served, on its way to the database."""

import threading
from collections import deque
from typing import Final

from urlhealth.crawl.served import ServedBatch, ServedBatches
from urlhealth.errors import StoreUnavailable
from urlhealth.prediction.served_batch import pack
from urlhealth.vocabulary import Served

#: Predictions that may wait to be written: five seconds of all that a process can serve.
MAX_WAITING: Final = 1_000_000
#: Those in a batch, about.
BATCH: Final = 100_000


class PredictionLog:
    """Takes answers at once and writes them later, many in one row; what cannot be written now waits.

    Usable from any thread.
    """

    def __init__(self, store: ServedBatches, *, max_waiting: int = MAX_WAITING) -> None:
        """`max_waiting`: predictions that may wait; what comes when there are as many is counted and dropped."""
        self._store = store
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._answers: deque[Served] = deque()
        #: What is packed already, and could not be written.
        self._batches: list[ServedBatch] = []
        #: Predictions that wait.
        self.waiting = 0
        #: Predictions that were dropped since the start.
        self.dropped = 0

    def put(self, served: Served) -> None:
        """Take an answer; never waits for the database."""
        n = len(served.forecasts)
        with self._lock:
            if self.waiting + n > self._max_waiting:
                self.dropped += n
            else:
                self._answers.append(served)
                self.waiting += n

    def write(self) -> None:
        """Write what waits. All of it goes on waiting if the database fails; what it will not have is dropped.

        Raises:
            StoreUnavailable: the database failed.
        """
        with self._writing:
            self._pack()
            self._store_packed()

    def _pack(self) -> None:
        while answers := self._next():
            n = sum(len(served.forecasts) for served in answers)
            try:
                self._batches.append(pack(answers))
            except Exception:
                self._forget(n, dropped=True)
                raise

    def _store_packed(self) -> None:
        n = sum(batch.rows for batch in self._batches)
        try:
            self._store.add(self._batches)
        except StoreUnavailable:
            raise
        except Exception:
            self._batches.clear()
            self._forget(n, dropped=True)
            raise
        self._batches.clear()
        self._forget(n)

    def _next(self) -> list[Served]:
        """Take out the answers of the next batch."""
        answers: list[Served] = []
        rows = 0
        with self._lock:
            while self._answers and rows < BATCH:
                answers.append(self._answers.popleft())
                rows += len(answers[-1].forecasts)
        return answers

    def _forget(self, n: int, *, dropped: bool = False) -> None:
        with self._lock:
            self.waiting -= n
            self.dropped += n if dropped else 0
