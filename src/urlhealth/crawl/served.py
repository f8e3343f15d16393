"""What was served and is on its way to the files, many answers in one row; and what its targets have been since.

Any process adds batches, from any machine. The writer moves them into the offline store (`prediction/served_files.py`)
in numbered segments, and deletes them in the transaction that publishes a segment.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from urlhealth.crawl.database import chunks, run, snapshot, writing
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.records import LOOKUP_CHUNK, Records
from urlhealth.crawl.schema import pipeline_positions, served_batches, spells, targets
from urlhealth.errors import LeaseLost

Ints = npt.NDArray[np.int64]

#: Number of the last segment that is in the files.
_NAME: Final = "served"
_MOVED: Final = sa.select(pipeline_positions.c.probe_id).where(pipeline_positions.c.name == _NAME)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedBatch:
    """Predictions that were written together. `first_ms` and `last_ms`: when the first and the last were served."""

    first_ms: int
    last_ms: int
    #: How many they are.
    rows: int
    #: As `prediction/served_batch.py` packs them.
    data: bytes | memoryview


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitingBatch:
    """A batch that is not in the files yet, by its id."""

    id: int
    first_ms: int
    last_ms: int
    rows: int


class Waiting:
    """What is not in the files yet, and the last segment that is, as of one instant."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        #: Number of the last segment in the files; 0 before the first.
        self.position: int = connection.scalar(_MOVED) or 0
        columns = [served_batches.c[name] for name in ("id", "first_ms", "last_ms", "rows")]
        rows = connection.execute(sa.select(*columns).order_by(served_batches.c.id))
        #: In the order in which they came.
        self.batches: Sequence[WaitingBatch] = [WaitingBatch(**row._mapping) for row in rows]

    def data(self, batch: WaitingBatch) -> bytes:
        """What a batch holds."""
        query = sa.select(served_batches.c.data).where(served_batches.c.id == batch.id)
        return bytes(self._connection.execute(query).scalar_one())


@dataclass(frozen=True, kw_only=True, eq=False)
class Lives:
    """The spells of some targets, by target and start; see :mod:`urlhealth.crawl.spells`. Each of shape (m,)."""

    target_id: Ints
    start_ms: Ints
    last_ms: Ints
    end_ms: Ints
    up: npt.NDArray[np.bool_]


class ServedBatches(Records):
    """Batches of predictions in the database, and what the log is joined with."""

    def add(self, batches: Iterable[ServedBatch]) -> None:
        """Store batches, in one transaction; by any process."""
        rows = [(batch.first_ms, batch.last_ms, batch.rows, batch.data) for batch in batches]
        if rows:
            with writing(self._engine) as connection:
                run(connection, "INSERT INTO served_batches (first_ms, last_ms, rows, data) VALUES (?, ?, ?, ?)", rows)

    @contextmanager
    def waiting(self) -> Iterator[Waiting]:
        """What is not in the files yet; within the block its data can be read, whoever moves it meanwhile."""
        with snapshot(self._engine) as connection:
            yield Waiting(connection)

    @contextmanager
    def moved(self, position: int, ids: Sequence[int], *, segment: int, lease: Lease) -> Iterator[None]:
        """A transaction of the writer, in which these batches become the segment after `position`, and are deleted.

        Raises:
            LeaseLost: another process is the writer, or has moved some meanwhile.
        """
        with writing(self._engine) as connection:
            lease.fence(connection)
            if (connection.scalar(_MOVED) or 0) != position:
                raise LeaseLost("another process has moved the log meanwhile: nothing was published")
            for some in chunks(ids, LOOKUP_CHUNK):
                connection.execute(sa.delete(served_batches).where(served_batches.c.id.in_(some)))
            yield
            run(
                connection,
                "INSERT INTO pipeline_positions (name, probe_id) VALUES (?, ?) "
                "ON CONFLICT (name) DO UPDATE SET probe_id = excluded.probe_id",
                [(_NAME, segment)],
            )

    def target_ids(self, keys: Sequence[str], *, owner: str) -> Mapping[str, int]:
        """The ids of an owner's targets, of those of these keys that there are."""
        query = sa.select(targets.c.key, targets.c.id).where(targets.c.owner == owner)
        found: dict[str, int] = {}
        with self._engine.connect() as connection:
            for some in chunks(keys, LOOKUP_CHUNK):
                found |= {row.key: row.id for row in connection.execute(query.where(targets.c.key.in_(some)))}
        return found

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
