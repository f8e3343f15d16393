"""The runner's turns, with a dispatcher whose results the test lets through."""

from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from urlhealth.crawl.database import open_database
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.runner import FEED_PAGE, CrawlRunner
from urlhealth.crawl.store import CrawlStore
from urlhealth.errors import StoreUnavailable
from urlhealth.vocabulary import (
    AdaptiveSchedule,
    Outcome,
    Probed,
    ProbeOptions,
    ProbeRequest,
    ProbeResult,
    ProbeSource,
    TaskStatus,
)

T0 = 1_800_000_000_000


class HandClock:
    """A clock that the test moves."""

    now_ms = T0

    def __call__(self) -> int:
        return self.now_ms


class HandDispatcher:
    """Keeps what is submitted until the test finishes it."""

    worker_id = "worker-1"

    def __init__(self, clock: HandClock, *, room: int = 1_000) -> None:
        self.waiting: list[ProbeRequest] = []
        self.submitted: list[ProbeRequest] = []
        self._room = room
        self._clock = clock
        self._finished: list[Probed] = []
        self._dropped: list[ProbeRequest] = []

    @property
    def capacity(self) -> int:
        return self._room - len(self.waiting)

    def submit(self, requests: Sequence[ProbeRequest]) -> None:
        assert len(requests) <= self.capacity
        self.waiting += requests
        self.submitted += requests

    def results(self, timeout_s: float, *, at_least: int = 1) -> list[Probed]:
        assert at_least >= 1
        assert timeout_s == 0
        finished, self._finished = self._finished, []
        return finished

    def dropped(self) -> list[ProbeRequest]:
        dropped, self._dropped = self._dropped, []
        return dropped

    def cancel(self, task_ids: Set[str]) -> None:
        self.waiting = [request for request in self.waiting if request.task_id not in task_ids]

    def close(self) -> None:
        self.waiting.clear()

    def drop(self) -> None:
        """Let nobody take what waits."""
        self._dropped, self.waiting = self.waiting, []

    def finish(self, n: int | None = None) -> None:
        """Let the first `n` requests (or all) have their results."""
        done, self.waiting = self.waiting[:n], self.waiting[len(self.waiting[:n]) :]
        self._finished += [
            Probed(
                request=request,
                result=ProbeResult(target=request.target.key, ts_ms=self._clock(), outcome=Outcome.OK),
            )
            for request in done
        ]


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = open_database(f"sqlite:///{tmp_path / 'urlhealth.db'}")
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine: sa.Engine, clock: HandClock) -> CrawlStore:
    return CrawlStore(engine, clock=clock)


@pytest.fixture
def lease(engine: sa.Engine, clock: HandClock) -> Lease:
    lease = Lease(engine, holder="me", ttl_s=10, clock=clock)
    assert lease.acquire()
    return lease


@pytest.fixture
def dispatcher(clock: HandClock) -> HandDispatcher:
    return HandDispatcher(clock)


@pytest.fixture
def runner(store: CrawlStore, lease: Lease, dispatcher: HandDispatcher) -> CrawlRunner:
    return CrawlRunner(store, lease, dispatcher, poll_s=0)


def urls(name: str, n: int) -> list[str]:
    return [f"https://{name}{i}.example.com/" for i in range(n)]


def sent(dispatcher: HandDispatcher) -> list[str]:
    return [request.target.key for request in dispatcher.submitted]


def break_writes(engine: sa.Engine) -> Callable[[], None]:
    """Make every transaction that writes fail; returns what mends it."""

    def fail(connection: sa.Connection) -> None:
        if connection.get_execution_options().get("writes"):
            raise StoreUnavailable("the disk is full")

    sa.event.listen(engine, "begin", fail)
    return lambda: sa.event.remove(engine, "begin", fail)


def test_a_task_is_dispatched_once_and_done_when_all_is_filed(
    runner: CrawlRunner, store: CrawlStore, dispatcher: HandDispatcher
) -> None:
    options = ProbeOptions(timeout_s=1)
    task = store.create_task([*urls("a", 3), "https://a0.example.com"], options=options)
    assert [runner.step(0), runner.step(0)] == [0, 0]
    assert sent(dispatcher) == urls("a", 3)
    assert {request.options for request in dispatcher.submitted} == {options}
    assert store.task(task.task_id).status is TaskStatus.RUNNING
    dispatcher.finish(1)
    assert runner.step(0) == 1
    assert store.task(task.task_id).done == 2
    dispatcher.finish()
    assert runner.step(0) == 2
    done = store.task(task.task_id)
    assert (done.status, done.outcomes, done.workers) == (TaskStatus.DONE, {"ok": 4}, ("worker-1",))
    assert runner.step(0) == 0
    assert len(dispatcher.submitted) == 3


def test_more_than_there_is_room_for_waits_its_turn(store: CrawlStore, lease: Lease, clock: HandClock) -> None:
    dispatcher = HandDispatcher(clock, room=FEED_PAGE - 1)
    runner = CrawlRunner(store, lease, dispatcher, poll_s=0)
    n = 2 * FEED_PAGE + 3
    task = store.create_task(urls("a", n))
    filed = 0
    while filed < n:
        before = filed
        dispatcher.finish()
        filed += runner.step(0)
        assert filed > before or before == 0
    assert sorted(sent(dispatcher)) == sorted(urls("a", n))
    assert store.task(task.task_id).status is TaskStatus.DONE


def test_it_is_behind_while_targets_wait_for_room(store: CrawlStore, lease: Lease, clock: HandClock) -> None:
    dispatcher = HandDispatcher(clock, room=2)
    runner = CrawlRunner(store, lease, dispatcher, poll_s=0)
    assert not runner.behind
    store.create_task([f"http://a/{i}" for i in range(3)])
    runner.step(0)
    assert runner.behind
    dispatcher.finish(1)
    runner.step(0)
    dispatcher.finish(1)
    runner.step(0)
    assert not runner.behind


def test_a_small_task_does_not_wait_behind_a_huge_one(store: CrawlStore, lease: Lease, clock: HandClock) -> None:
    dispatcher = HandDispatcher(clock, room=6)
    runner = CrawlRunner(store, lease, dispatcher, poll_s=0)
    store.create_task(urls("huge", 600))
    runner.step(0)
    small = store.create_task(urls("small", 3))
    dispatcher.finish()
    runner.step(0)
    dispatcher.finish()
    runner.step(0)
    assert store.task(small.task_id).status is TaskStatus.DONE


def test_every_task_gets_on_where_there_is_room_for_one(store: CrawlStore, lease: Lease, clock: HandClock) -> None:
    dispatcher = HandDispatcher(clock, room=1)
    runner = CrawlRunner(store, lease, dispatcher, poll_s=0)
    tasks = [store.create_task(urls(name, 10)) for name in "abc"]
    for _ in range(12):
        runner.step(0)
        dispatcher.finish()
    assert all(store.task(task.task_id).done >= 3 for task in tasks)


def test_due_monitors_come_before_tasks(store: CrawlStore, lease: Lease, clock: HandClock) -> None:
    dispatcher = HandDispatcher(clock, room=2)
    runner = CrawlRunner(store, lease, dispatcher, poll_s=0)
    monitor = store.create_monitor("https://m.example.com/", interval_s=60)
    store.create_task(urls("a", 5))
    clock.now_ms = monitor.next_due_ms
    lease.acquire()
    runner.step(0)
    assert [request.monitor_id for request in dispatcher.submitted] == [monitor.monitor_id, None]
    dispatcher.finish()
    assert runner.step(0) == 2
    assert monitor.target.key in store.verdicts_after(0, limit=10).target
    assert [request.monitor_id for request in dispatcher.submitted[2:]] == [None, None]


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_slot_that_nobody_took_is_skipped_and_counted(
    adaptive: bool,
    runner: CrawlRunner,
    store: CrawlStore,
    lease: Lease,
    dispatcher: HandDispatcher,
    engine: sa.Engine,
    clock: HandClock,
) -> None:
    schedule = AdaptiveSchedule(budget_per_url_hour=1, min_interval_s=600, max_interval_s=3600) if adaptive else None
    monitor = store.create_monitor("https://m.example.com/", interval_s=None if adaptive else 600, schedule=schedule)
    for slots in (1, 2):
        clock.now_ms = store.monitor(monitor.monitor_id).next_due_ms
        assert lease.acquire()
        while len(dispatcher.submitted) < slots:
            runner.step(0)
            clock.now_ms += 100
        dispatcher.drop()
        mend = break_writes(engine)
        with pytest.raises(StoreUnavailable):
            runner.step(0)
        mend()
        runner.step(0)
        assert (store.monitor(monitor.monitor_id).skipped, store.punctuality.skipped) == (slots, slots)


def test_a_monitor_is_probed_in_its_way_and_its_lag_is_counted(
    runner: CrawlRunner, store: CrawlStore, lease: Lease, dispatcher: HandDispatcher, clock: HandClock
) -> None:
    options = ProbeOptions(timeout_s=3)
    monitor = store.create_monitor("https://m.example.com/", interval_s=60, name="login", options=options)
    clock.now_ms = monitor.next_due_ms + 7
    assert lease.acquire()
    runner.step(0)
    (request,) = dispatcher.submitted
    assert (request.target.key, request.options) == ("https://m.example.com/#login", options)
    assert (request.owner, request.due_ms) == (monitor.owner, monitor.next_due_ms)
    clock.now_ms += 23
    dispatcher.finish()
    assert store.punctuality.sum_s == 0
    assert runner.step(0) == 1
    assert (sum(store.punctuality.counts), store.punctuality.sum_s) == (1, 0.030)
    assert store.verdicts_after(0, limit=10).target.tolist() == [monitor.target.key]


@pytest.mark.parametrize("end", [CrawlStore.delete_task, CrawlStore.cancel_task])
def test_what_a_deleted_or_cancelled_task_waits_for_is_not_probed(
    store: CrawlStore, lease: Lease, clock: HandClock, end: Callable[[CrawlStore, str], object]
) -> None:
    dispatcher = HandDispatcher(clock, room=4)
    runner = CrawlRunner(store, lease, dispatcher, poll_s=0)
    task, other = store.create_task(urls("a", 10)), store.create_task(urls("b", 2))
    runner.step(0)
    dispatcher.finish(2)
    end(store, task.task_id)
    assert runner.step(0) == 2
    assert {request.task_id for request in dispatcher.waiting} == {other.task_id}
    dispatcher.finish()
    assert runner.step(0) == 1
    assert len(dispatcher.submitted) == 4
    assert store.count_verdicts_after(0) == 3


def test_a_result_that_cannot_be_stored_is_dropped_by_name_and_holds_up_no_other(
    runner: CrawlRunner,
    store: CrawlStore,
    dispatcher: HandDispatcher,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    task = store.create_task(urls("a", 3))
    runner.step(0)
    file_results = CrawlStore.file_results

    def refuse_one(self: CrawlStore, results: Sequence[Probed], **options: Any) -> int:
        if any(probed.result.target == urls("a", 3)[1] for probed in results):
            raise ValueError("an odd value")
        return file_results(self, results, **options)

    monkeypatch.setattr(CrawlStore, "file_results", refuse_one)
    dispatcher.finish()
    assert runner.step(0) == 2
    assert urls("a", 3)[1] in caplog.text
    assert [item.result is None for item in store.task_results(task.task_id, limit=3).items] == [False, True, False]


def test_without_the_lease_nothing_is_dispatched_or_filed(
    runner: CrawlRunner, store: CrawlStore, lease: Lease, dispatcher: HandDispatcher, clock: HandClock
) -> None:
    task = store.create_task(urls("a", 2))
    runner.step(0)
    clock.now_ms += 10_000
    dispatcher.finish(1)
    assert runner.step(0) == 0
    assert store.task(task.task_id).done == 0
    lease.acquire()
    runner.step(0)
    assert sent(dispatcher) == urls("a", 2) * 2
    dispatcher.finish()
    runner.step(0)
    assert store.task(task.task_id).outcomes == {"ok": 2}
    assert store.counts()["probes"] == 2


def test_who_is_overtaken_leaves_the_rest_to_the_new_writer(
    runner: CrawlRunner, store: CrawlStore, engine: sa.Engine, dispatcher: HandDispatcher, clock: HandClock
) -> None:
    task = store.create_task(urls("a", 2))
    runner.step(0)
    clock.now_ms += 10_000
    other = Lease(engine, holder="other", ttl_s=10, clock=clock)
    assert other.acquire()
    clock.now_ms -= 1  # as if this process had not noticed
    dispatcher.finish()
    assert runner.step(0) == 0
    clock.now_ms += 1
    successor = HandDispatcher(clock)
    new = CrawlRunner(store, other, successor, poll_s=0)
    new.step(0)
    assert sent(successor) == urls("a", 2)
    successor.finish()
    new.step(0)
    assert store.task(task.task_id).outcomes == {"ok": 2}


def test_after_a_crash_what_has_no_result_is_dispatched_again(
    runner: CrawlRunner, store: CrawlStore, lease: Lease, dispatcher: HandDispatcher, clock: HandClock
) -> None:
    task = store.create_task(urls("a", 4))
    runner.step(0)
    dispatcher.finish(2)
    runner.step(0)
    restarted = HandDispatcher(clock)
    CrawlRunner(store, lease, restarted, poll_s=0).step(0)
    assert sent(restarted) == urls("a", 4)[2:]
    assert store.task(task.task_id).done == 2


def test_results_are_kept_while_the_database_fails(
    runner: CrawlRunner, store: CrawlStore, engine: sa.Engine, dispatcher: HandDispatcher
) -> None:
    task = store.create_task(urls("a", 2))
    runner.step(0)
    dispatcher.finish()
    mend = break_writes(engine)
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            runner.step(0)
    mend()
    assert runner.step(0) == 2
    assert store.task(task.task_id).status is TaskStatus.DONE
    assert len(dispatcher.submitted) == 2


def test_a_failed_start_of_a_task_is_tried_again(
    runner: CrawlRunner, store: CrawlStore, engine: sa.Engine, dispatcher: HandDispatcher
) -> None:
    store.create_task(urls("a", 2))
    mend = break_writes(engine)
    with pytest.raises(StoreUnavailable):
        runner.step(0)
    mend()
    runner.step(0)
    assert sent(dispatcher) == urls("a", 2)


def test_probes_of_the_runner_are_called_crawled(
    runner: CrawlRunner, store: CrawlStore, dispatcher: HandDispatcher, engine: sa.Engine
) -> None:
    store.create_task(urls("a", 1))
    runner.step(0)
    dispatcher.finish()
    runner.step(0)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT source, task_number FROM probes").all() == [(ProbeSource.CRAWL, 1)]
