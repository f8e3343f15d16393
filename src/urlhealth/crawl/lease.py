"""Who writes: one process at a time dispatches probes and runs the pipeline, the one that holds the lease."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy as sa

from urlhealth.crawl.database import insert, writing
from urlhealth.crawl.schema import leases
from urlhealth.errors import LeaseLost, StoreUnavailable
from urlhealth.vocabulary import Clock, system_clock

#: How often a lease is renewed in the time that it lasts.
RENEWALS: Final = 4

log = logging.getLogger(__name__)


class Lease:
    """A right that expires unless it is renewed, kept in a row of the database that the writes go to.

    `held` is what this process believes. :meth:`fence` is what counts: inside the transaction that writes, it reads and
    locks the row, so that nothing is written after another process has taken over.
    """

    def __init__(
        self, engine: sa.Engine, *, name: str = "writer", holder: str, ttl_s: float, clock: Clock = system_clock
    ) -> None:
        """`holder` names this process and no other; `ttl_s` is how long the lease lasts without renewal."""
        self.name = name
        self.holder = holder
        self._engine = engine
        self._ttl_ms = round(ttl_s * 1000)
        self._clock = clock
        self._expires_ms = 0

    @property
    def held(self) -> bool:
        """Whether this process took or renewed the lease, and that has not expired since."""
        return self._clock() < self._expires_ms

    def acquire(self) -> bool:
        """Take the lease if it is free or expired, or renew it; False if another process holds it."""
        row = sa.select(leases.c.holder, leases.c.expires_ms).where(leases.c.name == self.name)
        with self._engine.connect() as connection:
            current = connection.execute(row).one_or_none()
        if current is not None and not self._may_take(current):
            self._expires_ms = 0
            return False  # without waiting for the holder's transactions
        with writing(self._engine) as connection:
            self.lock(connection)
            taken = self._may_take(connection.execute(row).one())
            expires_ms = self._clock() + self._ttl_ms if taken else 0
            if taken:
                update = sa.update(leases).where(leases.c.name == self.name)
                connection.execute(update.values(holder=self.holder, expires_ms=expires_ms))
        self._expires_ms = expires_ms
        return taken

    def release(self) -> None:
        """Let another process take the lease at once; nothing happens if this one does not hold it."""
        self._expires_ms = 0
        mine = sa.and_(leases.c.name == self.name, leases.c.holder == self.holder)
        with writing(self._engine) as connection:
            connection.execute(sa.update(leases).where(mine).values(holder="", expires_ms=0))

    @contextmanager
    def kept(self) -> Iterator[bool]:
        """Take the lease, renew it in a thread while the body works, and give it back; False if another one has it.

        A process that holds it already keeps it, and renews it as it did before.
        """
        if self.held:
            yield True
            return
        if not self.acquire():
            yield False
            return
        done = threading.Event()
        thread = threading.Thread(target=self._renew_until, args=(done,), name=f"lease-{self.name}", daemon=True)
        thread.start()
        try:
            yield True
        finally:
            done.set()
            thread.join()
            self.release()

    def lock(self, connection: sa.Connection) -> None:
        """In a transaction that writes: let all who :meth:`fence` wait until it ends, whoever holds the lease."""
        free = {"name": self.name, "holder": "", "expires_ms": 0}
        connection.execute(insert(connection, leases).values(free).on_conflict_do_nothing())
        connection.execute(sa.select(leases.c.name).where(leases.c.name == self.name).with_for_update())

    def fence(self, connection: sa.Connection) -> None:
        """In a transaction that writes, before it does: make sure that no other process has taken over.

        A lease that has expired without being taken still counts: until this transaction ends nobody can take it.

        Raises:
            LeaseLost: another process is the writer, or nobody is since :meth:`release`.
        """
        row = sa.select(leases.c.holder).where(leases.c.name == self.name).with_for_update()
        holder = connection.scalar(row)
        if holder != self.holder:
            self._expires_ms = 0
            raise LeaseLost(
                f"the lease {self.name!r} is held by {holder or 'nobody'}, not by {self.holder}: nothing was written"
            )

    def _renew_until(self, done: threading.Event) -> None:
        while not done.wait(self._ttl_ms / 1000 / RENEWALS):
            try:
                self.acquire()
            except StoreUnavailable as error:
                log.warning("the lease %r is not renewed: %s", self.name, error)

    def _may_take(self, row: sa.Row[str, int]) -> bool:
        holder, expires_ms = row
        return holder == self.holder or expires_ms <= self._clock()
