"""Monitors and their schedule, the same over every backend."""

from contextlib import suppress
from dataclasses import replace
from typing import Protocol

import numpy as np
import pytest
import sqlalchemy as sa

from urlhealth.crawl.lease import Lease
from urlhealth.crawl.monitors import MonitorChange, Selection, next_slot
from urlhealth.crawl.store import CrawlStore
from urlhealth.errors import Duplicate, InvalidRequest, LeaseLost, NotFound
from urlhealth.vocabulary import Maintenance, MonitorSpec, ProbeOptions

T0 = 1_800_000_000_000
A, B, C = (f"https://{name}.example.com/" for name in "abc")
MINUTE_MS = 60_000
DAY_MS = 86_400_000


class HandClock(Protocol):
    now_ms: int

    def __call__(self) -> int: ...


@pytest.fixture
def store(engine: sa.Engine, clock: HandClock) -> CrawlStore:
    return CrawlStore(engine, clock=clock)


def taken(store: CrawlStore, lease: Lease, limit: int = 100) -> list[str]:
    """The targets of what is due."""
    return [monitor.target.key for _, monitor in store.take_due_monitors(limit, lease=lease)]


def due_ms(store: CrawlStore) -> dict[str, int]:
    return {monitor.target.key: monitor.next_due_ms for monitor in store.iter_monitors()}


class TestRecords:
    def test_a_monitor_is_kept_as_it_was_wanted(self, store: CrawlStore) -> None:
        spec = MonitorSpec(
            url="https://A.example.com",
            interval_s=60,
            name="login # 2",
            group="acme",
            options=ProbeOptions(timeout_s=3, headers=(("Accept", "text/plain"),), expected_statuses=(200, 204)),
            tags=("b", "a"),
            paused=True,
            maintenance=(Maintenance(start_ms=T0, end_ms=T0 + 1, every_ms=DAY_MS), Maintenance(start_ms=1, end_ms=2)),
        )
        (monitor_id,) = store.create_monitors([spec])
        monitor = store.monitor(str(monitor_id))
        assert (monitor.target.key, monitor.target.group) == (f"{A}#login # 2", "acme")
        for field in ("interval_s", "options", "tags", "paused", "maintenance"):
            assert getattr(monitor, field) == getattr(spec, field)
        assert (monitor.created_ms, monitor.skipped) == (T0, 0)
        assert T0 < monitor.next_due_ms <= T0 + MINUTE_MS

    def test_each_of_many_has_its_answer(self, store: CrawlStore) -> None:
        first = store.create_monitor(A, interval_s=60)
        wrong = InvalidRequest("wrong before it came here")
        specs = [
            MonitorSpec(url="https://A.example.com", interval_s=30),
            MonitorSpec(url=B, interval_s=30),
            wrong,
            MonitorSpec(url="nonsense", interval_s=30),
            MonitorSpec(url=B, interval_s=60),
            MonitorSpec(url=B, interval_s=60, name="other"),
            MonitorSpec(url=C, interval_s=0),
        ]
        answers = list(store.create_monitors(specs))
        assert [type(answer) for answer in answers] == [
            Duplicate, str, InvalidRequest, InvalidRequest, Duplicate, str, InvalidRequest
        ]  # fmt: skip
        assert answers[0].monitor_id == first.monitor_id  # type: ignore[union-attr]
        assert answers[4].monitor_id == answers[1]  # type: ignore[union-attr]
        assert answers[2] is wrong
        assert [m.target.key for m in store.iter_monitors()] == [A, B, f"{B}#other"]

    def test_more_than_a_transaction_takes_are_stored_while_they_come(self, store: CrawlStore) -> None:
        n = 4_100
        answers = store.create_monitors(
            MonitorSpec(url=f"https://m{i}.example.com/", interval_s=60, tags=("x",) if i % 2 else ()) for i in range(n)
        )
        next(answers)
        assert 0 < store.counts()["monitors"] < n
        assert len(set(map(str, answers))) == n - 1
        assert store.change_monitors(Selection(tag="x"), {"paused": True}) == n / 2
        assert sum(monitor.paused for monitor in store.iter_monitors()) == n / 2
        assert store.delete_monitors(Selection(tag="x")) == n / 2
        assert store.counts()["monitors"] == n / 2

    def test_a_group_that_is_given_becomes_the_targets(self, store: CrawlStore) -> None:
        store.create_task([A, B])
        assert store.create_monitor(A, interval_s=60, group="acme").target.group == "acme"
        monitor = store.create_monitor(B, interval_s=60)
        assert monitor.target.group == "example.com"
        store.create_task([A])
        assert store.find_targets([A])[A].group == "acme"
        assert store.change_monitor(monitor.monitor_id, {"group": "else"}).target.group == "else"

    def test_a_second_monitor_of_one_target_is_refused(self, store: CrawlStore) -> None:
        monitor = store.create_monitor(A, interval_s=60)
        with pytest.raises(Duplicate, match=monitor.monitor_id):
            store.create_monitor("https://A.example.com", interval_s=30)
        store.create_monitor(A, interval_s=60, owner="ann")

    @pytest.mark.parametrize("interval_s", [-1, 0, 9, 10**9])
    def test_intervals_out_of_range_are_refused(self, store: CrawlStore, interval_s: int) -> None:
        with pytest.raises(InvalidRequest, match="interval_s"):
            store.create_monitor(A, interval_s=interval_s)
        monitor = store.create_monitor(B, interval_s=60)
        with pytest.raises(InvalidRequest, match="interval_s"):
            store.change_monitor(monitor.monitor_id, {"interval_s": interval_s})

    def test_monitors_are_paged_and_deleted_by_owner(self, store: CrawlStore) -> None:
        made = [store.create_monitor(url, interval_s=60) for url in (A, B, C)]
        page = store.monitors(limit=2)
        assert page.items + store.monitors(limit=2, cursor=page.next_cursor).items == made
        with pytest.raises(NotFound):
            store.delete_monitor(made[0].monitor_id, owner="ann")
        with pytest.raises(NotFound):
            store.change_monitor(made[0].monitor_id, {"paused": True}, owner="ann")
        assert store.delete_monitors(Selection(), owner="ann") == 0
        store.delete_monitor(made[0].monitor_id)
        assert store.monitors(limit=10).items == made[1:]

    def test_a_selection_is_what_all_of_it_holds_for(self, store: CrawlStore) -> None:
        a = store.create_monitor(A, interval_s=60, group="acme", tags=("prod", "Shop"))
        named = store.create_monitor(A, interval_s=60, name="n", tags=("prod",))
        b = store.create_monitor(B, interval_s=60, group="acme", tags=("shop_",))
        for selection, expected in [
            (Selection(), [a, named, b]),
            (Selection(tag="prod"), [a, named]),
            (Selection(tag="shop"), []),
            (Selection(tag="sho%"), []),
            (Selection(tag="shop_"), [b]),
            (Selection(group="acme"), [a, b]),
            (Selection(group="acme", tag="prod"), [a]),
            (Selection(url="https://A.example.com"), [a]),
            (Selection(url=A, name="n"), [named]),
            (Selection(ids=(b.monitor_id, a.monitor_id, "none")), [a, b]),
        ]:
            assert store.monitors(selection, limit=10).items == expected

    def test_a_change_leaves_alone_what_it_does_not_name(self, store: CrawlStore, clock: HandClock) -> None:
        old = store.create_monitor(A, interval_s=60, tags=("x",), options=ProbeOptions(timeout_s=3))
        assert store.change_monitor(old.monitor_id, {}) == old
        change: MonitorChange = {"tags": (), "options": ProbeOptions(), "paused": True}
        paused = store.change_monitor(old.monitor_id, change)
        assert paused == replace(old, tags=(), options=ProbeOptions(), paused=True)
        clock.now_ms += DAY_MS
        resumed = store.change_monitor(old.monitor_id, {"paused": False, "interval_s": 3600})
        assert resumed.next_due_ms == next_slot(A, 3600, clock.now_ms)


class TestSchedule:
    def test_a_monitor_is_due_once_a_slot(self, store: CrawlStore, lease: Lease, clock: HandClock) -> None:
        monitor = store.create_monitor(A, interval_s=60)
        clock.now_ms = monitor.next_due_ms - 1
        assert taken(store, lease) == []
        clock.now_ms += 1
        assert [m for _, m in store.take_due_monitors(10, lease=lease)] == [monitor]
        assert taken(store, lease) == []
        assert store.monitor(monitor.monitor_id) == replace(monitor, next_due_ms=monitor.next_due_ms + MINUTE_MS)

    def test_a_slot_is_handed_out_ahead_within_half_that_time(
        self, store: CrawlStore, lease: Lease, clock: HandClock
    ) -> None:
        monitor = store.create_monitor(A, interval_s=3600)
        store.take_due_monitors(0, lease=lease)  # the first look
        clock.now_ms = monitor.next_due_ms - 501
        assert store.take_due_monitors(10, lease=lease, ahead_ms=1000) == []
        clock.now_ms += 1
        assert [m for _, m in store.take_due_monitors(10, lease=lease, ahead_ms=1000)] == [monitor]
        clock.now_ms += 500
        assert taken(store, lease) == []
        assert due_ms(store) == {A: monitor.next_due_ms + 3_600_000}

    def test_missed_slots_are_skipped_and_counted(self, store: CrawlStore, lease: Lease, clock: HandClock) -> None:
        first_ms = store.create_monitor(A, interval_s=60).next_due_ms
        for now_ms, due, skipped, next_due_ms in [
            (first_ms + 6_000, [A], 0, first_ms + 60_000),  # late, but not too late
            (first_ms + 66_001, [], 1, first_ms + 120_000),
            (first_ms + 660_001, [A], 10, first_ms + 720_000),  # the last of them can still be kept
        ]:
            clock.now_ms = now_ms
            assert taken(store, lease) == due
            (monitor,) = store.iter_monitors()
            assert (monitor.skipped, monitor.next_due_ms) == (skipped, next_due_ms)
        assert store.punctuality.skipped == 10

    def test_after_a_pause_all_are_scheduled_at_once_and_few_are_due(
        self, store: CrawlStore, lease: Lease, clock: HandClock
    ) -> None:
        n = 500
        list(store.create_monitors(MonitorSpec(url=f"https://m{i}.example.com/", interval_s=600) for i in range(n)))
        before = due_ms(store)
        clock.now_ms += DAY_MS + 1
        assert len(taken(store, lease, limit=10)) == 10  # however little room there is
        after = due_ms(store)
        assert min(after.values()) > clock.now_ms - MINUTE_MS
        assert {(after[key] - before[key]) % 600_000 for key in before} == {0}
        assert 20 < len(taken(store, lease, limit=n)) < 90  # about a tenth

    def test_what_is_paused_is_not_due(self, store: CrawlStore, lease: Lease, clock: HandClock) -> None:
        monitor = store.create_monitor(A, interval_s=60, paused=True)
        clock.now_ms = monitor.next_due_ms
        assert taken(store, lease) == []
        resumed = store.change_monitor(monitor.monitor_id, {"paused": False})
        assert (resumed.next_due_ms, resumed.skipped) == (monitor.next_due_ms + MINUTE_MS, 0)

    def test_under_planned_maintenance_slots_pass_and_count_for_nothing(
        self, store: CrawlStore, lease: Lease, clock: HandClock
    ) -> None:
        window = Maintenance(start_ms=T0 - DAY_MS, end_ms=T0 - DAY_MS + 10 * MINUTE_MS, every_ms=DAY_MS)
        monitor = store.create_monitor(A, interval_s=60, maintenance=(window,))
        probed_at = []
        for minute in range(20):
            clock.now_ms = monitor.next_due_ms + minute * MINUTE_MS
            if taken(store, lease):
                probed_at.append(minute)
        assert probed_at == list(range(10, 20))
        assert store.monitor(monitor.monitor_id).skipped == 0

    @pytest.mark.parametrize("restarted", [False, True])
    def test_a_clock_that_jumps_ahead_and_back_delays_no_monitor_and_bunches_none(
        self, store: CrawlStore, lease: Lease, engine: sa.Engine, clock: HandClock, restarted: bool
    ) -> None:
        n = 200
        list(store.create_monitors(MonitorSpec(url=f"https://m{i}.example.com/", interval_s=600) for i in range(n)))
        before = due_ms(store)
        clock.now_ms += DAY_MS
        taken(store, lease, limit=n)
        clock.now_ms -= DAY_MS
        if restarted:
            store = CrawlStore(engine, clock=clock)
        assert len(taken(store, lease, limit=n)) == 0
        assert due_ms(store) == before

    def test_a_clock_that_is_set_back_a_little_repeats_no_slot(
        self, store: CrawlStore, lease: Lease, clock: HandClock
    ) -> None:
        monitor = store.create_monitor(A, interval_s=60)
        clock.now_ms = monitor.next_due_ms
        assert taken(store, lease) == [A]
        clock.now_ms -= 50_000
        for _ in range(12):
            assert taken(store, lease) == []
            clock.now_ms += 9_000
        assert clock.now_ms < monitor.next_due_ms + MINUTE_MS
        clock.now_ms = monitor.next_due_ms + MINUTE_MS
        assert taken(store, lease) == [A]

    def test_the_longest_due_come_first_up_to_the_limit(
        self, store: CrawlStore, lease: Lease, clock: HandClock
    ) -> None:
        for i in range(50):
            store.create_monitor(f"https://m{i}.example.com/", interval_s=10)
        clock.now_ms = sorted(due_ms(store).values())[4]
        expected = [key for key, due in sorted(due_ms(store).items(), key=lambda item: item[1]) if due <= clock.now_ms]
        expected = [key for key in expected if due_ms(store)[key] >= clock.now_ms - 1000]
        assert taken(store, lease, limit=2) + taken(store, lease) == expected

    def test_two_that_share_a_database_hand_out_each_slot_once(
        self, store: CrawlStore, lease: Lease, engine: sa.Engine, clock: HandClock
    ) -> None:
        list(store.create_monitors(MonitorSpec(url=f"https://m{i}.example.com/", interval_s=10) for i in range(20)))
        other_store = CrawlStore(engine, clock=clock)
        other = Lease(engine, holder="other", ttl_s=10, clock=clock)
        slots: list[tuple[str, int]] = []

        for step in range(1, 61):
            clock.now_ms += 1000
            if step == 30:
                lease.release()
            assert not (other.acquire() and lease.acquire())
            for who, by in ((store, lease), (other_store, other)):
                with suppress(LeaseLost):  # one of them is always refused, unless nothing is due
                    slots += [(m.monitor_id, m.next_due_ms) for _, m in who.take_due_monitors(100, lease=by)]
        assert len(slots) == len(set(slots)) == 20 * 6
        assert store.punctuality.skipped + other_store.punctuality.skipped == 0

    def test_due_ones_are_found_by_an_index(
        self, store: CrawlStore, lease: Lease, engine: sa.Engine, clock: HandClock
    ) -> None:
        if engine.dialect.name != "sqlite":
            pytest.skip("PostgreSQL scans a table this small, whatever indexes there are")
        asked: list[str] = []
        sa.event.listen(engine, "before_cursor_execute", lambda *call: asked.append(call[2]))
        monitor = store.create_monitor(A, interval_s=60)
        store.take_due_monitors(10, lease=lease)  # the first look reads all
        del asked[:]
        clock.now_ms = monitor.next_due_ms
        assert taken(store, lease) == [A]
        plans = []
        with engine.connect() as connection:
            for statement in tuple(asked):
                if " monitors" in statement and "SET next_due_ms = ? " not in statement:
                    values = (T0,) * statement.count("?")
                    plans += [
                        row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)
                    ]
        assert any("ix_monitors_due" in plan for plan in plans)
        assert [plan for plan in plans if plan.startswith("SCAN") and "ix_monitors_due" not in plan] == []

    def test_slots_are_spread_over_the_interval(self) -> None:
        slots = [next_slot(f"https://m{i}.example.com/", 600, T0) - T0 for i in range(600)]
        assert all(0 < slot <= 600_000 for slot in slots)
        by_minute = np.histogram(slots, bins=10, range=(0, 600_000))[0]
        assert by_minute.min() > 30
