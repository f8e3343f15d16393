"""What is older than it is kept for is deleted, a little at a time, so that others write in between."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from urlhealth.crawl.database import writing
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.records import Records
from urlhealth.crawl.schema import pipeline_positions, probes, rollups, spells, targets, tasks

#: Targets that are looked at, and probes that are deleted, in one transaction.
_TARGETS: Final = 50
_PROBES: Final = 5_000
#: Pause after each.
_PAUSE_S: Final = 0.01
#: Roll-ups of this length are those by hour, longer ones those by day.
_HOUR_S: Final = 3_600


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """From when on things are kept, ms since 1970 UTC; 0 keeps all."""

    probes_ms: int = 0
    hours_ms: int = 0
    #: Roll-ups by day, and spells, thus incidents.
    days_ms: int = 0


class Retention(Records):
    """Deletes what is too old."""

    def drop_old(self, kept: Kept, *, lease: Lease) -> Counter[str]:
        """Delete what is older; returns how much of what.

        Probes stay while they are in no roll-up or feature yet, and while the task is there whose results they are.

        Raises:
            LeaseLost: another process is the writer.
        """
        dropped: Counter[str] = Counter()
        after = 0
        while True:
            query = sa.select(targets.c.id).where(targets.c.id > after).order_by(targets.c.id).limit(_TARGETS)
            with self._engine.connect() as connection:
                some = connection.scalars(query).all()
            if not some:
                return dropped
            after = some[-1]
            while self._drop_probes(some, kept.probes_ms, lease, dropped) == _PROBES:
                time.sleep(_PAUSE_S)
            self._drop_sums(some, kept, lease, dropped)

    def _drop_probes(self, some: Sequence[int], before_ms: int, lease: Lease, dropped: Counter[str]) -> int:
        with self._engine.connect() as connection:
            positions: dict[str, int] = dict(connection.execute(sa.select(pipeline_positions)).all())
            seen = min(positions.get(name, 0) for name in ("features", "rollups"))
            task = sa.exists().where(tasks.c.number == probes.c.task_number)
            old = sa.and_(probes.c.target_id.in_(some), probes.c.ts_ms < before_ms, probes.c.id <= seen, ~task)
            numbers = connection.scalars(sa.select(probes.c.id).where(old).limit(_PROBES)).all()
        if numbers:
            with writing(self._engine) as connection:
                lease.fence(connection)
                connection.execute(sa.delete(probes).where(probes.c.id.in_(numbers)))
        dropped["probes"] += len(numbers)
        return len(numbers)

    def _drop_sums(self, some: Sequence[int], kept: Kept, lease: Lease, dropped: Counter[str]) -> None:
        mine = rollups.c.target_id.in_(some)
        conditions = {
            "roll-ups by hour": (
                rollups,
                sa.and_(mine, rollups.c.span_s == _HOUR_S, rollups.c.start_ms < kept.hours_ms),
            ),
            "roll-ups by day": (rollups, sa.and_(mine, rollups.c.span_s > _HOUR_S, rollups.c.start_ms < kept.days_ms)),
            "spells": (spells, sa.and_(spells.c.target_id.in_(some), spells.c.end_ms < kept.days_ms)),
        }
        for what, (table, old) in conditions.items():
            with self._engine.connect() as connection:
                found = connection.scalar(sa.select(sa.exists().where(old)))
            if found:
                with writing(self._engine) as connection:
                    lease.fence(connection)
                    dropped[what] += connection.execute(sa.delete(table).where(old)).rowcount
                time.sleep(_PAUSE_S)
