"""The newest forecast of every target, kept by the writer and read by pages, lists and alerts."""

import base64
import binascii
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
import sqlalchemy as sa

from urlhealth.crawl.database import insert, run, writing
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.records import TARGET_COLUMNS, Records, target_of
from urlhealth.crawl.schema import current_predictions, monitors, probes, targets
from urlhealth.errors import InvalidCursor
from urlhealth.features.catalog import VECTOR, describe
from urlhealth.vocabulary import HORIZONS, LOCAL_OWNER, Freshness, Health, Page, Prediction, Reason, Target

_COLUMN: Final = {feature.name: column for column, feature in enumerate(VECTOR)}
#: Hours that a trail has.
TRAIL_H: Final = 24
_HOUR_MS: Final = 3_600_000
_STORED: Final = ("horizon", "probability", "probability_at_end", "observed_ms", "model", "model_version")


@dataclass(frozen=True, kw_only=True)
class StoredTarget:
    """A target with the number and owner of its row."""

    target_id: int
    owner: str
    target: Target


@dataclass(frozen=True, kw_only=True)
class CurrentPrediction:
    """A forecast as it was made at `scored_ms`; its age is that of now."""

    prediction: Prediction
    scored_ms: int
    #: Whether a part of the target's history was simulated.
    simulated: bool
    #: The last forecast of each hour up to the newest, oldest first, to 1/254; None where there was none.
    trail: tuple[float | None, ...] = ()


class CurrentPredictions(Records):
    """One row a target and horizon. A target of which nothing is known has none."""

    def targets_after(self, target_id: int, *, limit: int) -> list[StoredTarget]:
        """The next targets of all owners, the longest known first."""
        with self._engine.connect() as connection:
            return _stored(connection, targets.c.id > target_id, limit=limit)

    def probed(self, *, after: int, until: int, limit: int) -> tuple[list[StoredTarget], int]:
        """The targets of the next `limit` verdicts with an id above `after` and up to `until`; and how far that is."""
        query = sa.select(probes.c.id, probes.c.target_id).where(probes.c.feeds_features)
        query = query.where(probes.c.id > after, probes.c.id <= until).order_by(probes.c.id).limit(limit)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
            if not rows:
                return [], max(after, until)
            found = _stored(connection, targets.c.id.in_({row.target_id for row in rows}), limit=limit)
        return found, rows[-1].id

    def save(
        self, scored: Sequence[StoredTarget], predictions: Sequence[Prediction], *, scored_ms: int, lease: Lease
    ) -> None:
        """Replace the forecasts of these targets; `predictions`: for each target in turn, one a horizon.

        Raises:
            LeaseLost: another process is the writer; nothing was written.
        """
        items = [item for item in scored for _ in HORIZONS]
        with writing(self._engine) as connection:
            lease.fence(connection)
            there = set(connection.scalars(sa.select(targets.c.id).where(targets.c.id.in_(_ids(scored)))))
            before = _before(connection, scored)
            rows, unknown = [], []
            for item, prediction in zip(items, predictions, strict=True):
                if prediction.probability is None:
                    unknown.append((item.target_id,))
                elif item.target_id in there:  # else it was deleted meanwhile
                    old = before.get((item.target_id, prediction.horizon))
                    rows.append(
                        {**_row(item, prediction, scored_ms), "trail": _trail(old, prediction.probability, scored_ms)}
                    )
            if rows:
                upsert = insert(connection, current_predictions)
                changed = {name: upsert.excluded[name] for name in rows[0] if name not in ("target_id", "horizon")}
                upsert = upsert.on_conflict_do_update(index_elements=["target_id", "horizon"], set_=changed)
                connection.execute(upsert, rows)
            if unknown:
                run(connection, "DELETE FROM current_predictions WHERE target_id = ?", unknown)

    def riskiest(
        self,
        *,
        horizon: str,
        limit: int,
        cursor: str | None = None,
        group: str | None = None,
        tag: str | None = None,
        health: Health | None = None,
        owner: str = LOCAL_OWNER,
    ) -> Page[CurrentPrediction]:
        """Targets by how likely they are to fail within the horizon, riskiest first.

        Args:
            group: those of this group only.
            tag: those whose monitor has this tag only.
            health: those that are so now only.

        Raises:
            InvalidCursor: the cursor is none of this list.
        """
        table = current_predictions
        order = table.c.probability, table.c.target_id
        query = sa.select(table, *TARGET_COLUMNS, targets.c.simulated).join(targets, targets.c.id == table.c.target_id)
        query = query.where(table.c.owner == owner, table.c.horizon == horizon)
        if group is not None:
            query = query.where(table.c.group == group)
        if health is not None:
            query = query.where(table.c.health == health.value)
        if tag is not None:
            # SQLite's LIKE would not tell capitals from small letters.
            tagged = sa.func.replace(monitors.c.tags, f"\n{tag}\n", "") != monitors.c.tags
            query = query.join(monitors, monitors.c.target_id == table.c.target_id).where(tagged)
        if cursor is not None:
            query = query.where(sa.tuple_(*order) < sa.tuple_(*map(sa.literal, _parsed(horizon, cursor))))
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(*(column.desc() for column in order)).limit(limit + 1)).all()
        following = _cursor(horizon, rows[limit - 1]) if len(rows) > limit else None
        now_ms = self._clock()
        return Page(items=[_current(row, now_ms) for row in rows[:limit]], next_cursor=following)


def _stored(connection: sa.Connection, where: sa.ColumnElement[bool], *, limit: int) -> list[StoredTarget]:
    query = sa.select(targets.c.id, targets.c.owner, *TARGET_COLUMNS).where(where).order_by(targets.c.id).limit(limit)
    return [StoredTarget(target_id=row.id, owner=row.owner, target=target_of(row)) for row in connection.execute(query)]


def _ids(stored: Iterable[StoredTarget]) -> list[int]:
    return [item.target_id for item in stored]


def _row(item: StoredTarget, prediction: Prediction, scored_ms: int) -> dict[str, Any]:
    reasons = [(reason.feature, reason.value, reason.contribution) for reason in prediction.reasons]
    return {
        **{name: getattr(prediction, name) for name in _STORED},
        "target_id": item.target_id,
        "owner": item.owner,
        "group": item.target.group,
        "status": prediction.status.value,
        "health": prediction.health.value,
        "reasons": orjson.dumps(reasons).decode(),  # NaN becomes null
        "scored_ms": scored_ms,
    }


def _before(connection: sa.Connection, scored: Sequence[StoredTarget]) -> dict[tuple[int, str], Any]:
    table = current_predictions
    query = sa.select(table.c.target_id, table.c.horizon, table.c.scored_ms, table.c.trail)
    return {
        (row.target_id, row.horizon): row
        for row in connection.execute(query.where(table.c.target_id.in_(_ids(scored))))
    }


def _trail(old: Any, probability: float, scored_ms: int) -> bytes:
    """The old trail, moved on to the hour of the new forecast, which is its end."""
    was, passed = b"", 0
    if old is not None:
        was, passed = old.trail or b"", scored_ms // _HOUR_MS - old.scored_ms // _HOUR_MS
    moved = (bytes(TRAIL_H) + was + bytes(min(max(passed, 0), TRAIL_H)))[-TRAIL_H:]
    return moved[:-1] + bytes([1 + round(254 * probability)])


def _current(row: Any, now_ms: int) -> CurrentPrediction:
    target = target_of(row)
    return CurrentPrediction(
        prediction=Prediction(
            **{name: getattr(row, name) for name in _STORED},
            sent_url=target.url,
            target=target.key,
            status=Freshness(row.status),
            health=Health(row.health),
            age_s=(now_ms - row.observed_ms) / 1000,
            reasons=tuple(_reasons(row.reasons)),
        ),
        scored_ms=row.scored_ms,
        simulated=row.simulated,
        trail=tuple(None if not byte else (byte - 1) / 254 for byte in row.trail or b""),
    )


def _reasons(stored: str) -> Iterable[Reason]:
    for feature, number, contribution in orjson.loads(stored):
        if feature in _COLUMN:  # else it is of another version of this program
            value = math.nan if number is None else number
            text = describe(_COLUMN[feature], value)
            yield Reason(feature=feature, value=value, contribution=contribution, text=text)


def _cursor(horizon: str, row: Any) -> str:
    return base64.urlsafe_b64encode(f"risk:{horizon}:{row.probability!r}:{row.target_id}".encode()).decode()


def _parsed(horizon: str, cursor: str) -> tuple[float, int]:
    try:
        kind, of, probability, target_id = base64.b64decode(cursor.encode(), b"-_", validate=True).decode().split(":")
        place = float(probability), int(target_id)
        if (kind, of) == ("risk", horizon) and 0 <= place[0] <= 1 and 0 <= place[1] < 2**63:
            return place
    except (ValueError, binascii.Error):
        pass
    raise InvalidCursor(f"cursor {cursor[:80]!r} is none of this list: pass the next_cursor of its last page, or none")
