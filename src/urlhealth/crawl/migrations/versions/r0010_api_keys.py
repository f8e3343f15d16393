"""API keys, sessions of browsers, what keys have used, and the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the tables. Without a key in them everything is as it was."""
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False, server_default="local"),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("old_digest", sa.LargeBinary),
        sa.Column("old_until_ms", sa.BigInteger),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_ms", sa.BigInteger),
        sa.Column("revoked_ms", sa.BigInteger),
        sa.Column("used_ms", sa.BigInteger),
        sa.Column("urls_per_day", sa.BigInteger),
        sa.Column("running_tasks", sa.BigInteger),
        sa.Column("monitors", sa.BigInteger),
        sa.Column("requests_per_s", sa.Double),
        sa.PrimaryKeyConstraint("key_id", name="pk_api_keys"),
    )
    op.create_table(
        "sessions",
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("expires_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_sessions"),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.key_id"], name="fk_sessions_key_id"),
    )
    op.create_table(
        "key_usage",
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("day", sa.Integer, nullable=False),
        sa.Column("urls", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("key_id", "day", name="pk_key_usage"),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.key_id"], name="fk_key_usage_key_id"),
    )
    op.create_table(
        "audit_log",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        sa.Column("ts_ms", sa.BigInteger, nullable=False),
        sa.Column("owner", sa.Text, nullable=False, server_default="local"),
        sa.Column("key_id", sa.Text),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("request_id", sa.Text),
        sa.Column("address", sa.Text),
        sa.PrimaryKeyConstraint("number", name="pk_audit_log"),
        sqlite_autoincrement=True,
    )
