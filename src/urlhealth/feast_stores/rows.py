"""The embedded online store's file: packed rows in SQLite, a table for each view, keyed by Feast's entity key.

Many processes and threads read while one writes (write-ahead log). A row is replaced only by one whose event time, or
at the same event time whose created time, is not older.

A reader keeps one read-only connection a thread and looks at each read whether the path still names the same file, so
that it follows when the file was deleted and made anew. A writer opens the file for each batch and closes it: a
connection that outlived its file would delete the write-ahead log of the new one when closed, which a read-only
connection never does.
"""

import fcntl
import os
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from struct import pack
from typing import Protocol

from urlhealth.errors import StoreUnavailable
from urlhealth.feast_stores.packed import Layout, other_schema

#: Entity key, event time and created time in microseconds since 1970 UTC (0: not known), packed row.
Row = tuple[bytes, int, int, bytes]


class OnlineRows(Protocol):
    """What a place of packed rows can do, be it this file or a Redis server; see :class:`PackedRows` for each."""

    @property
    def place(self) -> str:
        """Where the rows are, for messages."""
        ...

    def read(self, table: str, keys: Sequence[bytes]) -> dict[bytes, tuple[int, bytes]]: ...

    def count(self, table: str) -> int: ...

    def write(self, table: str, layout: Layout, rows: Iterable[Row]) -> None: ...

    def erase(self, table: str, keys: Sequence[bytes], *, until_us: int) -> int: ...

    def define(self, table: str, layout: Layout) -> bool: ...

    def drop(self, tables: Iterable[str]) -> None: ...

    def replace(self, successors: Mapping[str, str]) -> None: ...

    def tables(self) -> list[str]: ...


_BUSY_S = 30.0
_KEYS_A_QUERY = 1000
#: Feast's `ValueType.STRING`.
_STRING = 2


class PackedRows:
    """Packed rows in one SQLite file, made at the first write. Safe to share between threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()

    @property
    def place(self) -> str:
        """Where the rows are, for messages."""
        return str(self.path)

    def read(self, table: str, keys: Sequence[bytes]) -> dict[bytes, tuple[int, bytes]]:
        """Event time (microseconds since 1970 UTC) and packed row of each key that is there.

        Raises:
            StoreUnavailable: the file cannot be read.
        """
        found: dict[bytes, tuple[int, bytes]] = {}
        with self._errors("read"):
            connection = self._reader()
            if connection is None:
                return found
            try:
                for start in range(0, len(keys), _KEYS_A_QUERY):
                    some = keys[start : start + _KEYS_A_QUERY]
                    marks = ",".join("?" * len(some))
                    query = f"SELECT key, event_us, row FROM {_quoted(table)} WHERE key IN ({marks})"
                    for key, event_us, row in connection.execute(query, some):
                        found[key] = (event_us, row)
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    raise
        return found

    def count(self, table: str) -> int:
        """How many rows a table has; 0 if it is not there.

        Raises:
            StoreUnavailable: the file cannot be read.
        """
        if table not in self.tables():
            return 0
        with self._errors("read"):
            connection = self._reader()
            return (
                0
                if connection is None
                else int(connection.execute(f"SELECT COUNT(*) FROM {_quoted(table)}").fetchone()[0])
            )

    def write(self, table: str, layout: Layout, rows: Iterable[Row]) -> None:
        """Insert or replace rows in one transaction; older ones than are there are left out.

        Raises:
            StoreUnavailable: the file cannot be written, or holds rows of another schema of the view.
        """
        name = _quoted(table)
        with self._errors("written"), self._writer() as connection:
            stored = _fingerprint(connection, table)
            if stored is None:
                _create(connection, table, layout)
            elif stored != _hex(layout):
                raise StoreUnavailable(other_schema(layout.view))
            connection.executemany(
                f"INSERT INTO {name} (key, event_us, created_us, row) VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE "
                "SET event_us = excluded.event_us, created_us = excluded.created_us, row = excluded.row "
                f"WHERE (excluded.event_us, excluded.created_us) >= ({name}.event_us, {name}.created_us)",
                rows,
            )

    def erase(self, table: str, keys: Sequence[bytes], *, until_us: int) -> int:
        """Delete the rows of these keys that are not newer; returns how many there were.

        Raises:
            StoreUnavailable: the file cannot be written.
        """
        if table not in self.tables():
            return 0
        with self._errors("written"), self._writer() as connection:
            statement = f"DELETE FROM {_quoted(table)} WHERE key = ? AND event_us <= ?"
            return connection.executemany(statement, [(key, until_us) for key in keys]).rowcount

    def define(self, table: str, layout: Layout) -> bool:
        """Make the table of a view, or empty it if it holds another schema; whether rows were lost by that."""
        with self._errors("written"), self._writer() as connection:
            stored = _fingerprint(connection, table)
            if stored == _hex(layout):
                return False
            lost = False
            if stored is not None:
                lost = connection.execute(f"SELECT EXISTS (SELECT 1 FROM {_quoted(table)})").fetchone()[0] == 1
                _drop(connection, table)
            _create(connection, table, layout)
            return lost

    def drop(self, tables: Iterable[str]) -> None:
        """Delete the tables of views, where they exist."""
        if self.path.exists():
            with self._errors("written"), self._writer() as connection:
                for table in tables:
                    _drop(connection, table)

    def replace(self, successors: Mapping[str, str]) -> None:
        """In one transaction, delete each table (key) and let its successor (value), if there is one, take its place.

        Raises:
            StoreUnavailable: the file cannot be written.
        """
        if not self.path.exists():
            return
        with self._errors("written"), self._writer() as connection:
            for table, successor in successors.items():
                _drop(connection, table)
                if _fingerprint(connection, successor) is not None:
                    connection.execute(f"ALTER TABLE {_quoted(successor)} RENAME TO {_quoted(table)}")
                    connection.execute("UPDATE layouts SET view = ? WHERE view = ?", (table, successor))

    def tables(self) -> list[str]:
        """Names of the tables of views.

        Raises:
            StoreUnavailable: the file cannot be read.
        """
        with self._errors("read"):
            connection = self._reader()
            return [] if connection is None else [name for (name,) in connection.execute("SELECT view FROM layouts")]

    def _reader(self) -> sqlite3.Connection | None:
        """This thread's connection, opened anew if the path names another file; none without a file."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        identity = (os.getpid(), status.st_dev, status.st_ino)  # SQLite forbids a connection from before a fork
        if getattr(self._local, "identity", None) != identity:
            with suppress(AttributeError):
                self._local.connection.close()
            self._local.connection = sqlite3.connect(
                f"{self.path.as_uri()}?mode=ro",
                uri=True,
                timeout=_BUSY_S,
                isolation_level=None,
                check_same_thread=False,
            )
            self._local.identity = identity
        connection: sqlite3.Connection = self._local.connection
        return connection

    @contextmanager
    def _writer(self) -> Iterator[sqlite3.Connection]:
        """A connection within a transaction, which is committed unless the body raises."""
        if not self.path.exists():
            self._make()
        connection = sqlite3.connect(f"{self.path.as_uri()}?mode=rw", uri=True, timeout=_BUSY_S, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
        finally:
            connection.close()

    def _make(self) -> None:
        """Make the file whole under a hidden name and rename it, without what a deleted one left beside it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f".{self.path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.path.exists():
                return
            for suffix in ("-wal", "-shm"):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)
            new = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}")
            connection = sqlite3.connect(new, isolation_level=None)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("CREATE TABLE layouts (view TEXT PRIMARY KEY, fingerprint TEXT NOT NULL)")
            connection.close()
            new.replace(self.path)

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(
                f"online store {self.path} cannot be {verb}: {error}. Check the disk and the folder's permissions; a "
                "damaged file can be moved away, and made anew with `urlhealth features build --rebuild`"
            ) from error


def string_keys(join_key: str, values: Sequence[str]) -> list[bytes]:
    """Feast's entity keys (serialization version 3) of entities with one join key that is a string."""
    return entity_keys({join_key: (_STRING, [value.encode() for value in values])})


def entity_keys(columns: Mapping[str, tuple[int, Sequence[bytes]]]) -> list[bytes]:
    """Feast's entity keys (serialization version 3), from join key → number of Feast's `ValueType`, values as bytes."""
    names = sorted(columns)
    start = pack("<I", len(names))
    for name in names:
        encoded = name.encode()
        start += pack("<II", _STRING, len(encoded)) + encoded
    parts = []
    for name in names:
        kind = pack("<I", columns[name][0])
        parts.append([kind + pack("<I", len(value)) + value for value in columns[name][1]])
    if len(parts) == 1:
        return [start + part for part in parts[0]]
    return [start + b"".join(key) for key in zip(*parts, strict=True)]


def table_name(project: str, view: str) -> str:
    """Name of a view's table: the one that Feast's own stores give it."""
    return f"{project}_{view}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _hex(layout: Layout) -> str:
    return f"{layout.fingerprint:016x}"


def _fingerprint(connection: sqlite3.Connection, table: str) -> str | None:
    found = connection.execute("SELECT fingerprint FROM layouts WHERE view = ?", (table,)).fetchone()
    return None if found is None else str(found[0])


def _create(connection: sqlite3.Connection, table: str, layout: Layout) -> None:
    # Not WITHOUT ROWID: with rows of 1 kB that makes the file three times as large, and reading four times as slow.
    connection.execute(
        f"CREATE TABLE {_quoted(table)} (key BLOB PRIMARY KEY, event_us INTEGER NOT NULL, created_us INTEGER NOT NULL, "
        "row BLOB NOT NULL) "
    )
    connection.execute("INSERT INTO layouts (view, fingerprint) VALUES (?, ?)", (table, _hex(layout)))


def _drop(connection: sqlite3.Connection, table: str) -> None:
    connection.execute(f"DROP TABLE IF EXISTS {_quoted(table)}")
    connection.execute("DELETE FROM layouts WHERE view = ?", (table,))
