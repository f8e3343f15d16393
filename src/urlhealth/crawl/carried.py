"""What the feature pipeline keeps between its batches: each entity's carried state, and how far it has read."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import sqlalchemy as sa

from urlhealth.crawl.database import chunks, insert, run, writing
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.records import LOOKUP_CHUNK
from urlhealth.crawl.schema import carried_states, pipeline_positions
from urlhealth.errors import LeaseLost

#: The position when what is in the feature stores counts no more: all is to be folded anew.
REBUILD: Final = -1

_NAME: Final = "features"
#: Bounds the memory that a statement's parameters take.
_ROWS_A_STATEMENT: Final = 2_000
#: Counted: what was computed from states of before an erasure would bring back what was erased. So are requests for a
#: rebuild: one that is under way began before them.
_ERASURES: Final = "erasures"

_UPSERT: Final = (
    "INSERT INTO carried_states (kind, key, state) VALUES (?, ?, ?) "
    "ON CONFLICT (kind, key) DO UPDATE SET state = excluded.state"
)


class CarriedStore:
    """Carried states by kind and key, and the position that they are of, always saved together.

    States are computed from those at a position. If another process has moved the position since this thread asked
    for it, :meth:`save` refuses what was computed from old states, even if this process is the writer again by then.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        # A thread's own, because others ask for the position too, only to show it.
        self._seen = threading.local()

    def position(self) -> int:
        """Id of the last probe that is in the carried states, 0 for none; REBUILD if a rebuild is due.

        So it is in a new database: what the feature stores hold then is of another one.
        """
        with self._engine.connect() as connection:
            self._seen.marks = marks = _marks(connection)
        return marks[0]

    def load(self, kind: str, keys: Sequence[str]) -> dict[str, bytes]:
        """The states of one kind, by key; keys without a state are absent."""
        states: dict[str, bytes] = {}
        with self._engine.connect() as connection:
            for some in chunks(keys, LOOKUP_CHUNK):
                query = sa.select(carried_states.c.key, carried_states.c.state).where(
                    carried_states.c.kind == kind, carried_states.c.key.in_(some)
                )
                states.update(connection.execute(query).all())
        return states

    def save(
        self,
        position: int,
        states: Mapping[str, Mapping[str, bytes]],
        *,
        lease: Lease,
        publish: Callable[[], None] | None = None,
    ) -> None:
        """Replace the position and the given states (by kind and key) in one transaction.

        Args:
            publish: called within it, when it is certain that this process is the writer, and stays it until the end.

        Raises:
            LeaseLost: another process is the writer, or was meanwhile; nothing was written or published.
        """
        with writing(self._engine) as connection:
            self._fence(connection, lease)
            if publish is not None:
                publish()
            _write_states(connection, states)
            self._write_position(connection, position)
            marks = _marks(connection)
        self._seen.marks = marks

    def clear(self, *, lease: Lease) -> None:
        """Make the position REBUILD. Any process may, also while another one is the writer.

        That one is refused to save what it has computed before, be it from states or for a rebuild.
        """
        with writing(self._engine) as connection:
            lease.lock(connection)
            self._write_position(connection, REBUILD)
            count_erasure(connection)

    def forget(self, *, lease: Lease) -> None:
        """At position REBUILD, where states count for nothing: delete them, some in a transaction.

        Raises:
            LeaseLost: as with :meth:`save`.
        """
        some = sa.select(carried_states.c.kind, carried_states.c.key).limit(_ROWS_A_STATEMENT)
        mine = sa.tuple_(carried_states.c.kind, carried_states.c.key).in_(some)
        deleted = 1
        while deleted:
            with writing(self._engine) as connection:
                self._fence(connection, lease)
                deleted = connection.execute(sa.delete(carried_states).where(mine)).rowcount

    def add(self, states: Mapping[str, Mapping[str, bytes]], *, lease: Lease) -> None:
        """At position REBUILD, where states count for nothing: add some for the position that will be saved.

        Others can write between the transactions that this takes.

        Raises:
            LeaseLost: as with :meth:`save`.
        """
        for kind, by_key in states.items():
            for some in chunks([*by_key.items()], _ROWS_A_STATEMENT):
                with writing(self._engine) as connection:
                    self._fence(connection, lease)
                    _write_states(connection, {kind: dict(some)})

    def _fence(self, connection: sa.Connection, lease: Lease) -> None:
        lease.fence(connection)
        stored = _marks(connection)
        seen = getattr(self._seen, "marks", stored)
        if stored != seen:
            raise LeaseLost(
                f"the carried states were at position {seen[0]} and are at {stored[0]} now: another process was the "
                "writer meanwhile, or a rebuild was asked for, or a URL erased, and nothing was written"
            )

    def _write_position(self, connection: sa.Connection, position: int) -> None:
        upsert = insert(connection, pipeline_positions).values(name=_NAME, probe_id=position)
        connection.execute(upsert.on_conflict_do_update(index_elements=["name"], set_={"probe_id": position}))


def _write_states(connection: sa.Connection, states: Mapping[str, Mapping[str, bytes]]) -> None:
    rows = [(kind, key, state) for kind, by_key in states.items() for key, state in by_key.items()]
    for some in chunks(rows, _ROWS_A_STATEMENT):
        run(connection, _UPSERT, some)


def count_erasure(connection: sa.Connection) -> None:
    """In a transaction that erases states: what was computed from them is refused from then on."""
    upsert = insert(connection, pipeline_positions).values(name=_ERASURES, probe_id=1)
    more = pipeline_positions.c.probe_id + 1
    connection.execute(upsert.on_conflict_do_update(index_elements=["name"], set_={"probe_id": more}))


def _marks(connection: sa.Connection) -> tuple[int, int]:
    """The position, and how many erasures there were."""
    query = sa.select(pipeline_positions).where(pipeline_positions.c.name.in_([_NAME, _ERASURES]))
    marks: dict[str, int] = dict(connection.execute(query).all())
    return marks.get(_NAME, REBUILD), marks.get(_ERASURES, 0)
