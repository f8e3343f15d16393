"""The log of what was served is read by time: its quality is judged while it serves."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the index."""
    op.create_index("ix_predictions_owner_ts_ms", "predictions", ["owner", "ts_ms"])
