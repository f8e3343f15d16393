"""What pages show of many targets at once. Nothing here reads more than a page, or an index."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from urlhealth.crawl.monitors import MONITORS, monitor_of
from urlhealth.crawl.reading import find_target
from urlhealth.crawl.records import (
    RESULT_COLUMNS,
    TARGET_COLUMNS,
    Records,
    cursor_number,
    page,
    result_of,
    target_of,
)
from urlhealth.crawl.schema import current_predictions, monitors, probes, spells, targets, task_urls, tasks
from urlhealth.crawl.vault import Vault
from urlhealth.errors import NotFound
from urlhealth.vocabulary import (
    LOCAL_OWNER,
    Freshness,
    Health,
    Maintenance,
    Monitor,
    Outcome,
    Page,
    ProbeResult,
    Target,
    TaskResult,
)

#: Counts over all targets are as old as this at most.
_COUNTS_KEPT_MS: Final = 10_000
#: Probes, and time, over which their pace is told.
_PACE: Final = 1_000
_PACE_MS: Final = 60_000
_FAILURES: Final = tuple(outcome.value for outcome in Outcome if outcome.health is Health.DOWN)


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Targets by what is known of them."""

    up: int
    down: int
    unknown: int
    #: Those of which what is known is too old.
    stale: int

    @property
    def total(self) -> int:
        return self.up + self.down + self.unknown


@dataclass(frozen=True, kw_only=True, slots=True)
class MonitorRow:
    """A monitor, and what its target is now."""

    monitor: Monitor
    target_id: int
    #: By the newest forecast; unknown without one.
    health: Health
    #: Of failing in 24 hours; None without a forecast.
    probability: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outage:
    """A time in which a monitored target was seen failing."""

    target_id: int
    target: Target
    start_ms: int
    end_ms: int | None
    outcome: Outcome


class Overview(Records):
    """Reads for pages."""

    def __init__(self, engine: sa.Engine, **more: Any) -> None:
        super().__init__(engine, **more)
        self._lock = threading.Lock()
        self._counts: dict[str, tuple[int, Counts]] = {}

    def counts(self, *, owner: str = LOCAL_OWNER) -> Counts:
        """Targets that have a forecast, by health; as of some seconds ago."""
        now_ms = self._clock()
        with self._lock:
            known = self._counts.get(owner)
            if known is not None and 0 <= now_ms - known[0] < _COUNTS_KEPT_MS:
                return known[1]
            counts = self._counted(owner)
            self._counts[owner] = now_ms, counts
            return counts

    def _counted(self, owner: str) -> Counts:
        table = current_predictions
        query = sa.select(table.c.health, table.c.status, sa.func.count().label("n"))
        query = query.where(table.c.owner == owner, table.c.horizon == sa.literal_column("'24h'")).group_by(
            table.c.health, table.c.status
        )
        by_health = dict.fromkeys(Health, 0)
        stale = 0
        with self._engine.connect() as connection:
            for row in connection.execute(query):
                by_health[Health(row.health)] += row.n
                stale += row.n if row.status == Freshness.STALE.value else 0
        return Counts(
            up=by_health[Health.UP], down=by_health[Health.DOWN], unknown=by_health[Health.UNKNOWN], stale=stale
        )

    def probes_per_s(self) -> float:
        """How many probes began in a second, in the last minute, or since the newest so many began if that is less."""
        now_ms = self._clock()
        newest = sa.select(sa.func.max(probes.c.id)).scalar_subquery()
        query = sa.select(probes.c.ts_ms).where(probes.c.id > newest - _PACE, probes.c.ts_ms > now_ms - _PACE_MS)
        with self._engine.connect() as connection:
            begun = connection.scalars(query).all()
        span_ms = now_ms - min(begun) if len(begun) == _PACE else _PACE_MS
        return len(begun) * 1000 / max(span_ms, 1)

    def target_id(self, url: str, *, name: str | None = None, owner: str = LOCAL_OWNER) -> int:
        """The number of a target; raises `NotFound`."""
        with self._engine.connect() as connection:
            return find_target(connection, url, name, owner)[0]

    def target(self, target_id: int, *, owner: str = LOCAL_OWNER) -> Target:
        """The target with a number; raises `NotFound`."""
        query = sa.select(*TARGET_COLUMNS).where(targets.c.id == target_id, targets.c.owner == owner)
        with self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise NotFound(f"there is no target {target_id}")
        return target_of(row)

    def some_targets(self, *, limit: int, owner: str = LOCAL_OWNER) -> list[Target]:
        """Targets without a name, spread evenly over all that there are."""
        with self._engine.connect() as connection:
            newest = connection.scalar(sa.select(sa.func.max(targets.c.id)).where(targets.c.owner == owner)) or 0
            query = sa.select(*TARGET_COLUMNS).where(targets.c.owner == owner, targets.c.name.is_(None))
            query = query.where(targets.c.id % (newest // limit + 1) == 0) if newest > limit else query
            return [target_of(row) for row in connection.execute(query.limit(limit))]

    def last_failure(self, target_id: int) -> ProbeResult | None:
        """The newest failing verdict, with its attempts; None if none is stored."""
        query = sa.select(sa.literal(""), *RESULT_COLUMNS).where(
            probes.c.target_id == target_id, probes.c.feeds_features, probes.c.outcome.in_(_FAILURES)
        )
        with self._engine.connect() as connection:
            row = connection.execute(query.order_by(probes.c.ts_ms.desc()).limit(1)).one_or_none()
        return None if row is None else result_of(row)

    def recent(self, target_id: int, *, limit: int) -> list[ProbeResult]:
        """The newest verdicts, oldest first."""
        query = sa.select(sa.literal(""), *RESULT_COLUMNS).where(
            probes.c.target_id == target_id, probes.c.feeds_features
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(probes.c.ts_ms.desc()).limit(limit)).all()
        return [result_of(row) for row in reversed(rows)]

    def results(
        self, task_id: str, *, outcome: str | None, limit: int, cursor: str | None = None, owner: str = LOCAL_OWNER
    ) -> Page[TaskResult]:
        """Those results of a task that are there, or those of one outcome; raises `NotFound`."""
        after = -1 if cursor is None else cursor_number("filtered", cursor)
        query = (
            sa.select(task_urls.c.position, task_urls.c.sent_url, targets.c.key, *RESULT_COLUMNS)
            .join(tasks, tasks.c.number == task_urls.c.task_number)
            .join(targets, targets.c.id == task_urls.c.target_id)
            .join(probes, probes.c.id == task_urls.c.probe_id)
            .where(tasks.c.task_id == task_id, tasks.c.owner == owner, task_urls.c.position > after)
        )
        if outcome:
            query = query.where(probes.c.outcome == outcome)
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(task_urls.c.position).limit(limit + 1)).all()
        return page(
            rows,
            limit,
            "filtered",
            lambda row: TaskResult(position=row.position, sent_url=row.sent_url, result=result_of(row)),
        )

    def monitor_ids(
        self, *, search: str | None = None, tag: str | None = None, owner: str = LOCAL_OWNER
    ) -> Sequence[str]:
        """Of all monitors that :meth:`monitors` would list."""
        query = sa.select(monitors.c.monitor_id).join(targets, targets.c.id == monitors.c.target_id)
        with self._engine.connect() as connection:
            return connection.scalars(_found(query, search, tag, owner)).all()

    def monitors(
        self,
        *,
        search: str | None = None,
        tag: str | None = None,
        limit: int,
        cursor: str | None = None,
        owner: str = LOCAL_OWNER,
    ) -> Page[MonitorRow]:
        """Monitors, oldest first, with what their targets are; those whose URL has a text in it, or that have a tag."""
        table = current_predictions
        forecast = sa.and_(table.c.target_id == monitors.c.target_id, table.c.horizon == "24h")
        query = MONITORS.add_columns(table.c.health, table.c.status, table.c.probability).outerjoin(table, forecast)
        query = _found(query, search, tag, owner).where(
            monitors.c.number > (0 if cursor is None else cursor_number("monitors", cursor))
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(monitors.c.number).limit(limit + 1)).all()
        return page(rows, limit, "monitors", lambda row: _monitor_row(row, self._vault))

    def outages(self, target_ids: Sequence[int], *, since_ms: int, limit: int) -> list[Outage]:
        """Outages of these targets that began or lasted since, newest first."""
        now_ms = self._clock()
        query = (
            sa.select(spells, *TARGET_COLUMNS)
            .join(targets, targets.c.id == spells.c.target_id)
            .where(spells.c.target_id.in_(target_ids), sa.not_(spells.c.up), spells.c.end_ms >= since_ms)
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(spells.c.start_ms.desc()).limit(limit)).all()
        return [
            Outage(
                target_id=row.target_id,
                target=target_of(row),
                start_ms=row.start_ms,
                end_ms=row.end_ms if row.end_ms <= now_ms else None,
                outcome=Outcome(row.outcome),
            )
            for row in rows
        ]


def _found(query: Any, search: str | None, tag: str | None, owner: str) -> Any:
    query = query.where(monitors.c.owner == owner)
    if search:
        query = query.where(targets.c.key.contains(search, autoescape=True))
    if tag:
        query = query.where(sa.func.replace(monitors.c.tags, f"\n{tag}\n", "") != monitors.c.tags)
    return query


def _monitor_row(row: Any, vault: Vault) -> MonitorRow:
    return MonitorRow(
        monitor=monitor_of(row, vault),
        target_id=row.target_id,
        health=Health.UNKNOWN if row.health is None else Health(row.health),
        probability=row.probability,
    )


def upcoming(window: Maintenance, now_ms: int, *, within_ms: int) -> tuple[int, int] | None:
    """Start and end of the window's next time that is not over, if it begins soon enough."""
    start_ms, end_ms = window.start_ms, window.end_ms
    if window.every_ms is not None and end_ms <= now_ms:
        passed = (now_ms - end_ms) // window.every_ms + 1
        start_ms, end_ms = start_ms + passed * window.every_ms, end_ms + passed * window.every_ms
    return (start_ms, end_ms) if now_ms < end_ms and start_ms <= now_ms + within_ms else None
