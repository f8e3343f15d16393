"""The log of what was served, read back beside what its targets have been since."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from urlhealth.crawl.database import chunks, run, select, writing
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.records import LOOKUP_CHUNK, Records
from urlhealth.crawl.schema import pipeline_positions, predictions, spells
from urlhealth.errors import LeaseLost
from urlhealth.vocabulary import LOCAL_OWNER

Ints = npt.NDArray[np.int64]

#: Predictions that are read at most; of more, every k-th.
MOST: Final = 50_000

#: Id of the last prediction that is in the files.
_NAME: Final = "served"
_COPIED: Final = sa.select(pipeline_positions.c.probe_id).where(pipeline_positions.c.name == _NAME)

_SAMPLE: Final = (
    "SELECT targets.id, predictions.ts_ms, horizon, model_version, probability FROM predictions "
    "JOIN targets ON targets.owner = predictions.owner AND targets.key = predictions.target "
    "WHERE predictions.owner = ? AND predictions.ts_ms >= ? AND predictions.ts_ms < ? "
    "AND probability IS NOT NULL AND predictions.id - predictions.id / ? * ? = 0"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """Logged predictions, or each `every`-th of them. Every array has the shape (n,)."""

    every: int
    target_id: Ints
    ts_ms: Ints
    horizon: npt.NDArray[np.str_]
    model_version: npt.NDArray[np.str_]
    probability: npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Lives:
    """The spells of some targets, by target and start; see :mod:`urlhealth.crawl.spells`. Each of shape (m,)."""

    target_id: Ints
    start_ms: Ints
    last_ms: Ints
    end_ms: Ints
    up: npt.NDArray[np.bool_]


class ServedLog(Records):
    """Reads what `CrawlStore.log_predictions` wrote."""

    def answers(self, *, from_ms: int, to_ms: int, owner: str = LOCAL_OWNER, most: int = MOST) -> Answers:
        """The predictions that were served in [from, to) and named a probability; a sample if they are too many."""
        with self._engine.connect() as connection:
            every = self._step(connection, from_ms, to_ms, owner, most)
            rows = select(connection, _SAMPLE, (owner, from_ms, to_ms, every, every))
        columns: list[Any] = list(zip(*rows, strict=True)) if rows else [()] * 5
        target_id, ts_ms, horizon, version, probability = columns
        return Answers(
            every=every,
            target_id=np.array(target_id, np.int64),
            ts_ms=np.array(ts_ms, np.int64),
            horizon=np.array(horizon, np.str_),
            model_version=np.array(version, np.str_),
            probability=np.array(probability, np.float64),
        )

    def lives(self, target_ids: Ints, *, from_ms: int) -> Lives:
        """The spells of these targets that were not over by `from_ms`."""
        query = sa.select(spells.c.target_id, spells.c.start_ms, spells.c.last_ms, spells.c.end_ms, spells.c.up)
        rows: list[Any] = []
        with self._engine.connect() as connection:
            for some in chunks(target_ids.tolist(), LOOKUP_CHUNK):
                rows += connection.execute(query.where(spells.c.target_id.in_(some), spells.c.end_ms >= from_ms))
        target_id, start_ms, last_ms, end_ms, up = np.array([tuple(row) for row in rows], np.int64).reshape(-1, 5).T
        order = np.lexsort((start_ms, target_id))
        return Lives(
            target_id=target_id[order],
            start_ms=start_ms[order],
            last_ms=last_ms[order],
            end_ms=end_ms[order],
            up=up[order] != 0,
        )

    def not_copied(self, *, before_ms: int, most: int) -> tuple[int, Sequence[Any]]:
        """Where the copying is, and the rows that follow, up to one that was not served before `before_ms`."""
        with self._engine.connect() as connection:
            position = connection.scalar(_COPIED) or 0
            query = sa.select(predictions).where(predictions.c.id > position).order_by(predictions.c.id).limit(most)
            rows = connection.execute(query).all()
        column = [*predictions.c].index(predictions.c.ts_ms)
        return position, list(takewhile(lambda row: row[column] < before_ms, rows))

    @contextmanager
    def copied(self, position: int, last_id: int, *, lease: Lease) -> Iterator[None]:
        """A transaction of the writer, in which rows after `position` are published: up to `last_id`, at its end.

        Raises:
            LeaseLost: another process is the writer, or has copied meanwhile.
        """
        with writing(self._engine) as connection:
            lease.fence(connection)
            if (connection.scalar(_COPIED) or 0) != position:
                raise LeaseLost("another process has copied the log meanwhile: nothing was published")
            yield
            run(
                connection,
                "INSERT INTO pipeline_positions (name, probe_id) VALUES (?, ?) "
                "ON CONFLICT (name) DO UPDATE SET probe_id = excluded.probe_id",
                [(_NAME, last_id)],
            )

    @staticmethod
    def _step(connection: sa.Connection, from_ms: int, to_ms: int, owner: str, most: int) -> int:
        """Of how many predictions one is read. Ids grow with time: how many there are is told from the outermost."""
        table = predictions
        within = sa.select(table.c.id).where(table.c.owner == owner, table.c.ts_ms >= from_ms, table.c.ts_ms < to_ms)
        first = connection.scalar(within.order_by(table.c.ts_ms, table.c.id).limit(1))
        last = connection.scalar(within.order_by(table.c.ts_ms.desc(), table.c.id.desc()).limit(1))
        if first is None or last is None:
            return 1
        every = -(-(abs(last - first) + 1) // most)
        # An answer's predictions stand in a row, three horizons a URL: no step may fall into that rhythm.
        while every > 1 and any(every % divisor == 0 for divisor in (2, 3, 5)):
            every += 1
        return int(every)
