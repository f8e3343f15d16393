"""Packed rows in one LMDB file: the embedded online store.

Many processes and threads read while one writes: a reader sees the file as it was when it began, and neither waits for
the other. LMDB rather than SQLite, because reading 1,000 rows takes a seventh of the time (`docs/benchmarks.md`).

All is in LMDB's one unnamed database, whose keys begin with the number of a table (4 bytes, big-endian):

    0, name of a table      its number, fingerprint of its schema
    number, entity key      packed row

so that a rebuilt table takes another's place by its number, and no process must be told of handles.
"""

import fcntl
import os
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from operator import itemgetter
from pathlib import Path
from struct import Struct
from typing import Final
from weakref import WeakValueDictionary

import lmdb

from urlhealth.errors import StoreUnavailable
from urlhealth.feast_stores.packed import TIMES, Layout, other_schema
from urlhealth.feast_stores.rows import Row

#: How large a file may become. Only address space: the file itself is as large as what is in it.
_MOST_BYTES: Final = 1 << 38
#: Reading threads of all processes at once.
_MOST_READERS: Final = 2_000
_ROWS_A_BATCH: Final = 100_000
_MOST_KEY_BYTES: Final = 511
_DIGEST_BYTES: Final = 32
_NUMBER_BYTES: Final = 4
_CATALOG: Final = bytes(_NUMBER_BYTES)
#: Number of a table, as it is before keys, and fingerprint of its schema.
_ENTRY: Final = Struct(f"<{_NUMBER_BYTES}sQ")


class LmdbRows:
    """Packed rows in one LMDB file, made at the first write. Safe to share between threads, and across forks."""

    embedded: Final = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _file(path)

    @property
    def place(self) -> str:
        """Where the rows are, for messages."""
        return str(self.path)

    def read(self, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """The packed row of each key, in order; None where there is none.

        Raises:
            StoreUnavailable: the file cannot be read.
        """
        with self._errors("read"):
            environment = self._file.environment()
            if environment is not None:
                with environment.begin() as transaction:
                    entry = transaction.get(_CATALOG + table.encode())
                    if entry is not None:
                        return [*map(transaction.get, _placed(entry[:_NUMBER_BYTES], keys))]
        return [None] * len(keys)

    def count(self, table: str) -> int:
        """How many rows a table has; 0 if it is not there.

        Raises:
            StoreUnavailable: the file cannot be read.
        """
        with self._errors("read"):
            environment = self._file.environment()
            if environment is None:
                return 0
            with environment.begin() as transaction:
                entry = _entry(transaction, table)
                return 0 if entry is None else sum(1 for _ in _keys(transaction, entry[0]))

    def write(self, table: str, layout: Layout, rows: Iterable[Row]) -> None:
        """Insert or replace rows in one transaction; older ones than are there are left out.

        Raises:
            StoreUnavailable: the file cannot be written, or holds rows of another schema of the view.
        """
        with self._errors("written"), self._writer() as transaction:
            entry = _entry(transaction, table)
            if entry is not None and entry[1] != layout.fingerprint:
                raise StoreUnavailable(other_schema(layout.view))
            number = entry[0] if entry else _create(transaction, table, layout)
            remaining = iter(rows)
            for batch in iter(lambda: list(islice(remaining, _ROWS_A_BATCH)), []):
                keys = [key for key, _ in batch]
                fresh = len(set(keys)) == len(keys) and next(_keys(transaction, number), None) is None
                if fresh:  # at the end of the file, where rows can be appended, which leaves no room between them
                    number = _create(transaction, table, layout)
                placed = zip(_placed(number, keys), map(itemgetter(1), batch), strict=True)
                ordered = sorted(placed, key=itemgetter(0))  # of equal keys, the later ones stay behind
                if fresh:
                    with transaction.cursor() as cursor:
                        cursor.putmulti(ordered, append=True)
                else:
                    _update(transaction, ordered)

    def erase(self, table: str, keys: Sequence[bytes], *, until_us: int) -> int:
        """Delete the rows of these keys that are not newer; returns how many there were.

        Raises:
            StoreUnavailable: the file cannot be written.
        """
        if table not in self.tables():
            return 0
        count = 0
        with self._errors("written"), self._writer() as transaction:
            entry = _entry(transaction, table)
            for key in _placed(entry[0], keys) if entry else ():
                row = transaction.get(key)
                if row is not None and TIMES.unpack_from(row)[0] <= until_us:
                    count += transaction.delete(key)
        return count

    def define(self, table: str, layout: Layout) -> bool:
        """Make the table of a view, or empty it if it holds another schema; whether rows were lost by that.

        Raises:
            StoreUnavailable: the file cannot be written.
        """
        with self._errors("written"), self._writer() as transaction:
            entry = _entry(transaction, table)
            if entry is not None and entry[1] == layout.fingerprint:
                return False
            lost = _drop(transaction, table)
            _create(transaction, table, layout)
            return lost

    def drop(self, tables: Iterable[str]) -> None:
        """Delete the tables of views, where they exist.

        Raises:
            StoreUnavailable: the file cannot be written.
        """
        if self.path.exists():
            with self._errors("written"), self._writer() as transaction:
                for table in tables:
                    _drop(transaction, table)

    def replace(self, successors: Mapping[str, str]) -> None:
        """In one transaction, delete each table (key) and let its successor (value), if there is one, take its place.

        Raises:
            StoreUnavailable: the file cannot be written.
        """
        if not self.path.exists():
            return
        with self._errors("written"), self._writer() as transaction:
            for table, successor in successors.items():
                _drop(transaction, table)
                entry = transaction.pop(_CATALOG + successor.encode())
                if entry is not None:
                    transaction.put(_CATALOG + table.encode(), entry)

    def tables(self) -> list[str]:
        """Names of the tables of views.

        Raises:
            StoreUnavailable: the file cannot be read.
        """
        with self._errors("read"):
            environment = self._file.environment()
            if environment is None:
                return []
            with environment.begin() as transaction:
                return [key[_NUMBER_BYTES:].decode() for key in _keys(transaction, _CATALOG)]

    @contextmanager
    def _writer(self) -> Iterator[lmdb.Transaction]:
        """A transaction, which is committed unless the body raises."""
        environment = self._file.environment(make=True)
        assert environment is not None
        environment.reader_check()  # one that was killed would keep room from being used again
        with environment.begin(write=True) as transaction:
            yield transaction

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (lmdb.Error, OSError) as error:
            what = str(error).removeprefix(f"{self.path}: ")
            raise StoreUnavailable(
                f"online store {self.path} cannot be {verb}: {what}. Check the disk and the folder's permissions; a "
                "damaged file can be moved away, and made anew with `urlhealth features build --rebuild`"
            ) from error


@dataclass(kw_only=True)
class _Opened:
    #: Process, device and inode.
    identity: tuple[int, int, int]
    environment: lmdb.Environment
    #: The largest that was seen: LMDB never makes a file shorter, and to read beyond its end would kill the process.
    size_bytes: int


class _File:
    """What the path names, opened once a process: LMDB's locks do not bear a second time.

    Each use looks whether the path still names the same file, so that this process follows when it was deleted and made
    anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._opened: _Opened | None = None

    def environment(self, *, make: bool = False) -> lmdb.Environment | None:
        """LMDB's environment; None without a file, unless it is to be made.

        Raises:
            OSError: the file is damaged, or cannot be used.
            lmdb.Error: the same, as LMDB says it.
        """
        opened = self._opened
        least_bytes = opened.size_bytes if opened else 0  # before the look: other threads look later
        try:
            status = self._path.stat()
        except FileNotFoundError:
            if not make:
                return None
            self._make()
            status = self._path.stat()
        identity = (os.getpid(), status.st_dev, status.st_ino)
        if opened is None or opened.identity != identity:
            del opened  # nothing may hold one from before a fork
            opened = self._open(identity)
        elif status.st_size < least_bytes:
            raise OSError("its end is missing")
        elif status.st_size > least_bytes:
            opened.size_bytes = status.st_size
        return opened.environment

    def _open(self, identity: tuple[int, int, int]) -> _Opened:
        with self._lock, self._alone(fcntl.LOCK_SH):
            if self._opened is not None and self._opened.identity == identity:
                return self._opened
            # Dropped and not closed: one from before a fork is the parent's to close.
            self._opened = None
            if not self._path.stat().st_size:
                raise OSError("it is empty")
            environment = _environment(self._path)
            try:
                size_bytes = self._whole(environment)
            except BaseException:
                environment.close()
                raise
            self._opened = _Opened(identity=identity, environment=environment, size_bytes=size_bytes)
            return self._opened

    def _whole(self, environment: lmdb.Environment) -> int:
        """The file's size.

        Raises:
            OSError: its end is missing.
        """
        size_bytes = self._path.stat().st_size
        if size_bytes >= _used_bytes(environment):
            return size_bytes
        # Pages that were free again when they would have been written are not in the file, if they are its last ones.
        from lmdb.verify import verify

        with environment.begin(write=True):  # nobody else writes meanwhile
            size_bytes, used_bytes = self._path.stat().st_size, _used_bytes(environment)
            if size_bytes < used_bytes:
                if verify(str(self._path), subdir=False):  # type: ignore[no-untyped-call]
                    raise OSError("its end is missing")
                os.truncate(self._path, used_bytes)
        return max(size_bytes, used_bytes)

    def _make(self) -> None:
        """Make the file whole under a hidden name and rename it, without what a deleted one left beside it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._alone(fcntl.LOCK_EX):
            if self._path.exists():
                return
            _locks(self._path).unlink(missing_ok=True)
            new = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}")
            _environment(new).close()
            _locks(new).unlink()
            new.replace(self._path)

    @contextmanager
    def _alone(self, how: int) -> Iterator[None]:
        """So that none opens the file with the locks of another one."""
        with self._path.with_name(f".{self._path.name}.lock").open("w") as lock:
            fcntl.flock(lock, how)
            yield


_files: WeakValueDictionary[str, _File] = WeakValueDictionary()
_files_lock = threading.Lock()


def _file(path: Path) -> _File:
    """The one of this path, shared by all in this process who use it."""
    real = os.path.realpath(path)
    with _files_lock:
        file = _files.get(real)
        if file is None:
            file = _files[real] = _File(Path(real))
        return file


def _environment(path: Path) -> lmdb.Environment:
    # No spare transactions: they would be given back by a fork's child, while its parent means to use them again.
    return lmdb.open(str(path), subdir=False, map_size=_MOST_BYTES, max_readers=_MOST_READERS, max_spare_txns=0)


def _locks(path: Path) -> Path:
    """Where LMDB has the locks of a file."""
    return path.with_name(f"{path.name}-lock")


def _used_bytes(environment: lmdb.Environment) -> int:
    return int((environment.info()["last_pgno"] + 1) * environment.stat()["psize"])


def _placed(number: bytes, keys: Iterable[bytes]) -> list[bytes]:
    """Where the rows of these entity keys are; LMDB has no keys longer than 511 bytes."""
    placed = [number + key for key in keys]
    if max(map(len, placed), default=0) < _MOST_KEY_BYTES:
        return placed
    kept = _MOST_KEY_BYTES - _DIGEST_BYTES
    return [
        key if len(key) < _MOST_KEY_BYTES else key[:kept] + blake2b(key, digest_size=_DIGEST_BYTES).digest()
        for key in placed
    ]


def _keys(transaction: lmdb.Transaction, number: bytes) -> Iterator[bytes]:
    """All keys that begin so."""
    with transaction.cursor() as cursor:
        if cursor.set_range(number):
            for key in map(bytes, cursor.iternext(keys=True, values=False)):
                if not key.startswith(number):
                    return
                yield key


def _entry(transaction: lmdb.Transaction, table: str) -> tuple[bytes, int] | None:
    """Number of a table and fingerprint of its schema."""
    entry = transaction.get(_CATALOG + table.encode())
    return None if entry is None else _ENTRY.unpack(entry)


def _create(transaction: lmdb.Transaction, table: str, layout: Layout) -> bytes:
    """Make a table, or give one without rows a new number: the last."""
    entries = [bytes(transaction.get(key, b"")) for key in _keys(transaction, _CATALOG)]
    last = max((int.from_bytes(entry[:_NUMBER_BYTES], "big") for entry in entries), default=0)
    number = (last + 1).to_bytes(_NUMBER_BYTES, "big")
    transaction.put(_CATALOG + table.encode(), _ENTRY.pack(number, layout.fingerprint))
    return number


def _drop(transaction: lmdb.Transaction, table: str) -> bool:
    """Delete a table; whether it had rows."""
    entry = transaction.pop(_CATALOG + table.encode())
    if entry is None:
        return False
    number, rows = entry[:_NUMBER_BYTES], False
    with transaction.cursor() as cursor:
        found = cursor.set_range(number)
        while found and bytes(cursor.key()).startswith(number):
            rows, found = True, cursor.delete()
    return rows


def _update(transaction: lmdb.Transaction, rows: Iterable[Row]) -> None:
    """Put rows, unless a newer one is there."""
    get, put, times = transaction.get, transaction.put, TIMES.unpack_from
    for key, row in rows:
        old = get(key)
        if old is None or times(row) >= times(old):
            put(key, row)
