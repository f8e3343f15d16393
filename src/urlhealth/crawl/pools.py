"""What is told of pools: monitors that share the budget of an adaptive schedule."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from urlhealth.crawl.adaptive import COUNTS, PoolReport
from urlhealth.crawl.monitors import MONITORS, monitor_of, schedule_of
from urlhealth.crawl.records import Records, cursor_number, page
from urlhealth.crawl.schema import monitors, polling_pools
from urlhealth.errors import NotFound
from urlhealth.vocabulary import LOCAL_OWNER, AdaptiveSchedule, Monitor, Page


@dataclass(frozen=True, kw_only=True, slots=True)
class PollingPool:
    """Monitors of one adaptive schedule, and where their budget went."""

    number: int
    schedule: AdaptiveSchedule
    #: Monitors that are not paused.
    monitors: int
    #: None before the writer has made one.
    report: PoolReport | None

    @property
    def budget_per_h(self) -> float:
        """Probes per hour that they share."""
        return self.monitors * self.schedule.budget_per_url_hour


class PoolReading(Records):
    """Reads pools, in whatever process."""

    def pools(self, *, limit: int, cursor: str | None = None, owner: str = LOCAL_OWNER) -> Page[PollingPool]:
        """The pools that have a monitor which is not paused, oldest first."""
        after = 0 if cursor is None else cursor_number("pools", cursor)
        counts = COUNTS.subquery()
        query = (
            sa.select(polling_pools, counts.c.active)
            .join(counts, counts.c.pool_number == polling_pools.c.number)
            .where(polling_pools.c.owner == owner, polling_pools.c.number > after)
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(polling_pools.c.number).limit(limit + 1)).all()
        return page(rows, limit, "pools", _pool_of)

    def pool_monitors(self, number: int, *, limit: int, owner: str = LOCAL_OWNER) -> list[Monitor]:
        """The monitors of a pool that were probed most, with the probes that each has had.

        Raises:
            NotFound: the owner has no such pool.
        """
        with self._engine.connect() as connection:
            there = sa.select(polling_pools.c.number).where(
                polling_pools.c.number == number, polling_pools.c.owner == owner
            )
            if connection.scalar(there) is None:
                raise NotFound(f"there is no polling pool {number}: GET /api/v1/polling lists them")
            query = MONITORS.where(monitors.c.pool_number == number, sa.not_(monitors.c.paused))
            rows = connection.execute(query.order_by(monitors.c.probes.desc(), monitors.c.number).limit(limit)).all()
        return [monitor_of(row, self._vault) for row in rows]


def _pool_of(row: Any) -> PollingPool:
    return PollingPool(
        number=row.number,
        schedule=schedule_of(row.schedule),
        monitors=row.active,
        report=None if row.report is None else PoolReport.of_json(row.report),
    )
