"""Erasing a URL: all that the database has of it goes at once, and what the feature stores have is noted to go."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from urlhealth.crawl.carried import count_erasure
from urlhealth.crawl.database import add_targets_alone, change_monitors_alone, order_probe_ids, writing
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.reading import find_target
from urlhealth.crawl.records import Records
from urlhealth.crawl.schema import (
    RECEIVING,
    alert_messages,
    alerts,
    carried_states,
    erasures,
    monitors,
    probes,
    rollups,
    spells,
    targets,
    task_urls,
    tasks,
)
from urlhealth.errors import InvalidRequest
from urlhealth.vocabulary import LOCAL_OWNER, Target, TaskStatus

#: Probes that are deleted in one transaction.
_CHUNK: Final = 5_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Erasure:
    """What is still to be erased from the feature stores and the log of predictions."""

    number: int
    #: `url`, `host` or `group`.
    kind: str
    key: str
    #: What was known later is of a new target of that name.
    until_ms: int


class Erasing(Records):
    """Erases targets."""

    def erase_url(self, url: str, *, lease: Lease, name: str | None = None, owner: str = LOCAL_OWNER) -> Counter[str]:
        """Erase what is known of a target, with its monitor and its results in tasks; returns how much that was.

        What tasks count becomes less by it. A probe under way is dropped. What the feature stores have of it is left to
        :meth:`pending_erasures`; so is that of its host and group, where it was the last one.

        Raises:
            InvalidRequest: the URL is none, or a task with it is just being received.
            NotFound: the owner has no such target.
        """
        erased: Counter[str] = Counter()
        with self._engine.connect() as connection:
            target_id, target = find_target(connection, url, name, owner)
            _by_task(connection, target_id)
        mine = monitors.c.target_id == target_id
        with writing(self._engine) as connection:
            change_monitors_alone(connection)
            erased["monitors"] = connection.execute(sa.delete(monitors).where(mine)).rowcount
        # Most of the probes before the rest, in small transactions: others write in between.
        some = sa.select(probes.c.id).where(probes.c.target_id == target_id).limit(_CHUNK)
        while True:
            with writing(self._engine) as connection:
                deleted = connection.execute(sa.delete(probes).where(probes.c.id.in_(some), _UNANSWERED)).rowcount
            erased["probes"] += deleted
            if deleted < _CHUNK:
                break
        with writing(self._engine) as connection:
            # Nobody may add to the target meanwhile, or go on from what was known of it.
            lease.lock(connection)
            change_monitors_alone(connection)
            order_probe_ids(connection)
            add_targets_alone(connection)
            erased["task results"] = _erase_from_tasks(connection, target_id, now_ms=self._clock())
            erased["probes"] += connection.execute(sa.delete(probes).where(probes.c.target_id == target_id)).rowcount
            for table in (monitors, rollups, spells, alerts):
                connection.execute(sa.delete(table).where(table.c.target_id == target_id))
            # Their texts name it.
            connection.execute(sa.delete(alert_messages).where(alert_messages.c.host == target.host))
            connection.execute(sa.delete(targets).where(targets.c.id == target_id))
            self._note(connection, target)
            count_erasure(connection)
        return erased

    def _note(self, connection: sa.Connection, target: Target) -> None:
        """Note that the features of a target that is gone are to be erased, and forget their carried states."""
        columns = {"url": (targets.c.key, target.key), "host": (targets.c.host, target.host)}
        columns["group"] = (targets.c.group, target.group)
        for kind, (column, key) in columns.items():
            others = sa.select(targets.c.id).where(column == key).limit(1)
            if connection.scalar(others) is None:
                state = sa.and_(carried_states.c.kind == kind, carried_states.c.key == key)
                connection.execute(sa.delete(carried_states).where(state))
                connection.execute(sa.insert(erasures).values(kind=kind, key=key, until_ms=self._clock()))

    def pending_erasures(self) -> list[Erasure]:
        """What is still to be erased, oldest first."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(erasures).order_by(erasures.c.number)).all()
        return [Erasure(number=row.number, kind=row.kind, key=row.key, until_ms=row.until_ms) for row in rows]

    def finish_erasure(self, erasure: Erasure) -> None:
        """Take note that it is done."""
        with writing(self._engine) as connection:
            connection.execute(sa.delete(erasures).where(erasures.c.number == erasure.number))


#: No result of a task that there is.
_UNANSWERED: Final = sa.or_(probes.c.task_number.is_(None), ~sa.exists().where(tasks.c.number == probes.c.task_number))


def _erase_from_tasks(connection: sa.Connection, target_id: int, *, now_ms: int) -> int:
    """Take a target's URLs out of all tasks; returns how many had a result."""
    count = 0
    for number, rows in _by_task(connection, target_id).items():
        task, answered = rows[0], [row.outcome for row in rows if row.probe_id is not None]
        count += len(answered)
        total, done = task.total - len(rows), task.done - len(answered)
        values = {"total": total, "done": done, "outcomes": dict(Counter(task.outcomes) - Counter(answered))}
        if task.finished_ms is None and done == total:
            values |= {"status": TaskStatus.DONE.value, "finished_ms": now_ms}
        connection.execute(sa.update(tasks).where(tasks.c.number == number).values(values))
        mine = sa.and_(task_urls.c.task_number == number, task_urls.c.target_id == target_id)
        connection.execute(sa.delete(task_urls).where(mine))
    return count


def _by_task(connection: sa.Connection, target_id: int) -> dict[int, list[Any]]:
    """A target's URLs in tasks, with their tasks and outcomes, by the task's number.

    Raises:
        InvalidRequest: a task with one is just being received.
    """
    # Task by task: there is an index from a task to its targets only.
    source = sa.join(tasks, task_urls, task_urls.c.task_number == tasks.c.number)
    query = (
        sa.select(tasks, task_urls.c.probe_id, probes.c.outcome)
        .select_from(source.outerjoin(probes, probes.c.id == task_urls.c.probe_id))
        .where(task_urls.c.target_id == target_id)
    )
    by_task: dict[int, list[Any]] = {}
    for row in connection.execute(query):
        if row.status == RECEIVING:
            raise InvalidRequest("a task with this URL is just being received: try again when it is complete")
        by_task.setdefault(row.number, []).append(row)
    return by_task
