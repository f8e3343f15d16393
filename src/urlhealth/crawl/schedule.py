"""When monitors are due: each slot is handed out once, or skipped and counted.

A monitor's slots are a grid (`monitors.next_slot`), or planned one by one (`crawl/adaptive.py`), and its row holds the
next one that nobody has dealt with. It is moved on in the transaction that hands the slot out, under the lease's fence,
before anything is probed: so no slot is handed out twice, whoever dies or stalls, and one that is handed out to a
process that dies is lost.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Final

import sqlalchemy as sa

from urlhealth.crawl.adaptive import AdaptivePlans
from urlhealth.crawl.database import change_monitors_alone, run, writing
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.monitors import MONITORS, monitor_of, next_slot
from urlhealth.crawl.records import Records
from urlhealth.crawl.schema import monitors
from urlhealth.vocabulary import Monitor, Probed, ProbeRequest

#: Upper bounds of the classes in which lags are counted.
LAGS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

_NOW: Final = sa.bindparam("now_ms", type_=sa.BigInteger)
_ACTIVE: Final = sa.not_(monitors.c.paused)
_DUE_MS: Final = monitors.c.next_due_ms
_INTERVAL_MS: Final = 1000 * sa.cast(monitors.c.interval_s, sa.BigInteger)

#: How late a slot may be begun: a tenth of the interval, but no more than a minute. So after a pause, however long, at
#: most a tenth of the monitors is due at once.
_MAY_BE_LATE_MS: Final = sa.case((monitors.c.interval_s < 600, _INTERVAL_MS // 10), else_=sa.literal(60_000))
#: (The first comparison is one that the index answers: nothing is missed before a tenth of the shortest interval.)
_MISSED: Final = sa.and_(_ACTIVE, _DUE_MS < _NOW - 1000, _DUE_MS < _NOW - _MAY_BE_LATE_MS)
_SLOTS_MISSED: Final = (_NOW - _MAY_BE_LATE_MS - _DUE_MS + _INTERVAL_MS - 1) // _INTERVAL_MS
_COUNT_MISSED: Final = sa.select(sa.func.coalesce(sa.func.sum(_SLOTS_MISSED), 0)).where(_MISSED)
_SKIP_MISSED: Final = (
    sa.update(monitors)
    .where(_MISSED)
    .values(skipped=monitors.c.skipped + _SLOTS_MISSED, next_due_ms=_DUE_MS + _SLOTS_MISSED * _INTERVAL_MS)
)
#: Onto the same grid, within one interval from now.
_PULL_BACK: Final = (
    sa.update(monitors)
    .where(_DUE_MS > _NOW + 2 * _INTERVAL_MS)
    .values(next_due_ms=_DUE_MS - (_DUE_MS - _NOW - 1) // _INTERVAL_MS * _INTERVAL_MS)
)
_FIRST_DUE: Final = sa.select(sa.func.min(_DUE_MS)).where(_ACTIVE)
_DUE: Final = MONITORS.where(_ACTIVE, _DUE_MS <= _NOW).order_by(_DUE_MS)
_SKIP: Final = "UPDATE monitors SET skipped = skipped + 1 WHERE monitor_id = ?"
_MOVE: Final = "UPDATE monitors SET next_due_ms = ? WHERE number = ?"


class Punctuality:
    """How long after its slot each probe of a monitor began, and how many slots were skipped, in this process."""

    def __init__(self) -> None:
        #: Probes by lag: up to each of `LAGS_S`, and above.
        self.counts = [0] * (len(LAGS_S) + 1)
        self.sum_s = 0.0
        self.skipped = 0

    def began(self, lag_ms: int) -> None:
        """Count a probe."""
        lag_s = max(lag_ms, 0) / 1000
        self.counts[bisect_left(LAGS_S, lag_s)] += 1
        self.sum_s += lag_s


class Schedule(Records):
    """Says which monitors are due."""

    #: When :meth:`take_due_monitors` was called last, ms since 1970 UTC.
    _looked_ms = math.inf

    @cached_property
    def punctuality(self) -> Punctuality:
        """Of the slots that this store has handed out."""
        return Punctuality()

    @cached_property
    def _plans(self) -> AdaptivePlans:
        return AdaptivePlans(self._engine)

    def observe_slots(self, results: Iterable[Probed]) -> None:
        """What was found in slots that this store has handed out, and filed: adaptive schedules go by it."""
        self._plans.observe(results)

    def skip_slots(self, requests: Sequence[ProbeRequest], *, lease: Lease) -> None:
        """Count slots as skipped that were handed out, and that nobody took.

        Raises:
            LeaseLost: another process is the writer.
        """
        with writing(self._engine) as connection:
            lease.fence(connection)
            change_monitors_alone(connection)
            run(connection, _SKIP, sorted((request.monitor_id,) for request in requests))
        self._plans.skip(requests)
        self.punctuality.skipped += len(requests)

    def forget_slots(self) -> None:
        """What was handed out and not observed is lost."""
        self._plans.forget()

    def take_due_monitors(self, limit: int, *, lease: Lease, ahead_ms: int = 0) -> list[tuple[int, Monitor]]:
        """Up to `limit` monitors of all owners that are due, with their targets' ids, the longest due first.

        With `ahead_ms` also those that will be due so soon; and none before one is due in half that time, so that it is
        many in a transaction.

        `next_due_ms` of each is the slot that it is for; in the database it is the next one. Slots that were missed,
        and those under planned maintenance, are passed over.

        Raises:
            LeaseLost: another process is the writer.
        """
        now_ms = self._clock()
        set_back = now_ms < self._looked_ms  # or this is the first look
        with self._engine.connect() as connection:
            first_ms = connection.scalar(_FIRST_DUE)
        if now_ms < self._looked_ms < math.inf:
            self._plans.set_back(now_ms)
        planned = self._plans.turn(now_ms)
        if not (set_back or planned) and (first_ms is None or first_ms > now_ms + ahead_ms // 2):
            self._looked_ms = now_ms
            return []
        with writing(self._engine) as connection:
            lease.fence(connection)
            change_monitors_alone(connection)
            now = {"now_ms": now_ms}
            self._plans.write(connection)
            if set_back:
                connection.execute(_PULL_BACK, now)
            skipped = connection.scalar(_COUNT_MISSED, now)
            if skipped:
                connection.execute(_SKIP_MISSED, now)
            rows = connection.execute(_DUE.limit(limit), {"now_ms": now_ms + ahead_ms}).all()
            due = [(row, monitor_of(row, self._vault)) for row in rows]
            probed = {row.number for row, m in due if not any(window.covers(m.next_due_ms) for window in m.maintenance)}
            moves = [
                (next_slot(m.target.key, m.interval_s, max(now_ms, m.next_due_ms)), row.number)
                for row, m in due
                if m.schedule is None
            ]
            run(connection, _MOVE, moves)
            adaptive = [row for row in rows if row.pool_number is not None]
            handed_out = self._plans.hand_out(connection, adaptive, probed, now_ms)
            handed_out.write(connection)
        self._looked_ms = now_ms
        self._plans.written(now_ms)
        self._plans.begin(handed_out)
        self.punctuality.skipped += int(skipped or 0) + handed_out.skipped
        return [
            (row.target_id, m) for row, m in due if row.number in (probed if m.schedule is None else handed_out.numbers)
        ]
