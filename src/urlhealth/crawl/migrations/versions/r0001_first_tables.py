"""Tasks, targets, probes, monitors, the lease, carried states and the served log."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _id(name: str, **options: object) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger().with_variant(sa.Integer, "sqlite"), **options)  # type: ignore[arg-type]


def _owner() -> sa.Column[str]:
    return sa.Column("owner", sa.Text, nullable=False, server_default="local")


def upgrade() -> None:
    """Create everything."""
    op.create_table(
        "targets",
        _id("id"),
        _owner(),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("name", sa.Text),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("group", sa.Text, nullable=False),
        sa.Column("simulated", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("first_seen_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_targets"),
        sa.UniqueConstraint("owner", "key", name="uq_targets_owner_key"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_targets_owner_id", "targets", ["owner", "id"])

    op.create_table(
        "tasks",
        _id("number"),
        sa.Column("task_id", sa.Text, nullable=False),
        _owner(),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("options", sa.JSON, nullable=False),
        sa.Column("total", sa.BigInteger, nullable=False),
        sa.Column("done", sa.BigInteger, nullable=False),
        sa.Column("outcomes", sa.JSON, nullable=False),
        sa.Column("workers", sa.JSON, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("started_ms", sa.BigInteger),
        sa.Column("finished_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("number", name="pk_tasks"),
        sa.UniqueConstraint("task_id", name="uq_tasks_task_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_tasks_owner_number", "tasks", ["owner", "number"])
    op.create_index("ix_tasks_owner_status_number", "tasks", ["owner", "status", "number"])
    unfinished = sa.text("finished_ms IS NULL")
    op.create_index("ix_tasks_unfinished", "tasks", ["number"], sqlite_where=unfinished, postgresql_where=unfinished)

    op.create_table(
        "task_urls",
        _id("task_number", nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("sent_url", sa.Text, nullable=False),
        _id("target_id", nullable=False),
        _id("probe_id"),
        sa.PrimaryKeyConstraint("task_number", "position", name="pk_task_urls"),
        sa.ForeignKeyConstraint(["task_number"], ["tasks.number"], name="fk_task_urls_task_number", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["target_id"], ["targets.id"], name="fk_task_urls_target_id"),
        sqlite_with_rowid=False,
    )
    waiting = sa.text("probe_id IS NULL")
    op.create_index(
        "ix_task_urls_waiting",
        "task_urls",
        ["task_number", "target_id"],
        sqlite_where=waiting,
        postgresql_where=waiting,
    )

    op.create_table(
        "probes",
        _id("id"),
        _owner(),
        _id("target_id", nullable=False),
        sa.Column("ts_ms", sa.BigInteger, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("status_code", sa.Integer),
        sa.Column("dns_ms", sa.Double),
        sa.Column("connect_ms", sa.Double),
        sa.Column("tls_ms", sa.Double),
        sa.Column("first_byte_ms", sa.Double),
        sa.Column("total_ms", sa.Double),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("redirects", sa.Integer, nullable=False),
        sa.Column("final_url", sa.Text),
        sa.Column("address", sa.Text),
        sa.Column("http_version", sa.Text),
        sa.Column("cert_expires_ms", sa.BigInteger),
        sa.Column("error", sa.Text),
        sa.Column("source", sa.Text, nullable=False),
        _id("task_number"),
        _id("monitor_number"),
        sa.Column("feeds_features", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_probes"),
        sa.ForeignKeyConstraint(["target_id"], ["targets.id"], name="fk_probes_target_id"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "uq_probes_target_time",
        "probes",
        ["target_id", "ts_ms", sa.text("coalesce(task_number, 0)")],
        unique=True,
    )
    op.create_index(
        "ix_probes_verdicts",
        "probes",
        ["id"],
        sqlite_where=sa.text("feeds_features = 1"),
        postgresql_where=sa.text("feeds_features"),
    )

    op.create_table(
        "monitors",
        _id("number"),
        sa.Column("monitor_id", sa.Text, nullable=False),
        _owner(),
        _id("target_id", nullable=False),
        sa.Column("interval_s", sa.Integer, nullable=False),
        sa.Column("paused", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("next_due_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_monitors"),
        sa.UniqueConstraint("monitor_id", name="uq_monitors_monitor_id"),
        sa.UniqueConstraint("owner", "target_id", name="uq_monitors_owner_target_id"),
        sa.ForeignKeyConstraint(["target_id"], ["targets.id"], name="fk_monitors_target_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_monitors_owner_number", "monitors", ["owner", "number"])
    op.create_index(
        "ix_monitors_due",
        "monitors",
        ["next_due_ms"],
        sqlite_where=sa.text("paused = 0"),
        postgresql_where=sa.text("NOT paused"),
    )

    op.create_table(
        "leases",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("expires_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )
    op.create_table(
        "carried_states",
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("state", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("kind", "key", name="pk_carried_states"),
    )
    op.create_table(
        "pipeline_positions",
        sa.Column("name", sa.Text, nullable=False),
        _id("probe_id", nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_pipeline_positions"),
    )
    op.create_table(
        "predictions",
        _id("id"),
        _owner(),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("ts_ms", sa.BigInteger, nullable=False),
        sa.Column("sent_url", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("horizon", sa.Text, nullable=False),
        sa.Column("probability", sa.Double),
        sa.Column("probability_at_end", sa.Double),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("health", sa.Text, nullable=False),
        sa.Column("age_s", sa.Double),
        sa.Column("observed_ms", sa.BigInteger),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_predictions"),
        sqlite_autoincrement=True,
    )
