"""Keeps the dispatcher busy with what waits, and files what it finds: one turn after the other."""

import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from urlhealth.crawl.lease import Lease
from urlhealth.crawl.store import CrawlStore
from urlhealth.crawl.work import OpenTask
from urlhealth.errors import LeaseLost, StoreUnavailable
from urlhealth.vocabulary import Dispatcher, Probed, ProbeRequest, region_of

log = logging.getLogger(__name__)

#: Tasks that are served side by side; later ones wait until one of them is done.
MAX_OPEN_TASKS: Final = 1_000
#: Waiting targets of a task that are read at once.
FEED_PAGE: Final = 2_000
#: Results that are filed in one transaction, if so many are there before the turn is over.
BATCH: Final = 1_000

#: Slots of monitors that are handed out before their time. So a database that is busy does not make them late.
AHEAD_MS: Final = 2_000


@dataclass
class _Feed:
    """One open task's targets on their way to the dispatcher."""

    task: OpenTask
    #: Read from the database, not yet dispatched.
    ready: deque[ProbeRequest] = field(default_factory=deque)
    #: Ids of the targets that are dispatched and have no result yet.
    in_flight: set[int] = field(default_factory=set)
    #: Id of the last target that was read.
    after: int = 0
    #: Whether all targets that wait were read.
    read_all: bool = False


class CrawlRunner:
    """Dispatches targets of tasks and due monitors while this process holds the lease.

    What is under way is known only here, in memory; what waits is in the database. So a crash or a lost lease needs no
    repair: whoever runs next finds what has no result yet. Use from one thread.
    """

    def __init__(self, store: CrawlStore, lease: Lease, dispatcher: Dispatcher, *, poll_s: float = 0.05) -> None:
        """`poll_s`: time between two looks for new tasks, due monitors, and tasks that somebody has ended."""
        self._store = store
        self._lease = lease
        self._dispatcher = dispatcher
        #: By task id.
        self._feeds: dict[str, _Feed] = {}
        self._unfiled: list[Probed] = []
        #: Slots that nobody took, not counted yet.
        self._dropped: list[ProbeRequest] = []
        self._turn = 0
        self._poll_s = poll_s
        self._polled_s = -math.inf
        #: Whether targets of tasks wait because the dispatcher has no room for them.
        self.behind = False
        store.forget_slots()

    def step(self, timeout_s: float) -> int:
        """One turn: dispatch what waits, wait up to `timeout_s` for results, file them; returns how many were filed.

        The wait ends early when there are enough results for a transaction, or none is to come any more.

        Without the lease it drops what comes. After an error of the database, call it again: results that could not be
        filed are kept for the next turn.
        """
        if not self._lease.held:
            self._forget()
            self._dispatcher.results(timeout_s)
            return 0
        try:
            filed = self._file()  # left over from a turn that failed
            self._dispatch()
            self._unfiled += self._dispatcher.results(timeout_s, at_least=BATCH)
            self._dispatch()  # before the filing, so that the dispatcher does not run dry meanwhile
            self._dropped += self._dispatcher.dropped()
            if self._dropped:
                self._store.skip_slots(self._dropped, lease=self._lease)
                self._dropped.clear()
            return filed + self._file()
        except LeaseLost as error:
            log.warning("%s; the targets under way are left to the new writer", error)
            self._forget()
            return 0

    def _forget(self) -> None:
        if self._feeds:
            self._dispatcher.cancel(self._feeds.keys())
        self._feeds.clear()
        self._unfiled.clear()
        self._dropped.clear()
        self.behind = False
        self._store.forget_slots()

    def _file(self) -> int:
        if not self._unfiled:
            return 0
        filed = self._file_or_drop(self._unfiled)
        self._store.observe_slots(self._unfiled)
        for probed in self._unfiled:
            feed = self._feeds.get(probed.request.task_id or "")
            if feed is not None:
                feed.in_flight.discard(probed.request.target_id)
            if probed.request.due_ms is not None:
                first = probed.result.attempts[0] if probed.result.attempts else probed.result
                self._store.punctuality.began(first.ts_ms - probed.request.due_ms)
        self._unfiled.clear()
        return filed

    def _file_or_drop(self, results: Sequence[Probed]) -> int:
        """File results; one that the database will not have is dropped, so that it does not hold up the others."""
        try:
            return self._store.file_results(results, worker=self._dispatcher.worker_id, lease=self._lease)
        except (StoreUnavailable, LeaseLost):
            raise
        except Exception:
            if len(results) == 1:
                log.exception("dropped, because it cannot be stored: %r", results[0])
                return 0
            return sum(self._file_or_drop([probed]) for probed in results)

    def _dispatch(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._polled_s + self._poll_s:
            self._dispatch_monitors()
            self._refresh_feeds()
            self._polled_s = now_s
        room = self._dispatcher.capacity
        self.behind = bool(self._feeds) and room <= 0
        if not self._feeds or room <= 0:
            return
        # Each turn begins with another task, so that all get on even where there is room for few.
        self._turn += 1
        feeds = list(self._feeds.values())
        start = self._turn % len(feeds)
        taken = self._take_in_turn(feeds[start:] + feeds[:start], room)
        self.behind = len(taken) == room
        queued = {feed.task.number: feed for feed, _ in taken if feed.task.queued}
        if queued:
            self._store.start_tasks(sorted(queued), lease=self._lease)
        for feed in queued.values():
            feed.task = replace(feed.task, queued=False)
        if taken:
            self._dispatcher.submit([request for _, request in taken])
        for feed, request in taken:
            feed.in_flight.add(request.target_id)

    def _dispatch_monitors(self) -> None:
        due = self._store.take_due_monitors(self._dispatcher.capacity, lease=self._lease, ahead_ms=AHEAD_MS)
        if due:
            self._dispatcher.submit(
                [
                    ProbeRequest(
                        target=m.target,
                        target_id=target_id,
                        options=m.options,
                        owner=m.owner,
                        monitor_id=m.monitor_id,
                        due_ms=m.next_due_ms,
                        region=region_of(m.tags),
                    )
                    for target_id, m in due
                ]
            )

    def _refresh_feeds(self) -> None:
        """Add feeds for new tasks, drop those of tasks that are done, cancelled or deleted."""
        feeds = {}
        for task in self._store.open_tasks(limit=MAX_OPEN_TASKS):
            feed = feeds[task.task_id] = self._feeds.get(task.task_id) or _Feed(task)
            feed.task = task
            if feed.read_all and not feed.ready and not feed.in_flight:
                feed.after, feed.read_all = 0, False  # not done, nothing under way: a turn failed on the way
        gone = {task_id for task_id, feed in self._feeds.items() if task_id not in feeds and feed.in_flight}
        if gone:
            self._dispatcher.cancel(gone)
        self._feeds = feeds

    def _take_in_turn(self, feeds: Sequence[_Feed], room: int) -> list[tuple[_Feed, ProbeRequest]]:
        """Up to `room` requests, one of each task after the other."""
        taken: list[tuple[_Feed, ProbeRequest]] = []
        active = deque(feeds)
        while active and len(taken) < room:
            feed = active.popleft()
            self._fill(feed)
            if feed.ready:
                taken.append((feed, feed.ready.popleft()))
                active.append(feed)
        return taken

    def _fill(self, feed: _Feed) -> None:
        if feed.ready:
            return
        while not feed.ready and not feed.read_all:
            waiting = self._store.waiting_targets(feed.task.number, after=feed.after, limit=FEED_PAGE)
            feed.read_all = len(waiting) < FEED_PAGE
            if waiting:
                feed.after = waiting[-1][0]
            feed.ready.extend(
                ProbeRequest(
                    target=target,
                    target_id=target_id,
                    options=feed.task.options,
                    owner=feed.task.owner,
                    task_id=feed.task.task_id,
                )
                for target_id, target in waiting
                if target_id not in feed.in_flight
            )
