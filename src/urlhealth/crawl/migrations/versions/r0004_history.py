"""History: roll-ups by hour and day, spells of being up and down, and what is to be erased from the feature stores."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the tables; the writer fills them from the stored probes."""
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "rollups",
        sa.Column("target_id", number, nullable=False),
        sa.Column("span_s", sa.Integer, nullable=False),
        sa.Column("start_ms", sa.BigInteger, nullable=False),
        sa.Column("counts", sa.LargeBinary, nullable=False),
        sa.Column("sum_us", sa.BigInteger, nullable=False),
        sa.Column("squares_high", sa.BigInteger, nullable=False),
        sa.Column("squares_low", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("target_id", "span_s", "start_ms", name="pk_rollups"),
        sa.ForeignKeyConstraint(["target_id"], ["targets.id"], name="fk_rollups_target_id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "spells",
        sa.Column("target_id", number, nullable=False),
        sa.Column("start_ms", sa.BigInteger, nullable=False),
        sa.Column("last_ms", sa.BigInteger, nullable=False),
        sa.Column("end_ms", sa.BigInteger, nullable=False),
        sa.Column("up", sa.Boolean, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("phase", sa.Text),
        sa.PrimaryKeyConstraint("target_id", "start_ms", name="pk_spells"),
        sa.ForeignKeyConstraint(["target_id"], ["targets.id"], name="fk_spells_target_id"),
        sqlite_with_rowid=False,
    )
    down = sa.text("up = 0" if op.get_context().dialect.name == "sqlite" else "NOT up")
    op.create_index("ix_spells_down", "spells", ["target_id", "start_ms"], sqlite_where=down, postgresql_where=down)
    op.create_table(
        "erasures",
        sa.Column("number", number, primary_key=True, autoincrement=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("until_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_erasures"),
        sqlite_autoincrement=True,
    )
