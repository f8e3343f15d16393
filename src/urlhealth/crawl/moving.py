"""All rows of one database into another: from an SQLite file into an empty database of PostgreSQL."""

from collections.abc import Iterator, Sequence
from typing import Final

import sqlalchemy as sa

from urlhealth.crawl.database import copy_into, stream
from urlhealth.crawl.schema import carried_states, leases, metadata, served_batches
from urlhealth.errors import InvalidRequest

#: Rows that one COPY takes: their references are checked at its end, and until then the server keeps a note of each.
_ROWS: Final = 5_000
#: Who writes to a database is its own affair.
_TABLES: Final = [table for table in metadata.sorted_tables if table is not leases]


def require_no_writer(connection: sa.Connection, *, now_ms: int) -> None:
    """Raises `InvalidRequest` if a process holds the writer's lease, or fell silent just now."""
    holder = connection.scalar(sa.select(leases.c.holder).where(leases.c.expires_ms > now_ms))
    if holder is not None:
        place = connection.engine.url.render_as_string(hide_password=True)
        raise InvalidRequest(f"{holder} is at work on {place}: stop all servers on it, and try again")


def require_empty(connection: sa.Connection) -> None:
    """Raises `InvalidRequest` if there is a row in any of the platform's tables; nobody adds one until the end.

    To be called in a transaction that writes, of PostgreSQL.
    """
    names = ", ".join(table.name for table in _TABLES)
    connection.execute(sa.text(f"LOCK TABLE {names} IN EXCLUSIVE MODE"))
    for table in _TABLES:
        if connection.scalar(sa.select(sa.exists(sa.select(sa.literal(1)).select_from(table)))):
            raise InvalidRequest(
                f"{connection.engine.url.render_as_string(hide_password=True)} is not empty: there are {table.name}. "
                "Nothing was moved; set URLHEALTH_DATABASE_URL to an empty database"
            )


def carried_keys(connection: sa.Connection, kind: str) -> Iterator[Sequence[str]]:
    """The keys of the entities of one kind that have a state, some at a time."""
    query = f"SELECT key FROM {carried_states.name} WHERE kind = :kind ORDER BY key"
    for some in stream(connection, query, {"kind": kind}, _ROWS):
        yield [key for (key,) in some]


def copy_tables(
    source: sa.Connection, target: sa.Connection, tables: Sequence[sa.Table] = _TABLES
) -> list[tuple[str, int, int]]:
    """Copy all rows, table by table; of each: its name, and how many rows are there, and here.

    Numbers that grow go on in the target where the source's would have.

    Args:
        source: of SQLite, in a transaction.
        target: of PostgreSQL, in a transaction that writes; the tables are empty.

    Raises:
        StoreUnavailable: a database failed.
    """
    quoted = target.dialect.identifier_preparer
    for table in tables:
        names = [quoted.quote(column.name) for column in table.columns]
        name = quoted.format_table(table)
        # One of these is as large as thousands of others.
        rows_at_once = 1 if table is served_batches else _ROWS
        for some in stream(source, f"SELECT {', '.join(names)} FROM {name}", {}, rows_at_once):
            copy_into(target, name, names, some)
        _continue_numbers(source, target, table)
    target.execute(sa.text("ANALYZE"))
    before, after = counts(source, tables), counts(target, tables)
    return [(name, rows, after[name]) for name, rows in before.items()]


def counts(connection: sa.Connection, tables: Sequence[sa.Table]) -> dict[str, int]:
    """How many rows each table has, by name."""
    return {table.name: connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0 for table in tables}


def _continue_numbers(source: sa.Connection, target: sa.Connection, table: sa.Table) -> None:
    column = table.autoincrement_column
    if column is None:
        return
    last = source.scalar(sa.select(sa.func.max(column))) or 0
    if table.kwargs.get("sqlite_autoincrement"):  # also of rows that were deleted
        given = source.scalar(sa.text("SELECT seq FROM sqlite_sequence WHERE name = :name"), {"name": table.name})
        last = max(last, given or 0)
    if last:
        sequence = sa.func.pg_get_serial_sequence(table.name, column.name)  # null where it has none
        target.execute(sa.select(sa.func.setval(sequence, last)))
