"""How the risk of a target has been in the last hours."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add the column; it fills as forecasts are made anew."""
    op.add_column("current_predictions", sa.Column("trail", sa.LargeBinary))
