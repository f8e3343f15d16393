"""What a URL has been like: read from spells and roll-ups, so that a year costs no more than a day."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from urlhealth.crawl.records import (
    RESULT_COLUMNS,
    TARGET_COLUMNS,
    Records,
    cursor_number,
    page,
    result_of,
    target_of,
)
from urlhealth.crawl.schema import probes, rollups, spells, targets
from urlhealth.errors import InvalidRequest, NotFound
from urlhealth.probing.urls import parse_target
from urlhealth.vocabulary import LOCAL_OWNER, Health, Outcome, Page, ProbeResult, Target

if TYPE_CHECKING:
    from urlhealth.crawl.sums import Summary

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS

#: Times up to now of which the share is told that a URL was up.
UPTIMES_MS: Final = {"24h": DAY_MS, "7d": 7 * DAY_MS, "30d": 30 * DAY_MS, "1y": 365 * DAY_MS}

#: Points that a history may have.
MAX_POINTS: Final = 1_000
#: Longest history in steps of less than an hour, which are read from the probes; and of less than a day, which are read
#: from roll-ups by hour.
_FROM_PROBES_MS: Final = DAY_MS
_FROM_HOURS_MS: Final = 62 * DAY_MS
_LAST_MS: Final = 221_845_392_000_000
#: Steps of a history for which none was given: the shortest that makes no more points than `_GOOD_POINTS`.
_STEPS_MS: Final = (60_000, 300_000, 900_000, HOUR_MS, 3 * HOUR_MS, 6 * HOUR_MS, DAY_MS, 7 * DAY_MS, 30 * DAY_MS)
_GOOD_POINTS: Final = 400
_SPELL: Final = (
    spells.c.start_ms,
    spells.c.last_ms,
    spells.c.end_ms,
    spells.c.up,
    spells.c.outcome,
    spells.c.phase,
)
_SUMS: Final = (
    rollups.c.start_ms,
    rollups.c.counts,
    rollups.c.sum_us,
    rollups.c.squares_high,
    rollups.c.squares_low,
)
#: Verdicts newer than the last spell that are looked at.
_TAIL: Final = 1_000


@dataclass(frozen=True, kw_only=True, slots=True)
class UrlState:
    """What a URL is now, and how much of the time it was up."""

    target: Target
    #: Whether it is up or down; unknown where that is known no longer, or never was.
    health: Health
    #: Since when it is that, as far as is known. None if unknown.
    since_ms: int | None
    #: By the names in `UPTIMES_MS`: the share (0 to 1) of the time in which the state was known; None if it never was.
    uptime: dict[str, float | None]
    #: The newest verdict; None if it was never probed with its own options.
    last: ProbeResult | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A step of a history."""

    start_ms: int
    summary: "Summary"


@dataclass(frozen=True, kw_only=True, slots=True)
class UrlHistory:
    """A URL's verdicts from one instant to another, in steps. Steps without verdicts are left out."""

    target: Target
    from_ms: int
    to_ms: int
    step_ms: int
    points: list[Point]


@dataclass(frozen=True, kw_only=True, slots=True)
class Incident:
    """A time in which a URL was seen failing."""

    #: The first failing verdict.
    start_ms: int
    #: The next good one, or when the state was known no longer; None if it lasts.
    end_ms: int | None
    #: Of the first failing verdict.
    outcome: Outcome
    #: Where that failed: dns, connect, tls, first_byte, body or answer (it said that something is wrong); None where
    #: that is not known.
    phase: str | None


class Reading(Records):
    """Reads what is known of one URL. A named target of it is meant where a name is given.

    Every method raises `InvalidRequest` if the URL is none, and `NotFound` if the owner has no such target.
    """

    def url_state(self, url: str, *, known_for_s: float, name: str | None = None, owner: str = LOCAL_OWNER) -> UrlState:
        """What it is now. `known_for_s`: how long a state is known after the verdict that showed it."""
        now_ms, known_for_ms = self._clock(), round(known_for_s * 1000)
        with self._engine.connect() as connection:
            target_id, target = find_target(connection, url, name, owner)
            newest = connection.execute(_spells_of(target_id).order_by(spells.c.start_ms.desc()).limit(1)).one_or_none()
            mine = sa.and_(probes.c.target_id == target_id, probes.c.feeds_features)
            last = connection.execute(
                sa.select(sa.literal(target.key), *RESULT_COLUMNS).where(mine).order_by(probes.c.ts_ms.desc()).limit(1)
            ).one_or_none()
            # What the writer has not come to yet.
            tail = sa.select(probes.c.ts_ms, probes.c.outcome).where(mine)
            if newest is not None:
                tail = tail.where(probes.c.ts_ms > newest.last_ms)
            following = connection.execute(tail.order_by(probes.c.ts_ms).limit(_TAIL)).all()
            uptime = _uptime(connection, target_id, now_ms)
        health, since_ms, last_ms = Health.UNKNOWN, 0, 0
        if newest is not None:
            health, since_ms, last_ms = Health.UP if newest.up else Health.DOWN, newest.start_ms, newest.last_ms
        for ts_ms, outcome in following:
            found = Outcome(outcome).health
            if found is not Health.UNKNOWN:
                if found is not health or ts_ms - last_ms > known_for_ms:
                    health, since_ms = found, ts_ms
                last_ms = ts_ms
        known = health is not Health.UNKNOWN and now_ms - last_ms <= known_for_ms
        return UrlState(
            target=target,
            health=health if known else Health.UNKNOWN,
            since_ms=since_ms if known else None,
            uptime=uptime,
            last=None if last is None else result_of(last),
        )

    def url_history(
        self,
        url: str,
        *,
        from_ms: int | None = None,
        to_ms: int | None = None,
        step_ms: int | None = None,
        name: str | None = None,
        owner: str = LOCAL_OWNER,
    ) -> UrlHistory:
        """Its verdicts in steps that are whole: `from_ms` is taken back to the start of one, `to_ms` on to the end.

        Without `from_ms` it is the last day before `to_ms`, and without that, now. Steps begin at multiples of their
        length since 1970 UTC.

        Raises:
            InvalidRequest: the step and the time do not fit together.
        """
        to_ms = self._clock() if to_ms is None else to_ms
        from_ms = to_ms - DAY_MS if from_ms is None else from_ms
        step_ms = _step_for(to_ms - from_ms) if step_ms is None else step_ms
        from_ms, to_ms = from_ms - from_ms % step_ms, to_ms + -to_ms % step_ms
        _check_steps(from_ms, to_ms, step_ms)
        with self._engine.connect() as connection:
            target_id, target = find_target(connection, url, name, owner)
            points = _points(connection, target_id, from_ms, to_ms, step_ms)
        return UrlHistory(target=target, from_ms=from_ms, to_ms=to_ms, step_ms=step_ms, points=points)

    def url_incidents(
        self, url: str, *, limit: int, cursor: str | None = None, name: str | None = None, owner: str = LOCAL_OWNER
    ) -> Page[Incident]:
        """Its incidents, newest first."""
        now_ms = self._clock()
        with self._engine.connect() as connection:
            target_id, _ = find_target(connection, url, name, owner)
            kind = f"incidents-{target_id}"
            before_ms = 2**62 if cursor is None else cursor_number(kind, cursor)
            query = _spells_of(target_id).where(sa.not_(spells.c.up), spells.c.start_ms < before_ms)
            rows = connection.execute(query.order_by(spells.c.start_ms.desc()).limit(limit + 1)).all()
        return page(rows, limit, kind, lambda row: _incident_of(row, now_ms))


def find_target(connection: sa.Connection, url: str, name: str | None, owner: str) -> tuple[int, Target]:
    """Id and target of an owner.

    Raises:
        InvalidRequest: the URL is none.
        NotFound: the owner has no such target.
    """
    key = parse_target(url, name=name).key
    query = sa.select(targets.c.id, *TARGET_COLUMNS).where(targets.c.owner == owner, targets.c.key == key)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound(f"nothing is known of {key}: it was never probed here, or was erased")
    return row.id, target_of(row)


def _spells_of(target_id: int) -> sa.Select[Any]:
    return sa.select(*_SPELL).where(spells.c.target_id == target_id)


def _incident_of(row: Any, now_ms: int) -> Incident:
    return Incident(
        start_ms=row.start_ms,
        end_ms=row.end_ms if row.end_ms <= now_ms else None,
        outcome=Outcome(row.outcome),
        phase=row.phase,
    )


def _uptime(connection: sa.Connection, target_id: int, now_ms: int) -> dict[str, float | None]:
    """The shares in `UPTIMES_MS`, summed by the database."""

    def overlap_ms(from_ms: int) -> sa.ColumnElement[int]:
        start = sa.case((spells.c.start_ms < from_ms, from_ms), else_=spells.c.start_ms)
        end = sa.case((spells.c.end_ms > now_ms, now_ms), else_=spells.c.end_ms)
        return sa.func.sum(sa.case((end > start, end - start), else_=0))

    from_ms = now_ms - max(UPTIMES_MS.values())
    mine = spells.c.target_id == target_id
    # Spells do not overlap: before `from_ms` only the last one may reach into it.
    reaching = sa.select(sa.func.max(spells.c.start_ms)).where(mine, spells.c.start_ms <= from_ms).scalar_subquery()
    query = sa.select(spells.c.up, *(overlap_ms(now_ms - ms) for ms in UPTIMES_MS.values()))
    query = query.where(mine, spells.c.start_ms >= sa.func.coalesce(reaching, from_ms)).group_by(spells.c.up)
    sums = {bool(up): [int(value) for value in values] for up, *values in connection.execute(query)}
    nothing = [0] * len(UPTIMES_MS)
    both = zip(UPTIMES_MS, sums.get(True, nothing), sums.get(False, nothing), strict=True)
    return {name: up / (up + down) if up + down else None for name, up, down in both}


def _step_for(length_ms: int) -> int:
    """A step for a history of this length."""
    fitting = (step for step in _STEPS_MS if length_ms <= min(step * _GOOD_POINTS, _longest_ms(step)))
    return next(fitting, _STEPS_MS[-1])


def _longest_ms(step_ms: int) -> int:
    """The longest history in such steps: bounds what is read for it."""
    if step_ms % HOUR_MS:
        return _FROM_PROBES_MS
    return _FROM_HOURS_MS if step_ms % DAY_MS else _LAST_MS


def _check_steps(from_ms: int, to_ms: int, step_ms: int) -> None:
    if not 0 <= from_ms < to_ms:
        raise InvalidRequest("from is not before to, or before 1970")
    if to_ms > _LAST_MS:
        raise InvalidRequest("to is after the year 9000")
    points = (to_ms - from_ms) // step_ms
    if points > MAX_POINTS:
        raise InvalidRequest(f"that makes {points} points; {MAX_POINTS} are the most: make the step longer")
    longest_ms = _longest_ms(step_ms)
    if to_ms - from_ms > longest_ms + 2 * step_ms:  # what was added to make steps whole
        raise InvalidRequest(
            "a step that is not whole hours is for a day at most: give a step of 1h, 2h, ..."
            if longest_ms == _FROM_PROBES_MS
            else "a step that is not whole days is for two months at most: give a step of 1d, 2d, ..."
        )


def _points(connection: sa.Connection, target_id: int, from_ms: int, to_ms: int, step_ms: int) -> list[Point]:
    # Imported here, because a crawl reads no history: numpy alone takes a tenth of a second.
    import numpy as np

    from urlhealth.crawl.rollups import DAY_S, HOUR_S, arrays, verdicts_of
    from urlhealth.crawl.sums import Sums

    n = (to_ms - from_ms) // step_ms
    if step_ms % HOUR_MS:
        verdicts = verdicts_of(connection, target_id, f"ts_ms >= {from_ms:d} AND ts_ms < {to_ms:d}")
        if not verdicts:
            return []
        _, ts_ms, outcome, total_ms = arrays(verdicts)
        sums = Sums.of_verdicts((ts_ms - from_ms) // step_ms, n, outcome, total_ms)
    else:
        span_s = HOUR_S if step_ms % DAY_MS else DAY_S
        query = sa.select(*_SUMS).where(
            rollups.c.target_id == target_id,
            rollups.c.span_s == span_s,
            rollups.c.start_ms >= from_ms,
            rollups.c.start_ms < to_ms,
        )
        rows = connection.execute(query).all()
        start_ms = np.array([row[0] for row in rows], np.int64)
        sums = Sums.of_stored((start_ms - from_ms) // step_ms, n, [row[1:] for row in rows])
    points = (Point(start_ms=from_ms + i * step_ms, summary=summary) for i, summary in enumerate(sums.summaries()))
    return [point for point in points if point.summary.outcomes]
