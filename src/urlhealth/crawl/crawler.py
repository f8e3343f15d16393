"""The crawl of this process: a runner on a dispatcher, both made anew when that fails."""

import logging
from collections.abc import Callable

from urlhealth.crawl.lease import Lease
from urlhealth.crawl.runner import CrawlRunner
from urlhealth.crawl.store import CrawlStore
from urlhealth.vocabulary import Dispatcher

log = logging.getLogger(__name__)


class Crawler:
    """Turns of a `CrawlRunner`. One thread calls `step`; the others may ask `failed` and `behind`."""

    def __init__(self, store: CrawlStore, lease: Lease, make_engine: Callable[[], Dispatcher]) -> None:
        """`make_engine` is called now, and whenever an engine has failed; what it raises is raised."""
        self._store = store
        self._lease = lease
        self._make_engine = make_engine
        self._engine = make_engine()
        self._runner = CrawlRunner(store, lease, self._engine)

    @property
    def failed(self) -> bool:
        """Whether the engine has failed and could not be replaced yet."""
        return self._engine.failed

    @property
    def behind(self) -> bool:
        """Whether targets of tasks wait because probing is as busy as it can be."""
        return self._runner.behind

    def step(self, timeout_s: float) -> None:
        """One turn (see :meth:`CrawlRunner.step`), with a new engine if the old one has failed.

        What was under way in the old one is dispatched again. As long as there is no new one, the lease is free for a
        process that can probe.
        """
        if self._engine.failed:
            try:
                engine = self._make_engine()
            except Exception:
                self._lease.release()
                raise
            self._engine.close()
            self._engine, self._runner = engine, CrawlRunner(self._store, self._lease, engine)
            log.warning("the probing engine was replaced")
        self._runner.step(timeout_s)

    def close(self) -> None:
        """Stop probing."""
        self._engine.close()
