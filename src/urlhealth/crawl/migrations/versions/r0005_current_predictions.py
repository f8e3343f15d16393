"""The newest forecast of every target."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the table; the writer fills it."""
    op.create_table(
        "current_predictions",
        sa.Column("target_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        sa.Column("horizon", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False, server_default="local"),
        sa.Column("group", sa.Text, nullable=False),
        sa.Column("probability", sa.Double, nullable=False),
        sa.Column("probability_at_end", sa.Double, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("health", sa.Text, nullable=False),
        sa.Column("observed_ms", sa.BigInteger, nullable=False),
        sa.Column("reasons", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("scored_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("target_id", "horizon", name="pk_current_predictions"),
        sa.ForeignKeyConstraint(
            ["target_id"], ["targets.id"], name="fk_current_predictions_target_id", ondelete="CASCADE"
        ),
    )
    op.create_index(
        "ix_current_predictions_risk", "current_predictions", ["owner", "horizon", "probability", "target_id"]
    )
    op.create_index(
        "ix_current_predictions_group", "current_predictions", ["owner", "horizon", "group", "probability", "target_id"]
    )
