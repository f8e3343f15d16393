"""The crawl's durable store, the same over every backend."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import pytest
import sqlalchemy as sa

from serving import schemas
from urlhealth.crawl import tasks
from urlhealth.crawl.database import writing
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.records import remember
from urlhealth.crawl.schema import probes, task_urls
from urlhealth.crawl.store import CrawlStore
from urlhealth.errors import InvalidCursor, InvalidRequest, InvalidUrls, KeyReused, LeaseLost, NotFound
from urlhealth.features.verdicts import Verdicts
from urlhealth.printing import result_json
from urlhealth.probing.urls import parse_target
from urlhealth.vocabulary import (
    DEFAULT_OPTIONS,
    LOCAL_OWNER,
    Attempt,
    CrawlTask,
    Outcome,
    Page,
    Probed,
    ProbeOptions,
    ProbeRequest,
    ProbeResult,
    ProbeSource,
    Target,
    TaskResult,
    TaskStatus,
)

T0 = 1_800_000_000_000
A, B, C = (f"https://{name}.example.com/" for name in "abc")

#: Every field has a value of its own, beyond 32 bits where that may be.
FULL = ProbeResult(
    target=A,
    ts_ms=T0,
    outcome=Outcome.HTTP_ERROR,
    status_code=503,
    dns_ms=1.5,
    connect_ms=2.5,
    tls_ms=3.5,
    first_byte_ms=4.5,
    total_ms=12.25,
    size_bytes=3_000_000_000,
    redirects=2,
    final_url="https://a.example.com/end",
    address="2001:db8::1",
    http_version="2",
    cert_expires_ms=T0 + 86_400_000,
    error="the server answered 503",
    attempts=(
        Attempt(ts_ms=T0 - 9, outcome=Outcome.TIMEOUT, dns_ms=0.5, error="no answer"),
        Attempt(ts_ms=T0, outcome=Outcome.HTTP_ERROR, status_code=503, total_ms=12.25),
    ),
)

Item = TypeVar("Item")


class HandClock(Protocol):
    now_ms: int

    def __call__(self) -> int: ...


class NumberingStore(CrawlStore):
    """Numbers the targets of what is filed, as the runner does, who has read them from the store."""

    def file_results(self, results: Sequence[Probed], *, worker: str, lease: Lease) -> int:
        numbered = []
        with writing(self._engine) as connection:
            for p in results:
                ((_, number),) = remember(connection, p.request.owner, [p.request.target], now_ms=T0).items()
                numbered.append(replace(p, request=replace(p.request, target_id=number)))
        return super().file_results(numbered, worker=worker, lease=lease)


@pytest.fixture
def store(engine: sa.Engine, clock: HandClock) -> CrawlStore:
    return NumberingStore(engine, clock=clock)


def probed(
    result: ProbeResult,
    *,
    task: CrawlTask | None = None,
    monitor_id: str | None = None,
    options: ProbeOptions = DEFAULT_OPTIONS,
) -> Probed:
    task_id = task.task_id if task else None
    request = ProbeRequest(
        target=parse_target(result.target),
        options=options,
        owner=task.owner if task else LOCAL_OWNER,
        task_id=task_id,
        monitor_id=monitor_id,
    )
    return Probed(request=request, result=result)


def result(url: str, ts_ms: int = T0, outcome: Outcome = Outcome.OK) -> ProbeResult:
    return ProbeResult(target=url, ts_ms=ts_ms, outcome=outcome)


def history(url: str, *times_ms: int) -> list[tuple[Target, ProbeResult]]:
    return [(parse_target(url), result(url, ts_ms)) for ts_ms in times_ms]


def walk(read: Callable[[str | None], Page[Item]]) -> list[Item]:
    """The items of all pages."""
    page = read(None)
    items = list(page.items)
    while page.next_cursor:
        page = read(page.next_cursor)
        items += page.items
    return items


def probe_count(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(probes)) or 0


class TestTasks:
    def test_a_new_task_is_read_back_as_it_was_returned(self, store: CrawlStore) -> None:
        options = ProbeOptions(timeout_s=2.5, verify_tls=False)
        task = store.create_task([A, B, A], options=options, owner="ann")
        assert store.task(task.task_id, owner="ann") == task
        assert (task.status, task.total, task.done, task.created_ms) == (TaskStatus.QUEUED, 3, 0, T0)
        assert task.options == options

    def test_each_url_is_listed_as_it_was_sent(self, store: CrawlStore) -> None:
        sent = ["HTTPS://A.example.com", A, f"{B}#there"]
        task = store.create_task(sent)
        items = store.task_results(task.task_id, limit=10).items
        assert [(item.position, item.sent_url, item.result) for item in items] == [
            (i, url, None) for i, url in enumerate(sent)
        ]

    def test_nothing_is_stored_when_a_url_is_wrong(self, store: CrawlStore) -> None:
        with pytest.raises(InvalidUrls) as caught:
            store.create_task([A, "nonsense", B, "ftp://c.example.com/"])
        assert sorted(caught.value.problems) == [1, 3]
        assert store.tasks(limit=10).items == []
        assert store.find_targets([A, B]) == {}

    def test_an_empty_list_is_refused(self, store: CrawlStore) -> None:
        with pytest.raises(InvalidRequest, match="empty"):
            store.create_task([])

    def test_a_task_is_made_of_an_iterator_and_seen_when_it_is_complete(
        self, store: CrawlStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tasks, "CHUNK", 2)
        seen: list[int] = []

        def urls() -> Iterator[str]:
            for i in range(5):
                seen.append(len(store.tasks(limit=10).items) + len(store.open_tasks(limit=10)))
                yield f"https://u{i % 4}.example.com/"

        task = store.create_task(urls())
        assert (task.total, seen) == (5, [0] * 5)
        assert store.task(task.task_id) == task
        assert [item.sent_url[8:10] for item in store.iter_results(task.task_id)] == ["u0", "u1", "u2", "u3", "u0"]
        assert len(store.waiting_targets(1, after=0, limit=10)) == 4

    @pytest.mark.parametrize(
        ("last", "error"), [(ConnectionResetError("gone"), ConnectionResetError), ("nonsense", InvalidUrls)]
    )
    def test_a_task_that_breaks_off_is_gone(
        self,
        store: CrawlStore,
        engine: sa.Engine,
        monkeypatch: pytest.MonkeyPatch,
        last: Any,
        error: type[Exception],
    ) -> None:
        monkeypatch.setattr(tasks, "CHUNK", 2)

        def urls() -> Iterator[str]:
            yield from (A, B, C)
            if isinstance(last, Exception):
                raise last
            yield last

        with pytest.raises(error) as caught:
            store.create_task(urls())
        if isinstance(caught.value, InvalidUrls):
            assert list(caught.value.problems) == [3]
        with engine.connect() as connection:
            assert connection.scalar(sa.select(sa.func.count()).select_from(task_urls)) == 0

    def test_a_task_whose_sender_was_killed_is_gone_in_the_end(
        self, store: CrawlStore, clock: HandClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tasks, "CHUNK", 2)

        def urls() -> Iterator[str]:
            yield from (A, B, C, A)
            store.drop_broken_off()
            yield B
            clock.now_ms += tasks.BROKEN_OFF_MS + 1
            store.drop_broken_off()  # as another process does, which takes this one for dead
            yield from (A, B)

        with pytest.raises(InvalidRequest, match="send the task again"):
            store.create_task(urls())

    def test_the_same_key_and_urls_make_one_task(self, store: CrawlStore) -> None:
        first = store.create_task([A, B], idempotency_key="k")
        cancelled = store.cancel_task(first.task_id)
        assert store.create_task(iter([A, B]), idempotency_key="k") == cancelled
        assert store.create_task([A, B], idempotency_key="k", owner="ann").task_id != first.task_id
        for urls, options in (([A], DEFAULT_OPTIONS), ([A, B], ProbeOptions(timeout_s=1))):
            with pytest.raises(KeyReused, match=first.task_id):
                store.create_task(urls, options=options, idempotency_key="k")
        assert len(store.tasks(limit=10).items) == 1
        store.delete_task(first.task_id)
        assert store.create_task([A], idempotency_key="k").task_id != first.task_id

    def test_of_two_at_once_with_one_key_the_later_one_gets_the_task_of_the_earlier(self, store: CrawlStore) -> None:
        made: list[CrawlTask] = []

        def urls() -> Iterator[str]:
            yield A
            if not made:
                made.append(store.create_task([A], idempotency_key="k"))

        assert store.create_task(urls(), idempotency_key="k") == made[0]
        assert store.tasks(limit=10).items == made

    def test_an_event_says_what_is_new(self, store: CrawlStore, lease: Lease) -> None:
        task = store.create_task([A])
        queued = store.task_event(task.task_id)
        assert queued is not None
        assert queued.task == task
        assert store.task_event(task.task_id, after=queued.event_id) is None
        store.file_results([probed(result(A), task=task)], worker="w", lease=lease)
        done = store.task_event(task.task_id, after=queued.event_id)
        assert done is not None
        assert done.task == store.task(task.task_id)

    def test_results_are_read_as_they_come(
        self, store: CrawlStore, lease: Lease, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tasks, "_PAGE", 2)
        store.import_probes(history(A, T0 - 1))
        before = store.last_probe_id()
        task, other = store.create_task([A, B, "https://A.example.com", C]), store.create_task([A])
        assert store.answered(task.task_id, after=before) == []
        for batch in ([result(B), FULL], [result(C)]):
            store.file_results([probed(r, task=t) for r in batch for t in (other, task)], worker="w", lease=lease)
        rows: list[tasks.Answered] = []
        while some := store.answered(task.task_id, after=rows[-1].probe_id if rows else before):
            rows += some
        assert [row.position for row in rows] == [1, 0, 2, 3]
        assert [row.sent_url for row in rows] == [B, A, "https://A.example.com", C]
        full = TaskResult(position=0, sent_url=A, result=FULL)
        assert json.loads(result_json(rows[1])) == schemas.TaskResult.of(full).model_dump(mode="json")
        assert list(json.loads(result_json(rows[0]))) == list(schemas.TaskResult.model_fields)

    def test_tasks_of_other_owners_are_not_found(self, store: CrawlStore) -> None:
        task = store.create_task([A], owner="ann")
        for call in (store.task, store.cancel_task, store.delete_task):
            with pytest.raises(NotFound, match=task.task_id):
                call(task.task_id, owner="bob")
        with pytest.raises(NotFound):
            store.task_results(task.task_id, limit=1, owner="bob")
        assert store.tasks(limit=10, owner="bob").items == []
        assert store.results_of([task.task_id], limit=10, owner="bob") == {}

    def test_pages_have_no_gaps_and_no_doubles_while_tasks_are_added(self, store: CrawlStore) -> None:
        before = [store.create_task([A]).task_id for _ in range(7)]

        def read(cursor: str | None) -> Page[CrawlTask]:
            page = store.tasks(limit=2, cursor=cursor)
            store.create_task([B])
            return page

        assert [task.task_id for task in walk(read)] == before[::-1]

    def test_results_are_paged_in_the_order_sent(self, store: CrawlStore) -> None:
        task = store.create_task([A, B, C, A, B])
        items = walk(lambda cursor: store.task_results(task.task_id, limit=2, cursor=cursor))
        assert [item.position for item in items] == [0, 1, 2, 3, 4]

    def test_a_page_that_ends_with_the_list_has_no_cursor(self, store: CrawlStore) -> None:
        store.create_task([A])
        store.create_task([A])
        assert store.tasks(limit=2).next_cursor is None

    @pytest.mark.parametrize(
        "cursor", ["", "x", "dGFza3M6", "dGFza3M6LTE=", "é", "dGFza3M6OTk5OTk5OTk5OTk5OTk5OTk5OTk5"]
    )
    def test_a_cursor_of_nobody_is_refused(self, store: CrawlStore, cursor: str) -> None:
        with pytest.raises(InvalidCursor):
            store.tasks(limit=1, cursor=cursor)

    def test_a_cursor_of_another_list_is_refused(self, store: CrawlStore) -> None:
        for _ in range(2):
            task = store.create_task([A, B])
        other = store.task_results(task.task_id, limit=1).next_cursor
        with pytest.raises(InvalidCursor):
            store.tasks(limit=1, cursor=other)

    def test_a_deleted_task_is_gone_and_its_probes_stay(
        self, store: CrawlStore, lease: Lease, engine: sa.Engine
    ) -> None:
        task, other = store.create_task([A, B]), store.create_task([A])
        store.file_results([probed(result(A), task=task)], worker="w", lease=lease)
        store.delete_task(task.task_id)
        with pytest.raises(NotFound):
            store.task(task.task_id)
        assert [t.task_id for t in store.tasks(limit=10).items] == [other.task_id]
        assert [t.task_id for t in store.open_tasks(limit=10)] == [other.task_id]
        assert probe_count(engine) == 1


class TestFiling:
    def test_every_field_of_a_result_is_kept(self, store: CrawlStore, lease: Lease) -> None:
        assert None not in [getattr(FULL, f.name) for f in fields(FULL)]
        task = store.create_task([A])
        store.file_results([probed(FULL, task=task)], worker="w", lease=lease)
        assert store.task_results(task.task_id, limit=1).items[0].result == FULL

    def test_text_that_no_database_takes_does_not_stop_the_filing(self, store: CrawlStore, lease: Lease) -> None:
        task = store.create_task([A])
        odd = replace(FULL, error="the server said \udcff\0", final_url=f"{A}\udc80")
        store.file_results([probed(odd, task=task)], worker="w", lease=lease)
        stored = store.task_results(task.task_id, limit=1).items[0].result
        assert stored == replace(FULL, error="the server said ??", final_url=f"{A}?")

    def test_one_probe_answers_every_url_that_means_the_target(
        self, store: CrawlStore, lease: Lease, engine: sa.Engine
    ) -> None:
        task = store.create_task([A, B, "https://A.EXAMPLE.com", A])
        assert [target.key for _, target in store.waiting_targets(1, after=0, limit=10)] == [A, B]
        store.file_results([probed(result(A), task=task)], worker="w", lease=lease)
        answered = [item.result is not None for item in store.task_results(task.task_id, limit=10).items]
        assert answered == [True, False, True, True]
        assert (store.task(task.task_id).done, probe_count(engine)) == (3, 1)
        assert [target.key for _, target in store.waiting_targets(1, after=0, limit=10)] == [B]

    def test_counters_and_status_follow_the_results(self, store: CrawlStore, lease: Lease, clock: HandClock) -> None:
        task = store.create_task([A, B, C])
        clock.now_ms += 1
        store.start_tasks([store.open_tasks(limit=1)[0].number], lease=lease)
        running = store.task(task.task_id)
        assert (running.status, running.started_ms, running.finished_ms) == (TaskStatus.RUNNING, T0 + 1, None)
        store.file_results([probed(result(A), task=task)], worker="w2", lease=lease)
        clock.now_ms += 1
        last = [probed(result(B), task=task), probed(result(C, outcome=Outcome.DNS), task=task)]
        store.file_results(last, worker="w1", lease=lease)
        done = store.task(task.task_id)
        assert (done.status, done.done, done.finished_ms) == (TaskStatus.DONE, 3, T0 + 2)
        assert (done.outcomes, done.workers) == ({"ok": 2, "dns": 1}, ("w1", "w2"))
        assert store.open_tasks(limit=10) == []
        assert store.tasks(status=TaskStatus.DONE, limit=10).items == [done]
        assert store.tasks(status=TaskStatus.RUNNING, limit=10).items == []

    def test_filing_again_changes_nothing(self, store: CrawlStore, lease: Lease, engine: sa.Engine) -> None:
        task = store.create_task([A, B])
        monitor = store.create_monitor(C, interval_s=60)
        batch = [probed(FULL, task=task), probed(result(C), monitor_id=monitor.monitor_id)]
        store.file_results(batch, worker="w", lease=lease)
        after_first = store.task(task.task_id)
        second = probed(replace(FULL, ts_ms=T0 + 1, outcome=Outcome.OK), task=task)
        store.file_results([*batch, second, second], worker="other", lease=lease)
        assert store.task(task.task_id) == after_first
        assert store.task_results(task.task_id, limit=1).items[0].result == FULL
        assert probe_count(engine) == 2

    def test_two_tasks_each_get_a_result_of_their_own(self, store: CrawlStore, lease: Lease) -> None:
        strict, lax = store.create_task([A]), store.create_task([A], options=ProbeOptions(verify_tls=False))
        bad = probed(result(A, outcome=Outcome.TLS), task=strict)
        good = probed(result(A), task=lax, options=lax.options)
        store.file_results([bad, good], worker="w", lease=lease)
        assert store.task(strict.task_id).outcomes == {"tls": 1}
        assert store.task(lax.task_id).outcomes == {"ok": 1}

    def test_a_cancelled_task_keeps_its_status_and_the_results_of_probes_that_were_made(
        self, store: CrawlStore, lease: Lease, clock: HandClock
    ) -> None:
        task = store.create_task([A, B])
        store.file_results([probed(result(A), task=task)], worker="w", lease=lease)
        cancelled = store.cancel_task(task.task_id)
        assert (cancelled.status, cancelled.done, cancelled.finished_ms) == (TaskStatus.CANCELLED, 1, T0)
        clock.now_ms += 1
        assert store.cancel_task(task.task_id) == cancelled == store.task(task.task_id)
        assert store.open_tasks(limit=10) == []
        store.file_results([probed(result(B), task=task)], worker="w", lease=lease)
        assert store.task(task.task_id) == replace(cancelled, done=2, outcomes={"ok": 2})

    def test_a_done_task_cannot_be_cancelled(self, store: CrawlStore, lease: Lease) -> None:
        task = store.create_task([A])
        store.file_results([probed(result(A), task=task)], worker="w", lease=lease)
        assert store.cancel_task(task.task_id).status is TaskStatus.DONE

    def test_the_late_result_of_a_deleted_task_is_its_owners(self, store: CrawlStore, lease: Lease) -> None:
        task = store.create_task([A], owner="ann")
        store.delete_task(task.task_id, owner="ann")
        store.file_results([probed(result(A), task=task)], worker="w", lease=lease)
        assert store.targets(limit=10).items == []
        assert store.count_verdicts_after(0) == 1

    def test_results_for_what_was_deleted_become_history(self, store: CrawlStore, lease: Lease) -> None:
        task, monitor = store.create_task([A]), store.create_monitor(B, interval_s=60)
        store.delete_task(task.task_id)
        store.delete_monitor(monitor.monitor_id)
        batch = [probed(result(A), task=task), probed(result(B), monitor_id=monitor.monitor_id)]
        assert store.file_results(batch, worker="w", lease=lease) == 2
        assert store.verdicts_after(0, limit=10).target.tolist() == [A, B]

    def test_who_lost_the_lease_writes_nothing(
        self, store: CrawlStore, lease: Lease, engine: sa.Engine, clock: HandClock
    ) -> None:
        task = store.create_task([A])
        store.create_monitor(B, interval_s=10)
        clock.now_ms += 20_000
        assert Lease(engine, holder="other", ttl_s=10, clock=clock).acquire()
        calls: list[Callable[[], Any]] = [
            lambda: store.file_results([probed(result(A), task=task)], worker="w", lease=lease),
            lambda: store.start_tasks([1], lease=lease),
            lambda: store.take_due_monitors(10, lease=lease),
        ]
        for call in calls:
            with pytest.raises(LeaseLost, match="other"):
                call()
        assert store.task(task.task_id) == task
        assert probe_count(engine) == 0
        assert store.monitors(limit=1).items[0].next_due_ms < clock.now_ms

    def test_results_of_several_tasks_stop_at_the_limit(self, store: CrawlStore, lease: Lease) -> None:
        first, second, third = store.create_task([A, B]), store.create_task([C, A, B]), store.create_task([A])
        store.file_results([probed(FULL, task=first)], worker="w", lease=lease)
        ids = [second.task_id, "unknown", first.task_id, third.task_id]
        found = store.results_of(ids, limit=4)
        assert {key: [item.sent_url for item in items] for key, items in found.items()} == {
            second.task_id: [C, A, B],
            first.task_id: [A],
            third.task_id: [],
        }
        assert list(found) == [second.task_id, first.task_id, third.task_id]
        assert found[first.task_id][0].result == FULL
        assert store.results_of(ids, limit=100)[third.task_id][0].sent_url == A


class TestHistory:
    def test_imported_probes_are_verdicts_in_the_order_stored(self, store: CrawlStore) -> None:
        assert store.import_probes([*history(B, T0, T0 - 5), *history(A, T0 - 9)]) == 3
        verdicts = store.verdicts_after(0, limit=2)
        assert verdicts.target.tolist() == [B, B]
        rest = store.verdicts_after(int(verdicts.probe_id[-1]), limit=2)
        assert (rest.target.tolist(), rest.ts_ms.tolist()) == ([A], [T0 - 9])
        assert store.count_verdicts_after(int(verdicts.probe_id[0])) == 2

    def test_importing_again_adds_nothing(self, store: CrawlStore, engine: sa.Engine) -> None:
        store.import_probes(history(A, T0, T0 + 1))
        assert store.import_probes(history(A, T0, T0 + 1, T0 + 2)) == 1
        assert probe_count(engine) == 3

    def test_verdicts_hold_what_was_found(self, store: CrawlStore) -> None:
        bare = replace(result(B, outcome=Outcome.BLOCKED), http_version="HTTP/2")  # as some history has it
        store.import_probes([(parse_target(A, group="acme"), FULL), (parse_target(B), bare)])
        verdicts = store.verdicts_after(0, limit=10)
        assert verdicts.group.tolist() == ["acme", "example.com"]
        assert verdicts.host.tolist() == ["a.example.com", "b.example.com"]
        assert verdicts.health.tolist() == [0, -1]
        assert verdicts.outcome.tolist() == [Outcome.HTTP_ERROR.code, Outcome.BLOCKED.code]
        assert verdicts.status_code.tolist() == [503, 0]
        assert verdicts.size_bytes.tolist() == [3_000_000_000, 0]
        assert verdicts.http_version.tolist() == [20, 0]
        assert verdicts.cert_expires_ms.tolist() == [T0 + 86_400_000, 0]
        for name in ("dns_ms", "connect_ms", "tls_ms", "first_byte_ms", "total_ms"):
            measured, absent = getattr(verdicts, name)
            assert measured == getattr(FULL, name)
            assert np.isnan(absent)
        dtypes = {f.name: getattr(verdicts, f.name).dtype.name for f in fields(Verdicts)}
        assert dtypes["probe_id"] == dtypes["ts_ms"] == dtypes["size_bytes"] == dtypes["cert_expires_ms"] == "int64"
        assert (dtypes["health"], dtypes["outcome"], dtypes["total_ms"]) == ("int8", "int32", "float32")

    def test_no_verdicts_are_arrays_of_length_zero(self, store: CrawlStore) -> None:
        assert len(store.verdicts_after(0, limit=10)) == 0

    def test_only_default_options_and_named_targets_feed_features(self, store: CrawlStore, lease: Lease) -> None:
        lax = ProbeOptions(verify_tls=False)
        named = parse_target(C, name="lax")
        request = ProbeRequest(target=named, options=lax)
        batch = [
            probed(result(A), options=lax),
            probed(result(B)),
            Probed(request=request, result=result(named.key)),
        ]
        store.file_results(batch, worker="w", lease=lease)
        assert store.verdicts_after(0, limit=10).target.tolist() == [B, f"{C}#lax"]
        assert store.count_verdicts_after(0) == 2
        assert store.find_targets([named.key]) == {named.key: named}

    def test_targets_with_a_simulated_past_are_known_for_it(self, store: CrawlStore) -> None:
        store.import_probes(history(A, T0), source=ProbeSource.SIMULATED)
        store.import_probes(history(B, T0))
        store.import_probes(history(A, T0 + 1))
        assert store.simulated_targets([A, B, C]) == {A}

    def test_targets_are_found_and_paged_by_owner(self, store: CrawlStore) -> None:
        store.create_task([A, B, A, C])
        store.create_task([A], owner="ann")
        pages = walk(lambda cursor: store.targets(limit=2, cursor=cursor))
        assert pages == [parse_target(url) for url in (A, B, C)]
        assert store.find_targets([B, "https://never.seen/"]) == {B: parse_target(B)}
        assert store.find_targets([B], owner="ann") == {}

    def test_counts(self, store: CrawlStore, lease: Lease) -> None:
        store.create_task([A, B])
        store.file_results([probed(result(C))], worker="w", lease=lease)
        counts = store.counts()
        assert (counts["targets"], counts["probes"], counts["monitors"]) == (3, 1, 0)
        assert {status: counts[f"tasks_{status}"] for status in TaskStatus} == {
            "queued": 1,
            "running": 0,
            "done": 0,
            "cancelled": 0,
        }


def test_processes_that_write_at_once_wait_for_each_other(store: CrawlStore, database_url: str) -> None:
    program = """
import sys
from urlhealth.crawl.database import open_database
from urlhealth.crawl.store import CrawlStore
from urlhealth.printing import result_json
from urlhealth.probing.urls import parse_target
from urlhealth.vocabulary import Outcome, ProbeResult
store, name = CrawlStore(open_database(sys.argv[1])), sys.argv[2]
target = parse_target("https://a.example.com/")
for i in range(25):
    store.create_task([target.url, f"https://{name}{i}.example.com/"])
    result = ProbeResult(target=target.key, ts_ms=i, outcome=Outcome.OK)
    store.import_probes([(target, result)], owner=name)
"""
    command = [sys.executable, "-c", program, database_url]
    writers = [subprocess.Popen([*command, name], stderr=subprocess.PIPE, text=True) for name in ("x", "y", "z")]
    for i in range(25):
        store.create_task([A, f"https://here{i}.example.com/"])
    ended = [(writer.communicate(timeout=60)[1], writer.returncode) for writer in writers]
    assert ended == [("", 0)] * 3
    assert store.counts()["tasks_queued"] == 100
    assert len(store.targets(limit=1_000).items) == 101
    assert store.count_verdicts_after(0) == 75
