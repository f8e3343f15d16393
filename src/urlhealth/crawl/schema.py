"""The tables of tasks, targets, probes, monitors and what the writer carries, for SQLite and PostgreSQL.

Rows refer to each other by small integers (`number`, `id`), because a probe or a task's URL is stored millions of
times; what people see (`task_id`, `monitor_id`, a target's key) stands once, in the row referred to. Times are
milliseconds since 1970 UTC. Each index serves a query of this package, named beside it.
"""

from typing import Final

import sqlalchemy as sa

metadata: Final = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

#: The status of a task whose URLs are not all stored yet: nobody sees it.
RECEIVING: Final = "receiving"

#: 64 bits everywhere; SQLite numbers rows by itself only where the type is spelled INTEGER.
_Id: Final = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _number(name: str) -> sa.Column[int]:
    """A key that grows and is never given out twice, also after its row was deleted (`sqlite_autoincrement`)."""
    return sa.Column(name, _Id, primary_key=True, autoincrement=True)


def _owner() -> sa.Column[str]:
    return sa.Column("owner", sa.Text, nullable=False, server_default="local")


targets: Final = sa.Table(
    "targets",
    metadata,
    _number("id"),
    _owner(),
    #: `Target.key`: the URL, and after a `#` (which a normalised URL does not have) the name, if any.
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("name", sa.Text),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("group", sa.Text, nullable=False),
    #: Whether any of its probes was simulated.
    sa.Column("simulated", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("first_seen_ms", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("owner", "key"),
    sqlite_autoincrement=True,
)
# Pages of an owner's targets.
sa.Index(None, targets.c.owner, targets.c.id)

tasks: Final = sa.Table(
    "tasks",
    metadata,
    _number("number"),
    sa.Column("task_id", sa.Text, nullable=False, unique=True),
    _owner(),
    #: A `TaskStatus`, or RECEIVING.
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("options", sa.JSON, nullable=False),
    #: Counters, kept in the transaction that files results: counting a million URLs at each request would be slow.
    sa.Column("total", sa.BigInteger, nullable=False),
    sa.Column("done", sa.BigInteger, nullable=False),
    sa.Column("outcomes", sa.JSON, nullable=False),
    sa.Column("workers", sa.JSON, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    #: While it is RECEIVING: when its last URLs came.
    sa.Column("started_ms", sa.BigInteger),
    sa.Column("finished_ms", sa.BigInteger),
    sqlite_autoincrement=True,
)
# Pages of an owner's tasks, of all and of one status; counts by status.
sa.Index(None, tasks.c.owner, tasks.c.number)
sa.Index(None, tasks.c.owner, tasks.c.status, tasks.c.number)
# The tasks that the runner has to look after.
_unfinished = tasks.c.finished_ms.is_(None)
sa.Index("ix_tasks_unfinished", tasks.c.number, sqlite_where=_unfinished, postgresql_where=_unfinished)

task_urls: Final = sa.Table(
    "task_urls",
    metadata,
    sa.Column("task_number", _Id, sa.ForeignKey("tasks.number", ondelete="CASCADE"), primary_key=True),
    sa.Column("position", sa.BigInteger, primary_key=True),
    sa.Column("sent_url", sa.Text, nullable=False),
    sa.Column("target_id", _Id, sa.ForeignKey("targets.id"), nullable=False),
    #: The probe that answers it; null while it waits.
    sa.Column("probe_id", _Id),
    sqlite_with_rowid=False,
)
# Where a target's result goes; and what waits, in the order in which it is dispatched, each target once however often
# it was sent.
sa.Index(None, task_urls.c.task_number, task_urls.c.target_id)

idempotency_keys: Final = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("owner", sa.Text, primary_key=True, server_default="local"),
    sa.Column("key", sa.Text, primary_key=True),
    #: Of the options and URLs that came with the key.
    sa.Column("digest", sa.LargeBinary, nullable=False),
    #: The task that they made. The key lives as long as it does.
    sa.Column("task_number", _Id, sa.ForeignKey("tasks.number", ondelete="CASCADE"), nullable=False),
)
# For the deletion of a task.
sa.Index(None, idempotency_keys.c.task_number)

probes: Final = sa.Table(
    "probes",
    metadata,
    _number("id"),
    _owner(),
    sa.Column("target_id", _Id, sa.ForeignKey("targets.id"), nullable=False),
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
    #: What asked for it; both stay when the task or monitor is deleted.
    sa.Column("task_number", _Id),
    sa.Column("monitor_number", _Id),
    #: Whether the verdict is one on the target with its own options, so that features may learn from it.
    sa.Column("feeds_features", sa.Boolean, nullable=False),
    #: The attempts, where there was more than one: a JSON list.
    sa.Column("attempts", sa.Text),
    sqlite_autoincrement=True,
)
# A target's history; and nothing that is filed or imported again is doubled.
sa.Index(
    "uq_probes_target_time",
    probes.c.target_id,
    probes.c.ts_ms,
    sa.func.coalesce(probes.c.task_number, sa.literal_column("0")),
    unique=True,
)
# Verdicts after a position: probes that feed nothing are not read over and over.
sa.Index(
    "ix_probes_verdicts",
    probes.c.id,
    sqlite_where=sa.text("feeds_features = 1"),
    postgresql_where=sa.text("feeds_features"),
)

polling_pools: Final = sa.Table(
    "polling_pools",
    metadata,
    _number("number"),
    _owner(),
    #: JSON of an `AdaptiveSchedule`: monitors of one owner whose schedules are equal are a pool.
    sa.Column("schedule", sa.Text, nullable=False),
    #: JSON of a `PoolReport`; null before the writer has made one.
    sa.Column("report", sa.Text),
    sa.UniqueConstraint("owner", "schedule"),
    sqlite_autoincrement=True,
)

monitors: Final = sa.Table(
    "monitors",
    metadata,
    _number("number"),
    sa.Column("monitor_id", sa.Text, nullable=False, unique=True),
    _owner(),
    sa.Column("target_id", _Id, sa.ForeignKey("targets.id"), nullable=False),
    #: With an adaptive schedule, the one that is planned now.
    sa.Column("interval_s", sa.Integer, nullable=False),
    sa.Column("paused", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("next_due_ms", sa.BigInteger, nullable=False),
    #: JSON: the options that differ from the defaults; the windows.
    sa.Column("options", sa.Text, nullable=False, server_default="{}"),
    sa.Column("maintenance", sa.Text, nullable=False, server_default="[]"),
    #: Each with a line break before and after it.
    sa.Column("tags", sa.Text, nullable=False, server_default=""),
    sa.Column("skipped", sa.BigInteger, nullable=False, server_default="0"),
    #: With an adaptive schedule: its pool, what an outage counts, probes since then, and what they have taught
    #: (`Hazards.dump`).
    sa.Column("pool_number", _Id),
    sa.Column("weight", sa.Double, nullable=False, server_default="1"),
    sa.Column("probes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("learned", sa.LargeBinary),
    # One monitor a target.
    sa.UniqueConstraint("owner", "target_id"),
    sqlite_autoincrement=True,
)
# Pages of an owner's monitors.
sa.Index(None, monitors.c.owner, monitors.c.number)
# What is due.
_active = sa.not_(monitors.c.paused)
sa.Index("ix_monitors_due", monitors.c.next_due_ms, sqlite_where=_active, postgresql_where=_active)
# Those of a pool, one after the other; how many there are.
_pooled = sa.and_(monitors.c.pool_number.is_not(None), _active)
sa.Index("ix_monitors_pool", monitors.c.pool_number, monitors.c.number, sqlite_where=_pooled, postgresql_where=_pooled)

leases: Final = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("expires_ms", sa.BigInteger, nullable=False),
)

carried_states: Final = sa.Table(
    "carried_states",
    metadata,
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("state", sa.LargeBinary, nullable=False),
)

pipeline_positions: Final = sa.Table(
    "pipeline_positions",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    #: Id of the last probe that is in the carried states; of the served log, number of the last segment in the files.
    sa.Column("probe_id", _Id, nullable=False),
)

served_batches: Final = sa.Table(
    "served_batches",
    metadata,
    _number("id"),
    #: When the first and the last of its predictions were served, and how many they are.
    sa.Column("first_ms", sa.BigInteger, nullable=False),
    sa.Column("last_ms", sa.BigInteger, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    #: An Arrow IPC stream (`prediction/served_batch.py`).
    sa.Column("data", sa.LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)

rollups: Final = sa.Table(
    "rollups",
    metadata,
    sa.Column("target_id", _Id, sa.ForeignKey("targets.id"), primary_key=True),
    #: Length: an hour or a day.
    sa.Column("span_s", sa.Integer, primary_key=True),
    sa.Column("start_ms", sa.BigInteger, primary_key=True),
    #: `sums.ENTRY`: how many verdicts had each outcome, and how many durations lay in each bucket.
    sa.Column("counts", sa.LargeBinary, nullable=False),
    #: Sum of the durations, and of their squares (in two parts, which together do not overflow).
    sa.Column("sum_us", sa.BigInteger, nullable=False),
    sa.Column("squares_high", sa.BigInteger, nullable=False),
    sa.Column("squares_low", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

spells: Final = sa.Table(
    "spells",
    metadata,
    sa.Column("target_id", _Id, sa.ForeignKey("targets.id"), primary_key=True),
    #: The first verdict, and the last one that says the same.
    sa.Column("start_ms", sa.BigInteger, primary_key=True),
    sa.Column("last_ms", sa.BigInteger, nullable=False),
    #: Until when it is known to have lasted: the next spell's start, unless nothing was heard for too long.
    sa.Column("end_ms", sa.BigInteger, nullable=False),
    sa.Column("up", sa.Boolean, nullable=False),
    #: Of the first verdict.
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("phase", sa.Text),
    sqlite_with_rowid=False,
)
# Pages of a target's incidents.
_down = sa.not_(spells.c.up)
sa.Index("ix_spells_down", spells.c.target_id, spells.c.start_ms, sqlite_where=_down, postgresql_where=_down)

erasures: Final = sa.Table(
    "erasures",
    metadata,
    _number("number"),
    #: What is still to be erased from the feature stores: an entity (`url`, `host`, `group`), and up to when.
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("until_ms", sa.BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

current_predictions: Final = sa.Table(
    "current_predictions",
    metadata,
    sa.Column("target_id", _Id, sa.ForeignKey("targets.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("horizon", sa.Text, primary_key=True),
    _owner(),
    sa.Column("group", sa.Text, nullable=False),
    sa.Column("probability", sa.Double, nullable=False),
    sa.Column("probability_at_end", sa.Double, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("health", sa.Text, nullable=False),
    sa.Column("observed_ms", sa.BigInteger, nullable=False),
    #: JSON: lists of feature, value, contribution.
    sa.Column("reasons", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("model_version", sa.Text, nullable=False),
    sa.Column("scored_ms", sa.BigInteger, nullable=False),
    #: A byte for each of the last hours, the newest last: 0 is unknown, 1 to 255 the probability.
    sa.Column("trail", sa.LargeBinary),
)
# Pages of all targets, and of a group's, by risk.
_by_risk = current_predictions.c.probability, current_predictions.c.target_id
sa.Index("ix_current_predictions_risk", current_predictions.c.owner, current_predictions.c.horizon, *_by_risk)
# Counts of an owner's targets: one row a target.
_one_each = current_predictions.c.horizon == sa.literal_column("'24h'")
sa.Index(
    "ix_current_predictions_counts",
    current_predictions.c.owner,
    current_predictions.c.health,
    current_predictions.c.status,
    sqlite_where=_one_each,
    postgresql_where=_one_each,
)
sa.Index(
    "ix_current_predictions_group",
    current_predictions.c.owner,
    current_predictions.c.horizon,
    current_predictions.c.group,
    *_by_risk,
)

alert_channels: Final = sa.Table(
    "alert_channels",
    metadata,
    _number("number"),
    _owner(),
    sa.Column("name", sa.Text, nullable=False),
    #: JSON: an `alerts.rules.Channel`.
    sa.Column("definition", sa.Text, nullable=False),
    sa.UniqueConstraint("owner", "name"),
    sqlite_autoincrement=True,
)

alert_rules: Final = sa.Table(
    "alert_rules",
    metadata,
    _number("number"),
    _owner(),
    sa.Column("name", sa.Text, nullable=False),
    #: JSON: an `alerts.rules.Rule`.
    sa.Column("definition", sa.Text, nullable=False),
    sa.UniqueConstraint("owner", "name"),
    sqlite_autoincrement=True,
)

alerts: Final = sa.Table(
    "alerts",
    metadata,
    _number("number"),
    _owner(),
    sa.Column("rule_number", _Id, sa.ForeignKey("alert_rules.number", ondelete="CASCADE"), nullable=False),
    #: Null for one on the platform itself.
    sa.Column("target_id", _Id, sa.ForeignKey("targets.id", ondelete="CASCADE")),
    sa.Column("host", sa.Text, nullable=False),
    #: What is so, and once it is closed, how it ended.
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("opened_ms", sa.BigInteger, nullable=False),
    sa.Column("closed_ms", sa.BigInteger),
    #: When its beginning or end is to be told; null where nothing is.
    sa.Column("due_ms", sa.BigInteger),
    #: When the message on its beginning was made.
    sa.Column("told_ms", sa.BigInteger),
    sqlite_autoincrement=True,
)
# The open ones of a target, one a rule; of a rule.
_open = alerts.c.closed_ms.is_(None)
sa.Index(
    "uq_alerts_open",
    alerts.c.target_id,
    alerts.c.rule_number,
    unique=True,
    sqlite_where=_open,
    postgresql_where=_open,
)
sa.Index("ix_alerts_open_rule", alerts.c.rule_number, sqlite_where=_open, postgresql_where=_open)
# What is to be told.
_untold = alerts.c.due_ms.is_not(None)
sa.Index("ix_alerts_due", alerts.c.due_ms, sqlite_where=_untold, postgresql_where=_untold)
# Pages of an owner's.
sa.Index(None, alerts.c.owner, alerts.c.number)

alert_messages: Final = sa.Table(
    "alert_messages",
    metadata,
    _number("number"),
    sa.Column("message_id", sa.Text, nullable=False, unique=True),
    _owner(),
    sa.Column("channel", sa.Text, nullable=False),
    sa.Column("rule", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    #: JSON, as a webhook is sent it.
    sa.Column("payload", sa.Text, nullable=False),
    #: An `alerts.store.MessageStatus`.
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    #: When the next attempt is due, or the one under way was; null when there is none any more.
    sa.Column("due_ms", sa.BigInteger),
    #: The process whose attempt is under way.
    sa.Column("claimed_by", sa.Text),
    sa.Column("finished_ms", sa.BigInteger),
    #: Why the last attempt failed.
    sa.Column("error", sa.Text),
    sqlite_autoincrement=True,
)
# What is to be sent.
_unsent = alert_messages.c.due_ms.is_not(None)
sa.Index("ix_alert_messages_due", alert_messages.c.due_ms, sqlite_where=_unsent, postgresql_where=_unsent)
# Pages of an owner's dead letters.
sa.Index(None, alert_messages.c.owner, alert_messages.c.status, alert_messages.c.number)
# For the erasure of a target.
sa.Index(None, alert_messages.c.host)

api_keys: Final = sa.Table(
    "api_keys",
    metadata,
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    _owner(),
    #: With a space between each two.
    sa.Column("scopes", sa.Text, nullable=False),
    #: SHA-256 of the secret; of the one before the last rotation, and until when that is taken.
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("old_digest", sa.LargeBinary),
    sa.Column("old_until_ms", sa.BigInteger),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("expires_ms", sa.BigInteger),
    #: A revoked key stays: the first key closes the server, and no later change opens it again.
    sa.Column("revoked_ms", sa.BigInteger),
    sa.Column("used_ms", sa.BigInteger),
    #: Quotas; null is any number.
    sa.Column("urls_per_day", sa.BigInteger),
    sa.Column("running_tasks", sa.BigInteger),
    sa.Column("monitors", sa.BigInteger),
    sa.Column("requests_per_s", sa.Double),
)

sessions: Final = sa.Table(
    "sessions",
    metadata,
    #: SHA-256 of what the browser's cookie holds.
    sa.Column("digest", sa.LargeBinary, primary_key=True),
    sa.Column("key_id", sa.Text, sa.ForeignKey("api_keys.key_id"), nullable=False),
    sa.Column("expires_ms", sa.BigInteger, nullable=False),
)

key_usage: Final = sa.Table(
    "key_usage",
    metadata,
    sa.Column("key_id", sa.Text, sa.ForeignKey("api_keys.key_id"), primary_key=True),
    #: Days since 1970 UTC.
    sa.Column("day", sa.Integer, primary_key=True),
    sa.Column("urls", sa.BigInteger, nullable=False),
)

audit_log: Final = sa.Table(
    "audit_log",
    metadata,
    _number("number"),
    sa.Column("ts_ms", sa.BigInteger, nullable=False),
    _owner(),
    #: Null: somebody at this machine.
    sa.Column("key_id", sa.Text),
    #: Method and path with its query, or the command.
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("status", sa.Integer),
    sa.Column("request_id", sa.Text),
    sa.Column("address", sa.Text),
    sqlite_autoincrement=True,
)
