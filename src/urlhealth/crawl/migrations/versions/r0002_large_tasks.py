"""Tasks of a million URLs: idempotency keys, the attempts of a probe, and an index from a target to a task's URLs."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add what is new; the index replaces one over waiting URLs alone."""
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "idempotency_keys",
        sa.Column("owner", sa.Text, nullable=False, server_default="local"),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("task_number", number, nullable=False),
        sa.PrimaryKeyConstraint("owner", "key", name="pk_idempotency_keys"),
        sa.ForeignKeyConstraint(
            ["task_number"], ["tasks.number"], name="fk_idempotency_keys_task_number", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_idempotency_keys_task_number", "idempotency_keys", ["task_number"])
    op.add_column("probes", sa.Column("attempts", sa.Text))
    op.create_index("ix_task_urls_task_number_target_id", "task_urls", ["task_number", "target_id"])
    op.drop_index("ix_task_urls_waiting", "task_urls")
