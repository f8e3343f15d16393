"""Monitors with adaptive schedules, the same over every backend."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

import numpy as np
import pytest
import sqlalchemy as sa

from urlhealth.crawl.database import writing
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.monitors import Selection, next_slot
from urlhealth.crawl.rollups import Rollups
from urlhealth.crawl.schema import current_predictions, monitors, targets
from urlhealth.crawl.store import CrawlStore
from urlhealth.errors import InvalidRequest, LeaseLost, NotFound
from urlhealth.probing.urls import parse_target
from urlhealth.vocabulary import (
    AdaptiveSchedule,
    Maintenance,
    Monitor,
    MonitorSpec,
    Objective,
    Outcome,
    Probed,
    ProbeRequest,
    ProbeResult,
)

T0 = 1_800_000_000_000
MINUTE_MS = 60_000
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
#: Twenty probes an hour for each, from one a minute to one in half an hour.
SCHEDULE = AdaptiveSchedule(budget_per_url_hour=20, min_interval_s=60, max_interval_s=1800)
A, B, C = (f"https://{name}.example.com/" for name in "abc")


class HandClock(Protocol):
    now_ms: int

    def __call__(self) -> int: ...


@pytest.fixture
def store(engine: sa.Engine, clock: HandClock) -> CrawlStore:
    return CrawlStore(engine, clock=clock)


def create(store: CrawlStore, *urls: str, schedule: AdaptiveSchedule = SCHEDULE, **more: float) -> list[Monitor]:
    list(store.create_monitors(MonitorSpec(url=url, schedule=schedule, **more) for url in urls))
    return list(store.iter_monitors())


def by_url(store: CrawlStore) -> dict[str, Monitor]:
    return {monitor.target.url: monitor for monitor in store.iter_monitors()}


def probed(due: Iterable[tuple[int, Monitor]], ts_ms: int, failing: Callable[[str], bool]) -> list[Probed]:
    """The results of what was handed out."""
    return [
        Probed(
            request=ProbeRequest(target=m.target, target_id=target_id, monitor_id=m.monitor_id),
            result=ProbeResult(
                target=m.target.key, ts_ms=ts_ms, outcome=Outcome.TIMEOUT if failing(m.target.url) else Outcome.OK
            ),
        )
        for target_id, m in due
    ]


def drive(
    store: CrawlStore, lease: Lease, clock: HandClock, *, hours: float, failing: Callable[[str], bool] = lambda _: False
) -> dict[str, list[int]]:
    """Let time pass, and probe what is due; when each URL was probed."""
    found: dict[str, list[int]] = {}
    until_ms = clock.now_ms + round(hours * HOUR_MS)
    while clock.now_ms < until_ms:
        due = store.take_due_monitors(1000, lease=lease)
        for _, monitor in due:
            found.setdefault(monitor.target.url, []).append(clock.now_ms)
        if due:
            store.observe_slots(probed(due, clock.now_ms, failing))
            clock.now_ms += 501  # then the new plans are written
            continue
        with store._engine.connect() as connection:
            next_ms = connection.scalar(sa.select(sa.func.min(monitors.c.next_due_ms)).where(~monitors.c.paused))
        clock.now_ms = max(clock.now_ms, min(next_ms or until_ms, clock.now_ms + 5 * MINUTE_MS))
    return found


def flaps(clock: HandClock, *urls: str) -> Callable[[str], bool]:
    """These URLs fail for 10 minutes of each hour."""
    return lambda url: url in urls and clock.now_ms % HOUR_MS < 10 * MINUTE_MS


class TestRecords:
    def test_a_schedule_is_kept_as_it_was_wanted(self, store: CrawlStore) -> None:
        schedule = replace(SCHEDULE, objective=Objective.CAUGHT, pool="shop")
        (monitor,) = create(store, A, schedule=schedule, weight=3.0)
        assert (monitor.schedule, monitor.weight, monitor.probes) == (schedule, 3.0, 0)
        assert monitor.interval_s == 180  # what spends the budget
        assert T0 < monitor.next_due_ms <= T0 + 180_000

    @pytest.mark.parametrize(
        ("schedule", "words"),
        [
            (replace(SCHEDULE, min_interval_s=9), "10 to"),
            (replace(SCHEDULE, min_interval_s=3600), "not above the second"),
            (replace(SCHEDULE, budget_per_url_hour=61), "between 2 and 60"),
            (replace(SCHEDULE, budget_per_url_hour=float("nan")), "between 2 and 60"),
        ],
    )
    def test_a_schedule_that_cannot_be_kept_is_refused(
        self, store: CrawlStore, schedule: AdaptiveSchedule, words: str
    ) -> None:
        with pytest.raises(InvalidRequest, match=words):
            store.create_monitor(A, schedule=schedule)
        monitor = store.create_monitor(A, interval_s=60)
        with pytest.raises(InvalidRequest, match=words):
            store.change_monitor(monitor.monitor_id, {"schedule": schedule})

    def test_an_interval_and_a_schedule_exclude_each_other(self, store: CrawlStore) -> None:
        for given in ({}, {"interval_s": 60, "schedule": SCHEDULE}):
            with pytest.raises(InvalidRequest, match="not both"):
                store.create_monitor(A, **given)  # type: ignore[arg-type]
        monitor = store.create_monitor(A, interval_s=60)
        with pytest.raises(InvalidRequest, match="not both"):
            store.change_monitor(monitor.monitor_id, {"interval_s": 60, "schedule": SCHEDULE})
        with pytest.raises(InvalidRequest, match="weight"):
            store.change_monitor(monitor.monitor_id, {"weight": 0.0})

    def test_the_way_is_changed_and_changed_back(self, store: CrawlStore, lease: Lease, clock: HandClock) -> None:
        monitor_id = store.create_monitor(A, interval_s=600, tags=("x",)).monitor_id
        adaptive = store.change_monitor(monitor_id, {"schedule": SCHEDULE, "weight": 2.0})
        assert (adaptive.schedule, adaptive.weight, adaptive.interval_s) == (SCHEDULE, 2.0, 180)
        assert adaptive.next_due_ms == next_slot(A, 180, T0)
        assert drive(store, lease, clock, hours=1)
        planned = store.monitor(monitor_id)
        assert planned.probes > 0
        assert store.change_monitor(monitor_id, {"weight": 5.0, "schedule": SCHEDULE}) == replace(planned, weight=5.0)
        fixed = store.change_monitor(monitor_id, {"interval_s": 600})
        assert (fixed.schedule, fixed.interval_s, fixed.probes) == (None, 600, 0)
        assert fixed.next_due_ms == next_slot(A, 600, clock.now_ms)
        times = drive(store, lease, clock, hours=1)[A]
        assert set(np.diff(times)) == {600_000}

    def test_equal_schedules_are_a_pool_unless_they_are_named(self, store: CrawlStore) -> None:
        create(store, A, B)
        create(store, C, schedule=replace(SCHEDULE, pool="mine"))
        pools = store.pools(limit=10).items
        assert [(pool.monitors, pool.budget_per_h, pool.schedule.pool) for pool in pools] == [
            (2, 40, None), (1, 20, "mine")
        ]  # fmt: skip
        first = store.pools(limit=1)
        assert first.items + store.pools(limit=1, cursor=first.next_cursor).items == pools
        assert [m.target.url for m in store.pool_monitors(pools[0].number, limit=10)] == [A, B]
        store.change_monitors(Selection(url=C), {"paused": True})
        assert [pool.monitors for pool in store.pools(limit=10).items] == [2]
        assert store.pools(limit=10, owner="ann").items == []
        for number, owner in ((pools[0].number, "ann"), (99, "local")):
            with pytest.raises(NotFound):
                store.pool_monitors(number, limit=10, owner=owner)


class TestSchedule:
    def test_what_flaps_is_probed_more_within_limits_and_budget(
        self, store: CrawlStore, lease: Lease, clock: HandClock
    ) -> None:
        create(store, *(f"https://m{i}.example/" for i in range(5)))
        flapping = [f"https://m{i}.example/" for i in range(2)]
        drive(store, lease, clock, hours=1.5, failing=flaps(clock, *flapping))
        found = drive(store, lease, clock, hours=3, failing=flaps(clock, *flapping))
        counts = {url: len(times) for url, times in found.items()}
        assert min(counts[url] for url in flapping) > 2 * max(counts[url] for url in counts if url not in flapping)
        gaps = np.concatenate([np.diff(times) for times in found.values()])
        assert gaps.min() >= 60_000
        assert gaps.max() <= 1_800_000 + 1_002  # the plan, and two of the steps in which time passes here
        assert sum(counts.values()) == pytest.approx(5 * 20 * 3, rel=0.1)
        (pool,) = store.pools(limit=10).items
        assert pool.report is not None
        assert pool.report.spent == pytest.approx(pool.report.granted, rel=0.1)
        assert pool.report.intervals_s[0] >= 60
        assert pool.report.intervals_s[-1] <= 1800
        assert pool.report.realised.caught >= 2 * 3
        most = store.pool_monitors(pool.number, limit=5)
        assert {m.target.url for m in most[:2]} == set(flapping)
        assert sum(m.probes for m in most) == pytest.approx(pool.report.spent, abs=10)

    def test_a_restart_keeps_what_was_learned(
        self, store: CrawlStore, lease: Lease, engine: sa.Engine, clock: HandClock
    ) -> None:
        create(store, A, B)
        drive(store, lease, clock, hours=3, failing=flaps(clock, A))
        before = {url: (m.interval_s, m.next_due_ms) for url, m in by_url(store).items()}
        assert before[A][0] < before[B][0] / 2
        reports = [store.pools(limit=1).items[0].report]
        store = CrawlStore(engine, clock=clock)
        store.take_due_monitors(0, lease=lease)
        clock.now_ms += 501
        store.take_due_monitors(0, lease=lease)
        reports.append(store.pools(limit=1).items[0].report)
        after = {url: (m.interval_s, m.next_due_ms) for url, m in by_url(store).items()}
        for url in (A, B):
            assert after[url][0] == pytest.approx(before[url][0], rel=0.3)
        assert reports[0] is not None
        assert reports[1] is not None
        assert reports[1].spent == reports[0].spent
        assert reports[1].realised == reports[0].realised

    @pytest.mark.parametrize("late_ms", [500, 5_000])
    def test_a_restart_before_plans_are_written_keeps_the_least_interval(
        self, store: CrawlStore, lease: Lease, engine: sa.Engine, clock: HandClock, late_ms: int
    ) -> None:
        create(store, A, B, C, schedule=replace(SCHEDULE, budget_per_url_hour=60))
        begun: dict[str, list[int]] = {}
        for number in range(60):
            clock.now_ms = max(clock.now_ms, min(monitor.next_due_ms for monitor in store.iter_monitors()))
            due = store.take_due_monitors(1000, lease=lease)
            clock.now_ms += number % 2 * late_ms  # half begin late; what they found is stored, their plans are not
            store.file_results(probed(due, clock.now_ms, lambda url: url == A), worker="w", lease=lease)
            for _, monitor in due:
                begun.setdefault(monitor.target.url, []).append(clock.now_ms)
            store = CrawlStore(engine, clock=clock)
        assert min(map(len, begun.values())) > 3
        assert min(np.diff(times).min() for times in begun.values()) >= 60_000

    def test_two_that_share_a_database_hand_out_each_slot_once(
        self, store: CrawlStore, lease: Lease, engine: sa.Engine, clock: HandClock
    ) -> None:
        create(store, *(f"https://m{i}.example/" for i in range(20)))
        other_store = CrawlStore(engine, clock=clock)
        other = Lease(engine, holder="other", ttl_s=10, clock=clock)
        times: dict[str, list[int]] = {}
        for step in range(1, 121):
            clock.now_ms += 10_000
            if step == 60:
                lease.release()
                store.forget_slots()
            assert not (other.acquire() and lease.acquire())
            for who, by in ((store, lease), (other_store, other)):
                with suppress(LeaseLost):  # one of them is always refused, unless nothing is due
                    due = who.take_due_monitors(100, lease=by)
                    for _, monitor in due:
                        times.setdefault(monitor.monitor_id, []).append(clock.now_ms)
                    who.observe_slots(probed(due, clock.now_ms, lambda _: False))
        assert len(times) == 20
        assert min(np.diff(found).min() for found in times.values()) >= 60_000

    def test_what_is_under_way_is_not_begun_again(self, store: CrawlStore, lease: Lease, clock: HandClock) -> None:
        (monitor,) = create(store, A)
        clock.now_ms = monitor.next_due_ms
        due = store.take_due_monitors(10, lease=lease)
        assert len(due) == 1
        clock.now_ms = store.monitor(monitor.monitor_id).next_due_ms
        assert store.take_due_monitors(10, lease=lease) == []
        waiting = store.monitor(monitor.monitor_id)
        assert (waiting.skipped, waiting.probes) == (1, 1)
        assert waiting.next_due_ms > clock.now_ms
        store.observe_slots(probed(due, clock.now_ms, lambda _: False))
        clock.now_ms += 501
        store.take_due_monitors(10, lease=lease)
        planned = store.monitor(monitor.monitor_id)
        assert planned.next_due_ms == pytest.approx(
            clock.now_ms - 501 + planned.interval_s * 1000, abs=1000 + planned.interval_s * 100
        )

    def test_after_a_day_off_slots_are_skipped_and_few_are_due(
        self, store: CrawlStore, lease: Lease, engine: sa.Engine, clock: HandClock
    ) -> None:
        n = 60
        create(store, *(f"https://m{i}.example/" for i in range(n)))
        drive(store, lease, clock, hours=0.2)
        clock.now_ms += DAY_MS
        store = CrawlStore(engine, clock=clock)
        at_once = store.take_due_monitors(n, lease=lease)
        store.observe_slots(probed(at_once, clock.now_ms, lambda _: False))
        clock.now_ms += 501
        at_once += store.take_due_monitors(n, lease=lease)
        assert len(at_once) < n / 4
        assert min(m.skipped for m in store.iter_monitors()) > 10
        soon = [m.next_due_ms - clock.now_ms for m in store.iter_monitors()]
        assert max(soon) <= 1_800_000
        assert np.histogram(soon, bins=6, range=(0, 180_000))[0].max() < n / 3

    def test_pause_delete_and_maintenance_hold_at_once(self, store: CrawlStore, lease: Lease, clock: HandClock) -> None:
        made = {m.target.url: m for m in create(store, A, B, C)}
        drive(store, lease, clock, hours=0.5)
        store.change_monitor(made[A].monitor_id, {"paused": True})
        store.delete_monitor(made[B].monitor_id)
        window = Maintenance(start_ms=clock.now_ms, end_ms=clock.now_ms + HOUR_MS)
        store.change_monitor(made[C].monitor_id, {"maintenance": (window,)})
        assert drive(store, lease, clock, hours=0.9) == {}
        assert store.monitor(made[C].monitor_id).skipped == 0
        store.change_monitor(made[A].monitor_id, {"paused": False})
        found = drive(store, lease, clock, hours=1)
        assert set(found) == {A, C}
        assert sum(map(len, found.values())) == pytest.approx(2 * 20, rel=0.3)  # the share of B is gone

    def test_a_past_is_learned_from_what_was_stored(
        self, store: CrawlStore, lease: Lease, engine: sa.Engine, clock: HandClock
    ) -> None:
        def history() -> Iterable[tuple[object, ProbeResult]]:
            for url in (A, B):
                target = parse_target(url)
                for ts_ms in range(T0 - 10 * DAY_MS, T0, 20 * MINUTE_MS):
                    down = url == A and ts_ms % (4 * HOUR_MS) < 20 * MINUTE_MS
                    outcome = Outcome.TIMEOUT if down else Outcome.OK
                    yield target, ProbeResult(target=target.key, ts_ms=ts_ms, outcome=outcome)

        store.import_probes(history())  # type: ignore[arg-type]
        rollups = Rollups(engine, known_for_s=172_800)
        while rollups.step(lease=lease):
            pass
        create(store, A, B)
        for _ in range(3):
            store.take_due_monitors(0, lease=lease)
            clock.now_ms += 501
        planned = by_url(store)
        assert planned[A].interval_s < planned[B].interval_s / 2
        assert all(0 < m.next_due_ms - T0 < 1_800_000 for m in planned.values())

    def test_forecasts_and_weights_shift_the_budget(
        self, store: CrawlStore, lease: Lease, engine: sa.Engine, clock: HandClock
    ) -> None:
        create(store, A, B)
        create(store, C, weight=10.0)
        with writing(engine) as connection:
            ids = dict(connection.execute(sa.select(targets.c.key, targets.c.id)).all())
            for url, probability in ((A, 0.5), (B, 0.01), (C, 0.01)):
                connection.execute(
                    sa.insert(current_predictions).values(
                        target_id=ids[url], horizon="24h", group="example.com", probability=probability,
                        probability_at_end=0.0, status="fresh", health="up", observed_ms=T0, reasons="[]",
                        model="m", model_version="1", scored_ms=T0,
                    )
                )  # fmt: skip
        for _ in range(3):
            store.take_due_monitors(0, lease=lease)
            clock.now_ms += 501
        interval_s = {url: m.interval_s for url, m in by_url(store).items()}
        assert interval_s[A] < interval_s[B] / 2
        assert interval_s[C] < interval_s[B] / 2

    def test_a_change_of_the_budget_moves_the_monitors_to_another_pool_and_keeps_what_they_taught(
        self, store: CrawlStore, lease: Lease, clock: HandClock
    ) -> None:
        create(store, A, B)
        drive(store, lease, clock, hours=3, failing=flaps(clock, A))
        store.change_monitors(Selection(group="example.com"), {"schedule": replace(SCHEDULE, budget_per_url_hour=10)})
        found = drive(store, lease, clock, hours=2, failing=flaps(clock, A))
        assert sum(map(len, found.values())) == pytest.approx(2 * 10 * 2, rel=0.2)
        assert len(found[A]) > 1.5 * len(found[B])
        assert [pool.schedule.budget_per_url_hour for pool in store.pools(limit=9).items] == [10]

    def test_nothing_is_scanned(self, store: CrawlStore, lease: Lease, engine: sa.Engine, clock: HandClock) -> None:
        if engine.dialect.name != "sqlite":
            pytest.skip("PostgreSQL scans a table this small, whatever indexes there are")
        create(store, A, B, C)
        store.take_due_monitors(10, lease=lease)  # the first look reads all
        asked: list[tuple[str, object]] = []
        sa.event.listen(engine, "before_cursor_execute", lambda *call: asked.append((call[2], call[3])))
        drive(store, lease, clock, hours=0.2)
        plans = []
        with engine.connect() as connection:
            for statement, _ in dict(asked).items():
                if "monitors" in statement and not statement.startswith("EXPLAIN"):
                    plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", (1,) * statement.count("?"))
                    plans += [(row[3], statement) for row in plan]
        assert len(plans) > 10
        assert [plan for plan in plans if "SCAN" in plan[0]] == []


@pytest.mark.parametrize("restarted", [False, True])
def test_after_the_clock_is_set_back_all_are_probed_as_before(
    engine: sa.Engine, store: CrawlStore, lease: Lease, clock: HandClock, restarted: bool
) -> None:
    create(store, A, B, C)
    before = drive(store, lease, clock, hours=6, failing=flaps(clock, B))
    clock.now_ms -= 5 * HOUR_MS
    lease.acquire()
    if restarted:
        store = CrawlStore(engine, clock=clock)
    after = drive(store, lease, clock, hours=2, failing=flaps(clock, B))
    assert after.keys() == before.keys()
    for url, at_ms in after.items():
        assert at_ms[0] <= clock.now_ms - 2 * HOUR_MS + SCHEDULE.max_interval_s * 1000 * 1.2, url
        assert np.diff(at_ms).max() <= SCHEDULE.max_interval_s * 1000 * 1.2
    spent = sum(map(len, after.values()))
    assert spent <= 1.5 * 2 * 3 * SCHEDULE.budget_per_url_hour
