"""The log of what was served travels in batches, many predictions a row; what is in no file yet becomes such."""

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

_ROWS = 50_000
_DAY_MS = 86_400_000


def upgrade() -> None:
    """Add the table, move what was not copied to the files, and drop the one before."""
    batches = op.create_table(
        "served_batches",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        sa.Column("first_ms", sa.BigInteger, nullable=False),
        sa.Column("last_ms", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_served_batches"),
        sqlite_autoincrement=True,
    )
    connection = op.get_bind()
    for rows in _not_copied(connection):
        times_ms = [row.ts_ms for row in rows]
        batch = {"first_ms": min(times_ms), "last_ms": max(times_ms), "rows": len(rows), "data": _packed(rows)}
        connection.execute(sa.insert(batches).values(batch))
    op.drop_table("predictions")


def _not_copied(connection: sa.Connection) -> Iterator[Sequence[Any]]:
    """Rows of the table, after the last one that is in the files."""
    moved = "SELECT probe_id FROM pipeline_positions WHERE name = 'served'"
    last = connection.scalar(sa.text(moved)) or 0
    query = sa.text("SELECT * FROM predictions WHERE id > :last ORDER BY id LIMIT :most")
    while rows := connection.execute(query, {"last": last, "most": _ROWS}).all():
        yield rows
        last = rows[-1].id


def _packed(rows: Sequence[Any]) -> bytes:
    """An Arrow IPC stream, with the columns and types of the files."""
    import pyarrow as pa

    def column(name: str, kind: Any) -> Any:
        return pa.array([getattr(row, name) for row in rows], kind)

    def words(name: str) -> Any:
        return column(name, pa.string()).dictionary_encode()

    instant = pa.timestamp("us", "UTC")
    days = pa.array([row.ts_ms // _DAY_MS for row in rows], pa.int32())
    table = pa.table(
        {
            "url": column("target", pa.string()),
            "owner": words("owner"),
            "sent_url": column("sent_url", pa.string()),
            "horizon": words("horizon"),
            "probability": column("probability", pa.float64()),
            "probability_at_end": column("probability_at_end", pa.float64()),
            "status": words("status"),
            "health": words("health"),
            "age_s": column("age_s", pa.float64()),
            "model": words("model"),
            "model_version": words("model_version"),
            "observed_at": column("observed_ms", pa.timestamp("ms", "UTC")).cast(instant),
            "__log_timestamp": column("ts_ms", pa.timestamp("ms", "UTC")).cast(instant),
            "__log_date": days.cast(pa.date32()),
            "__request_id": words("request_id"),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed
