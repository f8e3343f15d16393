"""Stored verdicts become roll-ups by hour and day, and spells: what a small query reads instead of a year of probes.

The writer takes verdicts in the order in which they were stored, from a position that is saved in the same transaction
as what was made of them; so each is counted once, whatever crashes. Roll-ups are sums, to which a verdict is added
however late it comes. Spells go on from a target's last one; for a verdict that is older, the target's spells from
there on are made anew from its probes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import sqlalchemy as sa

from urlhealth.crawl.database import chunks, run, writing
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.records import LOOKUP_CHUNK
from urlhealth.crawl.schema import pipeline_positions, probes, targets
from urlhealth.crawl.spells import Observed, Spells, failed_phase, spells
from urlhealth.crawl.sums import Ints, Sums
from urlhealth.errors import LeaseLost
from urlhealth.vocabulary import Health, Outcome

if TYPE_CHECKING:
    import numpy.typing as npt

#: Verdicts that one step takes at most: bounds the time for which it holds the database's write lock.
BATCH: Final = 10_000
HOUR_S: Final = 3_600
DAY_S: Final = 86_400

_NAME: Final = "rollups"
_POSITION: Final = sa.select(pipeline_positions.c.probe_id).where(pipeline_positions.c.name == _NAME)
_LOOKUP: Final = 2_000
_FOREVER: Final = 2**62
_OK: Final = Outcome.OK.value
_NAMES: Final = [outcome.value for outcome in Outcome]
_CODES: Final = {name: code for code, name in enumerate(_NAMES)}
_KNOWN: Final = [outcome.value for outcome in Outcome if outcome.health is not Health.UNKNOWN]
#: What of a verdict is needed.
VERDICT: Final = "target_id, ts_ms, outcome, total_ms, dns_ms, connect_ms, tls_ms, first_byte_ms"

_UPSERT_ROLLUP: Final = (
    "INSERT INTO rollups (target_id, span_s, start_ms, counts, sum_us, squares_high, squares_low) "
    "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (target_id, span_s, start_ms) DO UPDATE SET counts = excluded.counts, "
    "sum_us = excluded.sum_us, squares_high = excluded.squares_high, squares_low = excluded.squares_low"
)
_UPSERT_SPELL: Final = (
    "INSERT INTO spells (target_id, start_ms, last_ms, end_ms, up, outcome, phase) VALUES (?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (target_id, start_ms) DO UPDATE SET last_ms = excluded.last_ms, end_ms = excluded.end_ms"
)


class Rollups:
    """Keeps roll-ups and spells up with the stored verdicts. Only the process that holds the lease may step."""

    def __init__(self, engine: sa.Engine, *, known_for_s: float) -> None:
        self._engine = engine
        self._known_for_ms = round(known_for_s * 1000)

    def position(self) -> int:
        """Id of the last probe that is in the roll-ups; 0 for none."""
        with self._engine.connect() as connection:
            return connection.scalar(_POSITION) or 0

    def step(self, *, lease: Lease) -> int:
        """Take the next verdicts; returns how many there were, 0 for none.

        Raises:
            LeaseLost: another process is the writer; nothing was written.
        """
        with self._engine.connect() as connection:
            position = connection.scalar(_POSITION) or 0
            query = (
                f"SELECT id, {VERDICT} FROM probes WHERE id > {position:d} AND {feeds_features(connection)} "
                f"ORDER BY id LIMIT {BATCH}"
            )
            rows = connection.exec_driver_sql(query).all()
        if not rows:
            return 0
        with writing(self._engine) as connection:
            lease.fence(connection)
            if (connection.scalar(_POSITION) or 0) != position:
                raise LeaseLost("another process has made the roll-ups meanwhile: nothing was written")
            targets = _urls(connection, {row[1] for row in rows})
            verdicts = [row[1:] for row in rows if row[1] in targets]  # an erased target's are left out
            self._add_rollups(connection, verdicts)
            self._add_spells(connection, verdicts, targets, until=rows[-1][0])
            run(
                connection,
                "INSERT INTO pipeline_positions (name, probe_id) VALUES (?, ?) "
                "ON CONFLICT (name) DO UPDATE SET probe_id = excluded.probe_id",
                [(_NAME, rows[-1][0])],
            )
        return len(rows)

    @staticmethod
    def _add_rollups(connection: sa.Connection, verdicts: Sequence[Any]) -> None:
        if not verdicts:
            return
        target_id, ts_ms, outcome, total_ms = arrays(verdicts)
        for span_s in (HOUR_S, DAY_S):
            starts = ts_ms - ts_ms % (span_s * 1000)
            order = np.lexsort((starts, target_id))
            first = (np.diff(target_id[order], prepend=-1) != 0) | (np.diff(starts[order], prepend=-1) != 0)
            row = np.empty(len(order), np.int64)
            row[order] = np.cumsum(first) - 1
            wanted = list(zip(target_id[order][first].tolist(), starts[order][first].tolist(), strict=True))
            new = Sums.of_verdicts(row, len(wanted), outcome, total_ms)
            numbers, stored = [], []
            for number, *values in stored_rollups(connection, span_s, wanted):
                numbers.append(number)
                stored.append(values)
            total = new + Sums.of_stored(np.array(numbers, np.int64), len(wanted), stored)
            rows = [
                (target, span_s, start, *sums) for (target, start), sums in zip(wanted, total.stored(), strict=True)
            ]
            run(connection, _UPSERT_ROLLUP, rows)

    def _add_spells(
        self, connection: sa.Connection, verdicts: Sequence[Any], urls: Mapping[int, str], *, until: int
    ) -> None:
        """Carry on the targets' spells; `until` is the id of the last verdict's probe."""
        known = [row for row in verdicts if row[2] in _KNOWN]
        first_ms: dict[int, int] = {}
        for target_id, ts_ms, *_ in known:
            first_ms[target_id] = min(ts_ms, first_ms.get(target_id, ts_ms))
        continued = _last_spells(connection, dict.fromkeys(first_ms, _FOREVER))
        late = {i: ms for i, ms in first_ms.items() if i in continued and ms <= continued[i].last_ms}
        if late:
            known = [row for row in known if row[0] not in late]
            before = _last_spells(connection, late)
            for target_id, from_ms in late.items():
                del continued[target_id]
                again = verdicts_of(connection, target_id, f"ts_ms >= {from_ms:d} AND id <= {until:d}")
                known += [row for row in again if row[2] in _KNOWN]
                if target_id in before:
                    spell = before[target_id]
                    last_ms = _last_known(connection, target_id, spell.start_ms, from_ms)
                    continued[target_id] = spell._replace(last_ms=last_ms or min(spell.last_ms, from_ms))
            run(connection, "DELETE FROM spells WHERE target_id = ? AND start_ms >= ?", list(late.items()))
        observed = [(s.target_id, s.last_ms, _CODES[s.outcome], s.phase, s.start_ms) for s in continued.values()]
        observed += [(row[0], row[1], _CODES[row[2]], phase_of(row, urls[row[0]]), row[1]) for row in known]
        found = spells(Observed.of(observed), known_for_ms=self._known_for_ms)
        run(connection, _UPSERT_SPELL, _rows_of(found))


def arrays(verdicts: Sequence[Any]) -> tuple[Ints, Ints, Ints, "npt.NDArray[np.float64]"]:
    """Target ids, instants, outcome codes and durations (NaN where there is none) of rows of `VERDICT`."""
    target_id, ts_ms, outcome, total_ms, *_ = zip(*verdicts, strict=True)
    return (
        np.array(target_id, np.int64),
        np.array(ts_ms, np.int64),
        np.array([_CODES[name] for name in outcome], np.int64),
        np.array(total_ms, np.float64),
    )


def phase_of(verdict: Sequence[Any], url: str) -> str | None:
    """The phase that failed, of a row of `VERDICT`."""
    if verdict[2] == _OK:
        return None
    return failed_phase(Outcome(verdict[2]), secure=url.startswith("https:"), durations=verdict[4:8])


def stored_rollups(
    connection: sa.Connection, span_s: int, wanted: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, bytes, int, int, int]]:
    """Those of the roll-ups (target id, start) that there are: position among them, and what `Sums` takes."""
    for some in chunks(list(enumerate(wanted)), _LOOKUP):
        values = ", ".join(f"({number:d}, {target_id:d}, {start_ms:d})" for number, (target_id, start_ms) in some)
        # The list first, in this order: PostgreSQL and SQLite then find each of its rows by the primary key.
        query = (
            "SELECT w.column1, r.counts, r.sum_us, r.squares_high, r.squares_low "
            f"FROM (VALUES {values}) AS w CROSS JOIN rollups AS r "
            f"WHERE r.target_id = w.column2 AND r.span_s = {span_s:d} AND r.start_ms = w.column3"
        )
        yield from connection.exec_driver_sql(query)


class _Spell(NamedTuple):
    target_id: int
    start_ms: int
    last_ms: int
    outcome: str
    phase: str | None


def _last_spells(connection: sa.Connection, before_ms: Mapping[int, int]) -> dict[int, _Spell]:
    """The last spell of each target that began before the instant."""
    found: dict[int, _Spell] = {}
    for some in chunks(list(before_ms.items()), _LOOKUP):
        values = ", ".join(f"({target_id:d}, {ms:d})" for target_id, ms in some)
        query = (
            "SELECT s.target_id, s.start_ms, s.last_ms, s.outcome, s.phase "
            f"FROM (VALUES {values}) AS w CROSS JOIN spells AS s WHERE s.target_id = w.column1 AND s.start_ms = "
            "(SELECT max(start_ms) FROM spells WHERE target_id = w.column1 AND start_ms < w.column2)"
        )
        found |= {row[0]: _Spell(*row) for row in connection.exec_driver_sql(query)}
    return found


def verdicts_of(connection: sa.Connection, target_id: int, condition: str) -> Sequence[Any]:
    """Rows of `VERDICT` of a target, by time."""
    query = f"SELECT {VERDICT} FROM probes WHERE target_id = {target_id:d} AND {feeds_features(connection)}"
    return connection.exec_driver_sql(f"{query} AND {condition} ORDER BY ts_ms, id").all()


def _last_known(connection: sa.Connection, target_id: int, start_ms: int, before_ms: int) -> int | None:
    """The last of a target's verdicts in [start_ms, before_ms) that says up or down."""
    query = sa.select(probes.c.ts_ms).where(
        probes.c.target_id == target_id,
        probes.c.ts_ms >= start_ms,
        probes.c.ts_ms < before_ms,
        probes.c.feeds_features,
        probes.c.outcome.in_(_KNOWN),
    )
    return connection.scalar(query.order_by(probes.c.ts_ms.desc()).limit(1))


def feeds_features(connection: sa.Connection) -> str:
    """The condition, as the partial index over verdicts has it."""
    return "feeds_features" if connection.dialect.name == "postgresql" else "feeds_features = 1"


def _urls(connection: sa.Connection, target_ids: Iterable[int]) -> dict[int, str]:
    """Keys of those targets that there are."""
    query = sa.select(targets.c.id, targets.c.key)
    return {
        target_id: key
        for some in chunks(list(target_ids), LOOKUP_CHUNK)
        for target_id, key in connection.execute(query.where(targets.c.id.in_(some)))
    }


def _rows_of(found: Spells) -> list[tuple[Any, ...]]:
    names = [_NAMES[code] for code in found.outcome.tolist()]
    columns = (found.target_id, found.start_ms, found.ts_ms, found.end_ms, found.up)
    return list(zip(*(column.tolist() for column in columns), names, found.phase.tolist(), strict=True))
