"""Alerts: rules, channels, what is or was wrong, and the messages on it."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Add the tables."""
    for name in ("alert_channels", "alert_rules"):
        op.create_table(
            name,
            sa.Column("number", _Id, autoincrement=True, nullable=False),
            sa.Column("owner", sa.Text, nullable=False, server_default="local"),
            sa.Column("name", sa.Text, nullable=False),
            sa.Column("definition", sa.Text, nullable=False),
            sa.PrimaryKeyConstraint("number", name=f"pk_{name}"),
            sa.UniqueConstraint("owner", "name", name=f"uq_{name}_owner_name"),
            sqlite_autoincrement=True,
        )
    op.create_table(
        "alerts",
        sa.Column("number", _Id, autoincrement=True, nullable=False),
        sa.Column("owner", sa.Text, nullable=False, server_default="local"),
        sa.Column("rule_number", _Id, nullable=False),
        sa.Column("target_id", _Id),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("opened_ms", sa.BigInteger, nullable=False),
        sa.Column("closed_ms", sa.BigInteger),
        sa.Column("due_ms", sa.BigInteger),
        sa.Column("told_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("number", name="pk_alerts"),
        sa.ForeignKeyConstraint(
            ["rule_number"], ["alert_rules.number"], name="fk_alerts_rule_number", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["target_id"], ["targets.id"], name="fk_alerts_target_id", ondelete="CASCADE"),
        sqlite_autoincrement=True,
    )
    opened, untold = sa.text("closed_ms IS NULL"), sa.text("due_ms IS NOT NULL")
    op.create_index(
        "uq_alerts_open",
        "alerts",
        ["target_id", "rule_number"],
        unique=True,
        sqlite_where=opened,
        postgresql_where=opened,
    )
    op.create_index("ix_alerts_open_rule", "alerts", ["rule_number"], sqlite_where=opened, postgresql_where=opened)
    op.create_index("ix_alerts_due", "alerts", ["due_ms"], sqlite_where=untold, postgresql_where=untold)
    op.create_index("ix_alerts_owner_number", "alerts", ["owner", "number"])
    op.create_table(
        "alert_messages",
        sa.Column("number", _Id, autoincrement=True, nullable=False),
        sa.Column("message_id", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False, server_default="local"),
        sa.Column("channel", sa.Text, nullable=False),
        sa.Column("rule", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("due_ms", sa.BigInteger),
        sa.Column("claimed_by", sa.Text),
        sa.Column("finished_ms", sa.BigInteger),
        sa.Column("error", sa.Text),
        sa.PrimaryKeyConstraint("number", name="pk_alert_messages"),
        sa.UniqueConstraint("message_id", name="uq_alert_messages_message_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_alert_messages_due", "alert_messages", ["due_ms"], sqlite_where=untold, postgresql_where=untold)
    op.create_index("ix_alert_messages_owner_status_number", "alert_messages", ["owner", "status", "number"])
    op.create_index("ix_alert_messages_host", "alert_messages", ["host"])
