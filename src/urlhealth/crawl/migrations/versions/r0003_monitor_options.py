"""Monitors with probe options, tags, planned maintenance, and a count of the slots that were skipped."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns; monitors that are there have nothing in them."""
    op.add_column("monitors", sa.Column("options", sa.Text, nullable=False, server_default="{}"))
    op.add_column("monitors", sa.Column("maintenance", sa.Text, nullable=False, server_default="[]"))
    op.add_column("monitors", sa.Column("tags", sa.Text, nullable=False, server_default=""))
    op.add_column("monitors", sa.Column("skipped", sa.BigInteger, nullable=False, server_default="0"))
