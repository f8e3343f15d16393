"""Monitors with adaptive schedules, and their pools."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Add the table and the columns; monitors that are there keep their intervals."""
    op.create_table(
        "polling_pools",
        sa.Column("number", _ID, nullable=False, autoincrement=True),
        sa.Column("owner", sa.Text, nullable=False, server_default="local"),
        sa.Column("schedule", sa.Text, nullable=False),
        sa.Column("report", sa.Text),
        sa.PrimaryKeyConstraint("number", name="pk_polling_pools"),
        sa.UniqueConstraint("owner", "schedule", name="uq_polling_pools_owner_schedule"),
        sqlite_autoincrement=True,
    )
    op.add_column("monitors", sa.Column("pool_number", _ID))
    op.add_column("monitors", sa.Column("weight", sa.Double, nullable=False, server_default="1"))
    op.add_column("monitors", sa.Column("probes", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("monitors", sa.Column("learned", sa.LargeBinary))
    active = sa.not_(sa.column("paused", sa.Boolean))
    pooled = sa.and_(sa.column("pool_number").is_not(None), active)
    op.create_index(
        "ix_monitors_pool", "monitors", ["pool_number", "number"], sqlite_where=pooled, postgresql_where=pooled
    )
