"""Monitors: targets that are probed again and again."""

import math
from hashlib import blake2b
from typing import Any, Final

import sqlalchemy as sa

from urlhealth.crawl.database import writing
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.records import TARGET_COLUMNS, Records, cursor_number, new_id, page, remember, target_of
from urlhealth.crawl.schema import monitors, targets
from urlhealth.errors import InvalidRequest, NotFound
from urlhealth.probing.urls import parse_target
from urlhealth.vocabulary import LOCAL_OWNER, Monitor, Page

MIN_INTERVAL_S: Final = 10
MAX_INTERVAL_S: Final = 366 * 86_400

_MONITORS = sa.select(monitors, *TARGET_COLUMNS).join(targets, targets.c.id == monitors.c.target_id)


def next_slot(key: str, interval_s: int, now_ms: int) -> int:
    """The first instant after `now_ms` at which the target is due, ms since 1970 UTC.

    Slots are one interval apart, shifted by a hash of the target's key, so that the targets are spread evenly over the
    interval whenever they were added. A slot that was missed is skipped: the next one is always after now.
    """
    interval_ms = interval_s * 1000
    shift = int.from_bytes(blake2b(key.encode(), digest_size=8).digest()) % interval_ms
    return now_ms + 1 + (shift - now_ms - 1) % interval_ms


class MonitorStore(Records):
    """Creates, lists and deletes monitors, and says which are due."""

    #: When :meth:`take_due_monitors` was called last, ms since 1970 UTC.
    _looked_ms = math.inf

    def create_monitor(
        self, url: str, *, interval_s: int, group: str | None = None, owner: str = LOCAL_OWNER
    ) -> Monitor:
        """Store a new monitor; it is first due within one interval. A given `group` becomes the target's.

        Raises:
            InvalidRequest: the URL is none, the interval is out of range, or the URL has a monitor already.
        """
        if not MIN_INTERVAL_S <= interval_s <= MAX_INTERVAL_S:
            raise InvalidRequest(f"interval_s is {interval_s}; give {MIN_INTERVAL_S} to {MAX_INTERVAL_S} seconds")
        target = parse_target(url, group=group)
        now_ms = self._clock()
        with writing(self._engine) as connection:
            target_id = remember(connection, owner, [target], now_ms=now_ms)[target.key]
            own = sa.and_(monitors.c.owner == owner, monitors.c.target_id == target_id)
            existing = connection.scalar(sa.select(monitors.c.monitor_id).where(own))
            if existing is not None:
                raise InvalidRequest(
                    f"{target.key} has the monitor {existing} already: delete it, or leave it as it is"
                )
            if group is not None:
                connection.execute(sa.update(targets).where(targets.c.id == target_id).values(group=group))
            row = {
                "monitor_id": new_id(self._clock),
                "owner": owner,
                "target_id": target_id,
                "interval_s": interval_s,
                "created_ms": now_ms,
                "next_due_ms": next_slot(target.key, interval_s, now_ms),
            }
            (number,) = connection.execute(sa.insert(monitors).values(row)).inserted_primary_key or (0,)
            return _monitor_of(connection.execute(_MONITORS.where(monitors.c.number == number)).one())

    def monitors(self, *, limit: int, cursor: str | None = None, owner: str = LOCAL_OWNER) -> Page[Monitor]:
        """Monitors, oldest first."""
        after = 0 if cursor is None else cursor_number("monitors", cursor)
        query = _MONITORS.where(monitors.c.owner == owner, monitors.c.number > after)
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(monitors.c.number).limit(limit + 1)).all()
        return page(rows, limit, "monitors", _monitor_of)

    def monitor(self, monitor_id: str, *, owner: str = LOCAL_OWNER) -> Monitor:
        """The monitor.

        Raises:
            NotFound: the owner has none of this id.
        """
        mine = _MONITORS.where(monitors.c.monitor_id == monitor_id, monitors.c.owner == owner)
        with self._engine.connect() as connection:
            row = connection.execute(mine).one_or_none()
        if row is None:
            raise _unknown(monitor_id)
        return _monitor_of(row)

    def delete_monitor(self, monitor_id: str, *, owner: str = LOCAL_OWNER) -> None:
        """Delete the monitor; its probes stay.

        Raises:
            NotFound: the owner has none of this id.
        """
        mine = sa.and_(monitors.c.monitor_id == monitor_id, monitors.c.owner == owner)
        with writing(self._engine) as connection:
            if connection.execute(sa.delete(monitors).where(mine)).rowcount == 0:
                raise _unknown(monitor_id)

    def due_monitors(self, limit: int) -> list[tuple[int, Monitor]]:
        """Up to `limit` monitors of all owners that are due now, with their targets' ids, the longest due first."""
        due = _MONITORS.where(sa.not_(monitors.c.paused), monitors.c.next_due_ms <= self._clock())
        with self._engine.connect() as connection:
            rows = connection.execute(due.order_by(monitors.c.next_due_ms).limit(limit))
            return [(row.target_id, _monitor_of(row)) for row in rows]

    def take_due_monitors(self, limit: int, *, lease: Lease) -> list[tuple[int, Monitor]]:
        """:meth:`due_monitors`, with each moved to its next slot first: a slot is handed out once, or skipped.

        Raises:
            LeaseLost: another process is the writer.
        """
        self._heal(lease)
        due = self.due_monitors(limit)
        if due:
            now_ms = self._clock()
            update = (
                sa.update(monitors)
                .where(monitors.c.monitor_id == sa.bindparam("due_id"))
                .values(next_due_ms=sa.bindparam("next_ms"))
            )
            slots = [{"due_id": m.monitor_id, "next_ms": next_slot(m.target.key, m.interval_s, now_ms)} for _, m in due]
            with writing(self._engine) as connection:
                lease.fence(connection)
                connection.execute(update, slots)
        return due

    def _heal(self, lease: Lease) -> None:
        """Make due what lies more than an interval ahead: the clock was wrong when that was written.

        It reads all monitors, so it is done at the first look, and whenever the clock has stepped back since the last.
        """
        now_ms = self._clock()
        if now_ms < self._looked_ms:
            too_far = monitors.c.next_due_ms > now_ms + 1000 * sa.cast(monitors.c.interval_s, sa.BigInteger)
            with writing(self._engine) as connection:
                lease.fence(connection)
                connection.execute(sa.update(monitors).where(too_far).values(next_due_ms=now_ms))
        self._looked_ms = now_ms


def _unknown(monitor_id: str) -> NotFound:
    return NotFound(f"there is no monitor {monitor_id[:80]!r}: it was deleted, or never created here")


def _monitor_of(row: Any) -> Monitor:
    return Monitor(
        monitor_id=row.monitor_id,
        owner=row.owner,
        target=target_of(row),
        interval_s=row.interval_s,
        paused=row.paused,
        created_ms=row.created_ms,
        next_due_ms=row.next_due_ms,
    )
