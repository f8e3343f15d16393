"""Adaptive schedules: plans are made in the writer's memory, and kept in the monitors' rows.

`monitors.next_due_ms` is the only clock, for these monitors as for all others: the schedule hands out what is due and
skips what was missed, and a monitor that is paused, deleted or changed is so at once. What differs is what it is moved
on by: when a slot is handed out, the interval planned until then; and when its result is there, the plan made of it.

A pool's `Planner` knows its monitors from their rows: what their probes have taught (`monitors.learned`), or, at first,
the target's spells. They are read when they are due or when the round comes to them, whichever is first. The round goes
through all of them, some at a time, by an index: it brings new prices and forecasts into the plans, and drops who is
gone.
"""

import json
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import sqlalchemy as sa

from urlhealth.crawl.database import chunks, run
from urlhealth.crawl.monitors import schedule_of
from urlhealth.crawl.schema import current_predictions, monitors, polling_pools, probes, spells, targets
from urlhealth.polling.gain import Gain, estimated
from urlhealth.polling.hazard import PRIOR_RATE, Hazards
from urlhealth.polling.policy import HOUR_MS, REPLAN_H, SECOND_MS, Planner
from urlhealth.vocabulary import AdaptiveSchedule, Freshness, Health, Probed, ProbeRequest

#: Monitors that the round reads at once, and the longest pause after them.
SLICE: Final = 500
LONGEST_PAUSE_MS: Final = 10_000
#: Plans wait at most so long until they are in the rows.
WRITE_MS: Final = 500
#: Time between two reports of pools, of up to 100,000 monitors; of more in proportion.
REPORT_MS: Final = 10_000
#: How much of a target's past is read when nothing was learned of it yet.
PAST_MS: Final = 90 * 24 * HOUR_MS
#: The forecast that is used: this horizon's, as a rate.
HORIZON_H: Final = 24
#: Onsets per hour that a forecast may mean.
_PRIORS: Final = (1e-5, 10.0)
#: The clock stood still for longer: nobody was there to spend the budget of that time.
_AWAY_H: Final = 0.25
#: The account holds this time's budget at least: a young pool has granted little, and probes come in turns.
ROOM_H: Final = 0.25
#: Targets by whose plans a price is found.
_SAMPLE: Final = 300
#: A plan is written where it is so much later or earlier, or its interval longer or shorter.
_MOVED_MS: Final = 1_000
#: Intervals are made longer or shorter by up to this share.
SHAKE: Final = 0.1
_QUANTILES: Final = (0.0, 0.1, 0.5, 0.9, 1.0)
_GOLDEN: Final = 0.6180339887498949

_ACTIVE: Final = sa.and_(monitors.c.pool_number.is_not(None), sa.not_(monitors.c.paused))
#: When the monitor's newest stored probe began. What was planned and learned from it may not have been written: then it
#: stands nowhere else.
_PROBED_MS: Final = sa.case(
    (
        monitors.c.probes > 0,
        sa.select(probes.c.ts_ms)
        .where(probes.c.target_id == monitors.c.target_id, probes.c.monitor_number == monitors.c.number)
        .order_by(probes.c.ts_ms.desc())
        .limit(1)
        .correlate(monitors)
        .scalar_subquery(),
    )
).label("probed_ms")
_ROWS: Final = (
    sa.select(
        *(monitors.c[name] for name in ("number", "target_id", "pool_number", "weight", "probes", "interval_s")),
        *(monitors.c[name] for name in ("next_due_ms", "learned")),
        _PROBED_MS,
        targets.c.group,
        polling_pools.c.schedule,
        *(current_predictions.c[name] for name in ("probability", "status", "health")),
    )
    .join(targets, targets.c.id == monitors.c.target_id)
    .join(polling_pools, polling_pools.c.number == monitors.c.pool_number)
    .outerjoin(
        current_predictions,
        sa.and_(
            current_predictions.c.target_id == monitors.c.target_id, current_predictions.c.horizon == f"{HORIZON_H}h"
        ),
    )
    .where(_ACTIVE)
)
#: How many monitors are active, by pool.
COUNTS: Final = (
    sa.select(monitors.c.pool_number, sa.func.count().label("active")).where(_ACTIVE).group_by(monitors.c.pool_number)
)
#: What comes after a place in the round. Two queries: to compare both at once, SQLite would read a pool from its start.
_POOL: Final = sa.bindparam("pool", type_=sa.BigInteger)
_NUMBER: Final = sa.bindparam("number", type_=sa.BigInteger)
_REST_OF_POOL: Final = _ROWS.where(monitors.c.pool_number == _POOL, monitors.c.number > _NUMBER).order_by(
    monitors.c.number
)
_NEXT_POOLS: Final = _ROWS.where(monitors.c.pool_number > _POOL).order_by(monitors.c.pool_number, monitors.c.number)
_BEGIN: Final = {"pool": 0, "number": 0}
_MINE: Final = "WHERE number = ? AND pool_number = ?"
_WRITE_PLAN: Final = f"UPDATE monitors SET next_due_ms = ?, interval_s = ? {_MINE}"
_WRITE_LEARNED: Final = f"UPDATE monitors SET next_due_ms = ?, interval_s = ?, learned = ? {_MINE}"
_HAND_OUT: Final = f"UPDATE monitors SET next_due_ms = ?, probes = probes + 1 {_MINE}"
_PASS_OVER: Final = f"UPDATE monitors SET next_due_ms = ?, skipped = skipped + ? {_MINE}"
_WRITE_REPORT: Final = "UPDATE polling_pools SET report = ? WHERE number = ?"


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolReport:
    """Where a pool's budget went. The counts are those since its first monitor was planned."""

    since_ms: int
    as_of_ms: int
    #: Probes granted and spent.
    granted: float = 0.0
    spent: int = 0
    #: The price of a probe (`Planner`), and how many monitors were known when it was first found.
    log_price: float = 0.0
    known: int = 0
    #: Probes per hour as planned now.
    planned_per_h: float = 0.0
    #: Of the intervals planned now: the least, the quantiles 0.1, 0.5 and 0.9, and the most; empty before the first.
    intervals_s: tuple[int, ...] = ()
    estimated: Gain = field(default_factory=Gain)
    realised: Gain = field(default_factory=Gain)

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def of_json(text: str) -> "PoolReport":
        stored: dict[str, Any] = json.loads(text)
        gains = {name: Gain(**stored[name]) for name in ("estimated", "realised")}
        return PoolReport(**stored | gains | {"intervals_s": tuple(stored["intervals_s"])})


class Pool(Planner):
    """The plans of the monitors of one schedule. Its targets are numbers of its own, reused when a monitor is gone."""

    def __init__(self, number: int, schedule: AdaptiveSchedule, before: PoolReport) -> None:
        super().__init__(
            budget_per_url_hour=schedule.budget_per_url_hour,
            min_interval_s=schedule.min_interval_s,
            max_interval_s=schedule.max_interval_s,
            objective=schedule.objective,
        )
        self.number = number
        self.since_ms = before.since_ms
        self.granted, self.spent = before.granted, before.spent
        self.realised = before.realised
        self.target_of: dict[int, int] = {}
        #: By target: the monitor's number, when it was probed last (0: not yet), and the round that saw it last.
        self.monitors = array("q")
        self._probed_ms = array("q")
        self.seen_in = array("L")
        self._free: list[int] = []
        #: When those are due whose plans are not in their rows yet; and of which of them something was learned.
        self.moved: dict[int, int] = {}
        self.learned: set[int] = set()
        self.under_way: set[int] = set()
        #: How many monitors were known when the price was found; from then on it follows the budget.
        self._settled_at = before.known
        if before.known:
            self._log_price = before.log_price

    def interval_s(self, target: int) -> int:
        """The interval planned now."""
        return round(3600 / self._planned[target])

    def pass_time(self, t_ms: int) -> None:
        """Grant the budget of the time since the last call, except for a time in which nobody was there.

        What does not go into the account is lost: a time of maintenance is not made up for by many probes afterwards.
        """
        if not 0 <= t_ms / HOUR_MS - self._now_h <= _AWAY_H:
            self._now_h = t_ms / HOUR_MS
        self._advance(t_ms)
        self.granted = min(self.granted, self.spent + self._room())

    def count(self, active: int) -> None:
        """How many monitors share the budget, known here or not."""
        self._active = active
        self._scale = active / max(1, len(self.target_of))

    def admit(self, row: Any, past: Sequence[Any], t_ms: int) -> int:
        """Make the monitor in a row of `_ROWS` a target; `past`: its spells, used where nothing was learned yet."""
        hours = [spell.start_ms / HOUR_MS for spell in past]
        since_ms = past[0].start_ms if past else t_ms
        if self._free:
            target = self._free.pop()
            blank = Hazards()
            blank.add(since_ms / HOUR_MS)
            self.hazards.restore(target, blank.dump(0))
            self._weight[target] = row.weight
            self._join(target, row.group)
        else:
            target = self.add(since_ms, group=row.group, weight=row.weight)
            self.monitors.append(0)
            self._probed_ms.append(0)
            self.seen_in.append(0)
        self.monitors[target] = row.number
        self.target_of[row.number] = target
        self.hazards.foresee(target, _prior(row))
        if not (row.learned and self.hazards.restore(target, row.learned)) and past:
            self.hazards.learn(target, hours, [not spell.up for spell in past], past[-1].last_ms / HOUR_MS)
        seen_ms = round(self.hazards.seen_h[target] * HOUR_MS) if row.probes else 0
        self._probed_ms[target] = seen_ms if row.probed_ms is None else row.probed_ms
        self._set_back(target, t_ms)
        return target

    def set_back(self, t_ms: int) -> None:
        """The clock was set back to this: what lies after it, as seen from here, was just now."""
        for target in self.target_of.values():
            self._set_back(target, t_ms)
        for target, due_ms in self.moved.items():
            self.moved[target] = min(due_ms, t_ms + self.interval_s(target) * SECOND_MS)

    def _set_back(self, target: int, t_ms: int) -> None:
        self.hazards.set_back(target, t_ms / HOUR_MS)
        self._probed_ms[target] = min(self._probed_ms[target], t_ms)

    def drop(self, target: int) -> None:
        """The monitor is gone, or paused."""
        self._unplan(target)
        del self.target_of[self.monitors[target]]
        self.moved.pop(target, None)
        self.learned.discard(target)
        self._free.append(target)

    def settle(self, t_ms: int) -> None:
        """Find the price anew where twice as many monitors are known as at the last time."""
        known = list(self.target_of.values())
        if len(known) >= max(1, 2 * self._settled_at):
            self._settled_at = len(known)
            self._settle(known[:: -(-len(known) // _SAMPLE)], t_ms / HOUR_MS)

    def review(self, target: int, row: Any, t_ms: int) -> None:
        """Plan the target anew, by what its row and the price say now."""
        self._weight[target] = row.weight
        self.hazards.foresee(target, _prior(row))
        interval_h = self._plan(target, t_ms / HOUR_MS)
        if target in self.under_way or target in self.moved:
            return
        due_ms = self._shaken(target, self._probed_ms[target], interval_h)
        if due_ms <= t_ms:  # or it was not probed yet: in its turn, so that many of them are not due at once
            due_ms, interval_ms = row.next_due_ms, interval_h * HOUR_MS
            if due_ms > t_ms + interval_ms:
                due_ms = t_ms + int(interval_ms * (row.number * _GOLDEN % 1))
        if abs(due_ms - row.next_due_ms) > _MOVED_MS or self.interval_s(target) != row.interval_s:
            self.moved[target] = due_ms

    def plan(self, target: int, t_ms: int) -> None:
        """Plan a target for the first time, as far as its budget goes."""
        self._plan(target, t_ms / HOUR_MS)

    def earliest_ms(self, target: int, t_ms: int) -> int:
        """When the target may be probed again: a least interval after its last probe, unless the clock was set back."""
        last_ms = self._probed_ms[target]
        return last_ms + round(self.min_h * HOUR_MS) if last_ms <= t_ms else t_ms

    def observe(self, target: int, t_ms: int, failing: bool | None) -> bool:
        """As in the base class; an outage that was seen to begin counts for the realised gain."""
        self.under_way.discard(target)
        self.learned.add(target)
        before_h = self.hazards.seen_h[target]
        t_ms = max(t_ms, round(before_h * HOUR_MS))  # a clock that is set back
        self._probed_ms[target] = t_ms
        onset = super().observe(target, t_ms, failing)
        if onset and t_ms / HOUR_MS > before_h:
            shares = self.hazards.length_shares(target)
            uniform_h = 1 / self.budget_per_url_hour
            self.realised = self.realised.found(shares, interval_h=t_ms / HOUR_MS - before_h, uniform_h=uniform_h)
        return onset

    def report(self, t_ms: int) -> PoolReport:
        """Where the budget went until now."""
        planned = self.planned_per_h()
        intervals_s = 3600 / planned[planned > 0]
        spread = np.quantile(intervals_s, _QUANTILES).round().astype(int).tolist() if len(intervals_s) else []
        return PoolReport(
            since_ms=self.since_ms,
            as_of_ms=t_ms,
            granted=self.granted,
            spent=self.spent,
            log_price=self._log_price,
            known=self._settled_at,
            planned_per_h=float(planned.sum()) * self._scale,
            intervals_s=tuple(spread),
            estimated=estimated(self, t_ms / HOUR_MS),
            realised=self.realised,
        )

    def _room(self) -> float:
        return max(super()._room(), ROOM_H * self._active * self.budget_per_url_hour)

    def _enter(self, target: int, t_ms: int, due_ms: int) -> None:
        if target not in self.under_way:
            interval_h = 1 / self._planned[target]
            due_ms = self._shaken(target, due_ms - round(interval_h * HOUR_MS), interval_h)
            self.moved[target] = max(t_ms, due_ms)

    def _shaken(self, target: int, last_ms: int, interval_h: float) -> int:
        """When the target is due that was probed last at `last_ms`: the interval, and up to a tenth more or less.

        So monitors that were due together, because a price has moved them all, are not so for ever.
        """
        draw = (self.monitors[target] + last_ms / SECOND_MS) * _GOLDEN % 1
        shaken_h = interval_h * (1 + SHAKE * (2 * draw - 1))
        return last_ms + round(max(self.min_h, min(self.max_h, shaken_h)) * HOUR_MS)


@dataclass
class HandedOut:
    """What becomes of due monitors with adaptive schedules; done when the transaction is."""

    #: Numbers of those that are to be probed.
    numbers: set[int] = field(default_factory=set)
    begun: list[tuple[str, Pool, int]] = field(default_factory=list)
    moves: list[tuple[int, int, int]] = field(default_factory=list)
    #: Those that pass, and whether they count as skipped.
    passed: list[tuple[int, int, int, int]] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        return sum(skipped for _, skipped, *_ in self.passed)

    def write(self, connection: sa.Connection) -> None:
        """Move the rows on."""
        run(connection, _HAND_OUT, self.moves)
        run(connection, _PASS_OVER, self.passed)


class AdaptivePlans:
    """The pools of all owners, in the memory of the process that holds the lease. Use from one thread."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self.forget()

    def forget(self) -> None:
        """Another process was the writer, or what is under way is lost: all is read anew from the rows."""
        self._pools: dict[int, Pool] = {}
        self._under_way: dict[str, tuple[Pool, int]] = {}
        self._round = 1
        self._first_round = True
        self._place = _BEGIN
        self._next_slice_ms = self._next_report_ms = self._written_ms = 0
        self._total = 0
        self._reports: list[tuple[str, int]] = []

    def observe(self, results: Iterable[Probed]) -> None:
        """What was found in slots that were handed out; the new plans go into the rows with :meth:`write`."""
        for probed in results:
            pool, target = self._under_way.pop(probed.request.monitor_id or "", (None, -1))
            if pool is not None:
                health = probed.result.outcome.health
                failing = None if health is Health.UNKNOWN else health is Health.DOWN
                pool.observe(target, probed.result.ts_ms, failing)

    def skip(self, requests: Iterable[ProbeRequest]) -> None:
        """Slots that were handed out, and that nobody took: the budget has them again."""
        for request in requests:
            pool, target = self._under_way.pop(request.monitor_id or "", (None, -1))
            if pool is not None:
                pool.under_way.discard(target)
                pool.spent -= 1

    def set_back(self, now_ms: int) -> None:
        """The clock was set back to now."""
        for pool in self._pools.values():
            pool.set_back(now_ms)

    def turn(self, now_ms: int) -> bool:
        """Do what time brings: budgets, and the next part of the round. Whether something should be written now."""
        for pool in self._pools.values():
            pool.pass_time(now_ms)
        if not 0 <= self._next_slice_ms - now_ms <= LONGEST_PAUSE_MS:
            self._review_slice(now_ms)
        if not 0 <= self._next_report_ms - now_ms <= 100 * REPORT_MS and self._pools:
            self._make_reports(now_ms)
        waiting = self._reports or any(pool.moved for pool in self._pools.values())
        return bool(waiting) and not 0 <= now_ms - self._written_ms < WRITE_MS

    def write(self, connection: sa.Connection) -> None:
        """Write plans and reports; :meth:`written` follows when the transaction is done."""
        for pool in self._pools.values():
            plans, learned = [], []
            for target, due_ms in pool.moved.items():
                mine = pool.monitors[target], pool.number
                interval_s = pool.interval_s(target)
                if target in pool.learned:
                    learned.append((due_ms, interval_s, pool.hazards.dump(target), *mine))
                else:
                    plans.append((due_ms, interval_s, *mine))
            # In the order of their numbers: the rows of one page are written together.
            run(connection, _WRITE_PLAN, sorted(plans, key=lambda row: row[-2]))
            run(connection, _WRITE_LEARNED, sorted(learned, key=lambda row: row[-2]))
        run(connection, _WRITE_REPORT, self._reports)

    def written(self, now_ms: int) -> None:
        """What :meth:`write` wrote is in the database."""
        self._written_ms = now_ms
        self._reports = []
        for pool in self._pools.values():
            pool.moved.clear()
            pool.learned.clear()

    def hand_out(self, connection: sa.Connection, rows: Sequence[Any], probed: set[int], now_ms: int) -> HandedOut:
        """Which of these due monitors are probed now, and when each is due next.

        Args:
            rows: of `MONITORS`, all with a pool.
            probed: numbers of those for which it is no time of maintenance.
        """
        unknown = [row.number for row in rows if not self._knows(row)]
        for some in chunks(unknown, SLICE):
            self._admit(connection, connection.execute(_ROWS.where(monitors.c.number.in_(some))).all(), now_ms)
        out = HandedOut()
        for row in rows:
            pool = self._pools[row.pool_number]
            target = pool.target_of[row.number]
            due_ms = max(now_ms, row.next_due_ms) + 1000 * row.interval_s
            earliest_ms = pool.earliest_ms(target, row.next_due_ms)
            if row.next_due_ms < earliest_ms:  # planned before its last probe, which began late
                out.passed.append((earliest_ms, 0, row.number, row.pool_number))
            elif row.number not in probed or target in pool.under_way:
                out.passed.append((due_ms, int(row.number in probed), row.number, row.pool_number))
            else:
                out.numbers.add(row.number)
                out.begun.append((row.monitor_id, pool, target))
                out.moves.append((due_ms, row.number, row.pool_number))
        return out

    def begin(self, out: HandedOut) -> None:
        """The slots are handed out."""
        for monitor_id, pool, target in out.begun:
            pool.spent += 1
            pool.under_way.add(target)
            self._under_way[monitor_id] = pool, target

    def _knows(self, row: Any) -> bool:
        pool = self._pools.get(row.pool_number)
        return pool is not None and row.number in pool.target_of

    def _review_slice(self, now_ms: int) -> None:
        with self._engine.connect() as connection:
            rows = list(connection.execute(_REST_OF_POOL.limit(SLICE), self._place))
            if len(rows) < SLICE:
                rows += connection.execute(_NEXT_POOLS.limit(SLICE - len(rows)), self._place)
            self._admit(connection, [row for row in rows if not self._knows(row)], now_ms)
        for row in rows:
            pool = self._pools[row.pool_number]
            target = pool.target_of[row.number]
            pool.seen_in[target] = self._round
            pool.review(target, row, now_ms)
        if len(rows) == SLICE:
            self._place = {"pool": rows[-1].pool_number, "number": rows[-1].number}
        else:
            self._end_round()
        pause_ms = int(REPLAN_H * HOUR_MS * SLICE / max(1, self._total))
        self._next_slice_ms = now_ms + (0 if self._first_round else min(LONGEST_PAUSE_MS, pause_ms))

    def _end_round(self) -> None:
        for pool in self._pools.values():
            for target in list(pool.target_of.values()):
                if pool.seen_in[target] != self._round and target not in pool.under_way:
                    pool.drop(target)
        self._round += 1
        self._place = _BEGIN
        self._first_round = False

    def _admit(self, connection: sa.Connection, rows: Sequence[Any], now_ms: int) -> None:
        """Make targets of monitors that are not known yet."""
        if not rows:
            return
        new = {row.pool_number: row.schedule for row in rows if row.pool_number not in self._pools}
        for number, schedule in new.items():
            text = connection.scalar(sa.select(polling_pools.c.report).where(polling_pools.c.number == number))
            before = PoolReport.of_json(text) if text else PoolReport(since_ms=now_ms, as_of_ms=now_ms)
            self._pools[number] = Pool(number, schedule_of(schedule), before)
        past = _spells(connection, [row.target_id for row in rows if row.learned is None], now_ms - PAST_MS)
        for row in rows:
            pool = self._pools[row.pool_number]
            target = pool.admit(row, past.get(row.target_id, ()), now_ms)
            pool.seen_in[target] = self._round
        if new:
            self._count(connection)
        for number in {row.pool_number for row in rows}:
            self._pools[number].settle(now_ms)
        for row in rows:
            self._pools[row.pool_number].plan(self._pools[row.pool_number].target_of[row.number], now_ms)

    def _count(self, connection: sa.Connection) -> None:
        counts: dict[int, int] = dict(connection.execute(COUNTS).all())
        self._total = sum(counts.values())
        for number, pool in self._pools.items():
            pool.count(counts.get(number, 0))

    def _make_reports(self, now_ms: int) -> None:
        with self._engine.connect() as connection:
            self._count(connection)
        self._reports = [(pool.report(now_ms).as_json(), number) for number, pool in self._pools.items()]
        self._next_report_ms = now_ms + REPORT_MS * max(1, self._total // 100_000)


def _prior(row: Any) -> float:
    """Onsets per hour that the forecast in a row of `_ROWS` means; without one, the usual prior."""
    if row.probability is None or row.status != Freshness.FRESH.value or row.health != Health.UP.value:
        return PRIOR_RATE
    least, most = _PRIORS
    return max(least, min(most, float(-np.log1p(-min(row.probability, 1 - 1e-9))) / HORIZON_H))


def _spells(connection: sa.Connection, target_ids: Sequence[int], since_ms: int) -> dict[int, list[Any]]:
    """The spells of these targets that began since then, by target, oldest first."""
    found: dict[int, list[Any]] = {}
    columns = (spells.c.target_id, spells.c.start_ms, spells.c.last_ms, spells.c.up)
    for some in chunks(target_ids, SLICE):
        query = sa.select(*columns).where(spells.c.target_id.in_(some), spells.c.start_ms >= since_ms)
        for row in connection.execute(query.order_by(spells.c.target_id, spells.c.start_ms)):
            found.setdefault(row.target_id, []).append(row)
    return found
