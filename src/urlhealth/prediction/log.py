"""What was served, on its way to the database."""

import threading
from collections import deque
from collections.abc import Sequence
from typing import Final

from urlhealth.crawl.store import CrawlStore
from urlhealth.errors import StoreUnavailable
from urlhealth.vocabulary import Served

#: Predictions that may wait to be written.
MAX_WAITING: Final = 50_000


class PredictionLog:
    """Takes answers at once and writes them later, many in one transaction; what cannot be written now waits.

    `put` may be called from any thread, `write` from one at a time.
    """

    def __init__(self, store: CrawlStore, *, max_waiting: int = MAX_WAITING) -> None:
        """`max_waiting`: predictions that may wait; what comes when there are as many is counted and dropped."""
        self._store = store
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._answers: deque[Served] = deque()
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
        with self._lock:
            answers = list(self._answers)
        try:
            self._store.log_predictions(answers)
        except StoreUnavailable:
            raise
        except Exception:
            self.dropped += self._forget(answers)
            raise
        self._forget(answers)

    def _forget(self, answers: Sequence[Served]) -> int:
        """Take the first answers out; returns how many predictions they hold."""
        n = sum(len(served.forecasts) for served in answers)
        with self._lock:
            for _ in answers:
                self._answers.popleft()
            self.waiting -= n
        return n
