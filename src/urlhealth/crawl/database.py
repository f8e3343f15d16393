"""Opens the database, and holds what SQLite and PostgreSQL do differently.

SQLite is used by several processes at once, so:

- The journal is a write-ahead log: readers never wait for the writer.
- `synchronous` is FULL. With NORMAL the newest transactions can be gone after a power cut, and a task that was
  acknowledged must not be. It costs one sync a transaction, and every transaction here is a batch.
- A transaction that writes takes the write lock when it begins (:func:`writing`) and waits for it. One that began by
  reading could not wait when it comes to write: SQLite fails it at once if another process has written in between.
- It asks for the lock every few milliseconds. SQLite's own waiting ends in steps of 100 ms, in which one who writes
  batch after batch would be gone and back each time.
"""

import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from urlhealth.crawl.schema import metadata
from urlhealth.errors import StoreUnavailable

#: Revisions in `migrations/versions`, oldest first. The last one is what this code works with.
REVISIONS: Final = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009", "0010", "0011", "0012")

#: Not Alembic's default name: MLflow keeps its own revision under that, perhaps in the same PostgreSQL database.
VERSION_TABLE: Final = "urlhealth_version"

#: How long a transaction waits for another process's.
BUSY_TIMEOUT_S: Final = 10.0

# Keys of PostgreSQL's advisory locks: any numbers, but the same in every process.
_MIGRATION_LOCK: Final = 7_301_001
_PROBE_LOCK: Final = 7_301_002
_TARGET_LOCK: Final = 7_301_003
_MONITOR_LOCK: Final = 7_301_004

#: SQLite's page cache of one connection, in KiB. The default of 2,000 is read and written over and over where a task's
#: URLs come in no order.
_CACHE_KIB: Final = 16_000
#: Statements that a connection keeps compiled; 128 by default. Those with thousands of numbers in them take 0.3 MB, and
#: never come again.
_CACHED_STATEMENTS: Final = 16
#: Pages (4 KiB) of the write-ahead log after which SQLite moves them into the database: a sync or two each time.
_CHECKPOINT_PAGES: Final = 8_000
#: Time between two requests for SQLite's write lock.
_POLL_S: Final = 0.002

T = TypeVar("T")


def open_database(url: str) -> sa.Engine:
    """The database at an SQLAlchemy URL, created and migrated to this version's schema where needed.

    Any number of processes may open the same one at once.

    Raises:
        StoreUnavailable: it cannot be reached, read or written, is none, or was made by a newer version. The message
            is one line and holds no password. The returned engine raises it too where the database fails later.
    """
    engine, place = None, ""
    try:
        try:
            parsed = sa.make_url(url)
        except ValueError:  # which quotes a part of it, perhaps of the password
            raise StoreUnavailable(
                "the database's URL has a port that is no number: see URLHEALTH_DATABASE_URL, and write what is "
                "special in a password as %XX"
            ) from None
        place = parsed.render_as_string(hide_password=True)
        engine = _sqlite_engine(parsed) if parsed.get_backend_name() == "sqlite" else _postgresql_engine(parsed)
        sa.event.listen(engine, "handle_error", _translate)
        _migrate(engine, place)
    except (sa.exc.SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:
        if engine is not None:
            engine.dispose()
        raise StoreUnavailable(_explained(error, place)) from error
    except StoreUnavailable:
        if engine is not None:
            engine.dispose()
        raise
    return engine


def writing(engine: sa.Engine) -> AbstractContextManager[sa.Connection]:
    """A transaction that writes: committed at the end of the `with` block, rolled back on an exception."""
    return engine.execution_options(writes=True).begin()


def snapshot(engine: sa.Engine) -> AbstractContextManager[sa.Connection]:
    """A transaction that reads, several times, what was there when it read first."""
    if engine.dialect.name == "postgresql":
        engine = engine.execution_options(isolation_level="REPEATABLE READ")
    return engine.begin()  # SQLite's transactions are so anyway


def insert(connection: sa.Connection, table: sa.Table) -> sqlite.Insert:
    """An INSERT with `on_conflict_do_nothing` and `on_conflict_do_update`, which both dialects spell alike."""
    dialect: Any = sqlite
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql as dialect  # not loaded where it is not needed

    statement: sqlite.Insert = dialect.insert(table)
    return statement


def order_probe_ids(connection: sa.Connection) -> None:
    """In a transaction that inserts probes, first of all: makes their ids become visible in ascending order.

    Readers go on from the last id that they have seen, so a smaller one must not appear later.
    """
    _lock_until_end(connection, _PROBE_LOCK)


def add_targets_alone(connection: sa.Connection) -> None:
    """Before inserting targets: two transactions that add the same ones in different orders would block each other."""
    _lock_until_end(connection, _TARGET_LOCK)


def change_monitors_alone(connection: sa.Connection) -> None:
    """Before changing monitors: the schedule takes the same ones in another order, and each would block the other."""
    _lock_until_end(connection, _MONITOR_LOCK)


def run(connection: sa.Connection, statement: str, rows: Sequence[tuple[Any, ...]]) -> int:
    """Execute a statement, with `?` for each value, for each row; returns how many rows it changed in all.

    By hand, because SQLAlchemy would make a dictionary of each row first: half the time of a big task or import.
    """
    if not rows:
        return 0
    if connection.dialect.name != "sqlite":
        statement = statement.replace("?", "%s")
    return connection.exec_driver_sql(statement, list(rows)).rowcount


def select(connection: sa.Connection, statement: str, values: tuple[Any, ...]) -> Sequence[sa.Row[Any]]:
    """The rows of a statement with `?` for each value, likewise by hand."""
    if connection.dialect.name != "sqlite":
        statement = statement.replace("?", "%s")
    return connection.exec_driver_sql(statement, values).all()


def stream(
    connection: sa.Connection, statement: str, values: Mapping[str, Any], rows: int
) -> Iterator[Sequence[tuple[Any, ...]]]:
    """The rows of a statement with `:name` for each value, so many at a time; likewise by hand: tuples of the driver.

    Raises:
        StoreUnavailable: the database failed.
    """
    found = connection.execute(sa.text(statement), values)
    try:
        while some := found.cursor.fetchmany(rows):
            yield some
    except connection.dialect.loaded_dbapi.Error as error:
        raise StoreUnavailable(_explained(error, connection.engine.url.render_as_string(hide_password=True))) from error
    finally:
        found.close()


def copy(connection: sa.Connection, table: str, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> int:
    """Insert rows into a table of PostgreSQL by COPY, except those that are there already; returns how many were not.

    COPY passes over no conflict, so the rows go by a table of the connection's own, which is empty at each commit.
    """
    if not rows:
        return 0
    names = ", ".join(columns)
    passing = f"passing_{table}"
    connection.exec_driver_sql(
        f"CREATE TEMP TABLE IF NOT EXISTS {passing} ON COMMIT DELETE ROWS AS SELECT {names} FROM {table} WITH NO DATA"
    )
    copy_into(connection, passing, columns, rows)
    stored = connection.exec_driver_sql(
        f"INSERT INTO {table} ({names}) SELECT {names} FROM {passing} ON CONFLICT DO NOTHING"
    ).rowcount
    connection.exec_driver_sql(f"TRUNCATE {passing}")  # for the next ones of this transaction
    return stored


def copy_into(connection: sa.Connection, table: str, columns: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
    """Insert rows into a table of PostgreSQL by COPY; names are given as SQL has them.

    Raises:
        StoreUnavailable: the database failed.
    """
    driver: Any = connection.connection.cursor()
    failed = connection.dialect.loaded_dbapi
    try:
        with driver, driver.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as stream:
            for row in rows:
                stream.write_row(row)
    except (failed.OperationalError, failed.InterfaceError) as error:  # SQLAlchemy does not see those of a COPY
        raise StoreUnavailable(_explained(error, connection.engine.url.render_as_string(hide_password=True))) from error


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in runs of at most `size`: a statement takes only so many parameters."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _lock_until_end(connection: sa.Connection, lock: int) -> None:
    """Hold a lock until the transaction's end. SQLite has one writer at a time anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    if not url.database or url.database == ":memory:":
        raise StoreUnavailable(
            "an SQLite database in memory cannot be shared between processes: set URLHEALTH_DATABASE_URL to "
            "sqlite:////path/to/urlhealth.db, or leave it empty for a file in URLHEALTH_HOME"
        )
    Path(url.database).absolute().parent.mkdir(parents=True, exist_ok=True)
    arguments = {"timeout": BUSY_TIMEOUT_S, "cached_statements": _CACHED_STATEMENTS}
    engine = sa.create_engine(url, connect_args=arguments, pool_size=20, max_overflow=20)

    @sa.event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # BEGIN is ours, below: the driver would leave reads outside transactions
        _retried(connection, "PRAGMA journal_mode = WAL", url)  # a new file is switched once, and remembers it
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        connection.execute("PRAGMA foreign_keys = ON")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        if connection.get_execution_options().get("writes", False):
            driver: Any = connection.connection.dbapi_connection
            driver.execute("PRAGMA busy_timeout = 0")
            try:
                _retried(driver, "BEGIN IMMEDIATE", url)
            finally:
                driver.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000:.0f}")
        else:
            connection.exec_driver_sql("BEGIN")

    return engine


def _retried(connection: sqlite3.Connection, statement: str, url: sa.URL) -> None:
    """Execute a statement for which SQLite does not wait, or not well, until no lock is in its way."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute(statement)
            return
        except sqlite3.Error as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise StoreUnavailable(_explained(error, str(url))) from error
            time.sleep(_POLL_S)


def _postgresql_engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() != "postgresql":
        raise StoreUnavailable(
            f"{url.get_backend_name()} databases are not supported: URLHEALTH_DATABASE_URL starts with sqlite:/// or "
            "postgresql+psycopg://"
        )
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    return sa.create_engine(url, connect_args={"connect_timeout": 5}, pool_pre_ping=True, pool_size=20, max_overflow=20)


def _translate(context: sa.engine.ExceptionContext) -> None:
    """What the database cannot do now becomes `StoreUnavailable`; mistakes in statements stay what they are."""
    error = context.sqlalchemy_exception
    if isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError) and context.engine is not None:
        place = context.engine.url.render_as_string(hide_password=True)
        context.chained_exception = StoreUnavailable(_explained(error, place))


def _migrate(engine: sa.Engine, place: str) -> None:
    with engine.connect() as connection:
        if _revision(connection, place) == REVISIONS[-1]:
            return
    with writing(engine) as connection:
        _lock_until_end(connection, _MIGRATION_LOCK)
        revision = _revision(connection, place)
        if revision is None:
            _create(connection)
        elif revision != REVISIONS[-1]:  # no other process was quicker
            from alembic import command
            from alembic.config import Config

            config = Config(attributes={"connection": connection})
            folder = str(Path(__file__).with_name("migrations"))
            config.set_main_option("script_location", folder.replace("%", "%%"))
            config.set_main_option("path_separator", "os")
            command.upgrade(config, "head")


def _create(connection: sa.Connection) -> None:
    """Make in an empty database what the migrations would make: to import Alembic takes half a second."""
    metadata.create_all(connection, checkfirst=False)
    connection.execute(
        sa.text(
            f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32) NOT NULL, "
            f"CONSTRAINT {VERSION_TABLE}_pkc PRIMARY KEY (version_num))"
        )
    )
    connection.execute(sa.text(f"INSERT INTO {VERSION_TABLE} VALUES ('{REVISIONS[-1]}')"))


def _revision(connection: sa.Connection, place: str) -> str | None:
    """The revision that the database is at, None for an empty one."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}"))
    if revision is not None and revision not in REVISIONS:
        raise StoreUnavailable(
            f"{place} was made by a newer version of urlhealth (schema {revision}, this version knows up to "
            f"{REVISIONS[-1]}): update urlhealth, or set URLHEALTH_DATABASE_URL to another database"
        )
    return revision


def _explained(error: Exception, place: str) -> str:
    """What went wrong, where, and what to do, in one line."""
    reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    if isinstance(error, sa.exc.ArgumentError):
        return (
            "the database URL cannot be read: set URLHEALTH_DATABASE_URL to something like "
            "sqlite:////path/to/urlhealth.db or postgresql+psycopg://user:password@host/name"
        )
    if isinstance(error, ImportError):
        advice = "install the driver that the URL names (for PostgreSQL: psycopg)"
    elif not place.startswith("sqlite"):
        advice = "check that the server runs and that URLHEALTH_DATABASE_URL names it"
    elif "not a database" in reason or "malformed" in reason:
        advice = "move it away, or set URLHEALTH_DATABASE_URL to another file"
    elif "locked" in reason:
        advice = f"another program held it for more than {BUSY_TIMEOUT_S:.0f} s: wait for it, or end it"
    elif "full" in reason:
        advice = "make room on the disk"
    else:
        advice = "give this user the right to write there, or set URLHEALTH_HOME elsewhere"
    return f"the database {place} cannot be used: {reason}; {advice}"
