"""Indexes by which pages count targets, and find a target's forecasts."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the indexes."""
    one_each = sa.text("horizon = '24h'")
    op.create_index(
        "ix_current_predictions_counts",
        "current_predictions",
        ["owner", "health", "status"],
        sqlite_where=one_each,
        postgresql_where=one_each,
    )
    op.create_index("ix_predictions_owner_target_ts_ms", "predictions", ["owner", "target", "ts_ms"])
