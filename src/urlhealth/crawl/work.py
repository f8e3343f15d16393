"""What the runner asks of the database: which targets of tasks wait, and where their results go."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from urlhealth.crawl.database import chunks, order_probe_ids, writing
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.records import (
    LOOKUP_CHUNK,
    TARGET_COLUMNS,
    ProbeRow,
    Records,
    feeds_features,
    insert_probes,
    probe_row,
    remember,
    target_of,
)
from urlhealth.crawl.schema import monitors, probes, targets, task_urls, tasks
from urlhealth.vocabulary import (
    LOCAL_OWNER,
    Probed,
    ProbeOptions,
    ProbeSource,
    Target,
    TaskStatus,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenTask:
    """A task that is not done."""

    number: int
    task_id: str
    options: ProbeOptions
    queued: bool


class WorkStore(Records):
    """Hands out what waits, and files what was found. Writes only under the lease."""

    def open_tasks(self, *, limit: int) -> list[OpenTask]:
        """Tasks of all owners that are not done, oldest first."""
        query = (
            sa.select(tasks.c.number, tasks.c.task_id, tasks.c.options, tasks.c.status)
            .where(tasks.c.finished_ms.is_(None))
            .order_by(tasks.c.number)
            .limit(limit)
        )
        with self._engine.connect() as connection:
            return [
                OpenTask(
                    number=row.number,
                    task_id=row.task_id,
                    options=ProbeOptions(**row.options),
                    queued=row.status == TaskStatus.QUEUED.value,
                )
                for row in connection.execute(query)
            ]

    def waiting_targets(self, task_number: int, *, after: int, limit: int) -> list[tuple[int, Target]]:
        """Targets of a task that have no result yet, each once, with their ids: the next ones after the id `after`."""
        distinct = (
            sa.select(task_urls.c.target_id)
            .distinct()
            .where(
                task_urls.c.task_number == task_number, task_urls.c.probe_id.is_(None), task_urls.c.target_id > after
            )
            .order_by(task_urls.c.target_id)
            .limit(limit)
            .subquery()
        )
        query = sa.select(targets.c.id, *TARGET_COLUMNS).join(distinct, distinct.c.target_id == targets.c.id)
        with self._engine.connect() as connection:
            return [(row.id, target_of(row)) for row in connection.execute(query.order_by(targets.c.id))]

    def start_tasks(self, numbers: Sequence[int], *, lease: Lease) -> None:
        """Note that queued tasks are running.

        Raises:
            LeaseLost: another process is the writer.
        """
        queued = sa.and_(tasks.c.number.in_(numbers), tasks.c.status == TaskStatus.QUEUED.value)
        with writing(self._engine) as connection:
            lease.fence(connection)
            started = {"status": TaskStatus.RUNNING.value, "started_ms": self._clock()}
            connection.execute(sa.update(tasks).where(queued).values(started))

    def file_results(self, results: Sequence[Probed], *, worker: str, lease: Lease) -> int:
        """Store results and give each to what asked for it, in one transaction; returns how many were stored.

        A target of a task gets one result: a second one is dropped. The result for a task or monitor that was deleted
        meanwhile goes into the target's history all the same.

        Raises:
            LeaseLost: another process is the writer; nothing was written.
        """
        with writing(self._engine) as connection:
            lease.fence(connection)
            order_probe_ids(connection)
            before = connection.scalar(sa.select(sa.func.max(probes.c.id))) or 0
            batch = _Batch(connection, results, now_ms=self._clock())
            insert_probes(connection, batch.rows)
            batch.answer_urls(before)
            batch.update_tasks(worker)
        return len(batch.rows)


@dataclass
class _Progress:
    """What a batch adds to a task."""

    row: Any
    outcomes: Counter[str] = field(default_factory=Counter)


class _Batch:
    """The rows to insert for a batch of results, and what they add to their tasks."""

    def __init__(self, connection: sa.Connection, results: Sequence[Probed], *, now_ms: int) -> None:
        self._connection = connection
        self._now_ms = now_ms
        self.rows: list[ProbeRow] = []
        task_ids = {p.request.task_id for p in results if p.request.task_id}
        monitor_ids = {p.request.monitor_id for p in results if p.request.monitor_id}
        self._tasks = {
            row.task_id: _Progress(row)
            # Locked, so that the task is not deleted while its results are filed.
            for row in self._found(sa.select(tasks).with_for_update(), tasks.c.task_id, task_ids)
        }
        self._monitors = {
            row.monitor_id: row for row in self._found(sa.select(monitors), monitors.c.monitor_id, monitor_ids)
        }
        ids = self._target_ids(results)
        waiting = self._waiting(results, ids)
        #: Positions that get their result, by task number and target id.
        self._answered: dict[tuple[int, int], list[int]] = {}
        for probed in results:
            request = probed.request
            owner = self._owner(probed)
            target_id = ids[owner, request.target.key]
            task = self._tasks.get(request.task_id or "")
            if task is not None:
                asker = (task.row.number, target_id)
                if asker not in waiting:
                    continue
                self._answered[asker] = waiting.pop(asker)
                task.outcomes[probed.result.outcome.value] += len(self._answered[asker])
            monitor = self._monitors.get(request.monitor_id or "")
            self.rows.append(
                probe_row(
                    probed.result,
                    target_id,
                    owner=owner,
                    source=ProbeSource.CRAWL,
                    feeds_features=feeds_features(request),
                    task_number=task.row.number if task else None,
                    monitor_number=monitor.number if monitor else None,
                )
            )

    def answer_urls(self, before: int) -> None:
        """Give each URL that waits the probe of its task and target; `before` is the id of the last older probe."""
        new = sa.select(probes.c.id, probes.c.task_number, probes.c.target_id).where(
            probes.c.id > before, probes.c.task_number.is_not(None)
        )
        answers = [
            {"the_task": number, "the_position": position, "the_probe": probe_id}
            for probe_id, number, target_id in self._connection.execute(new)
            for position in self._answered[number, target_id]
        ]
        if answers:
            update = sa.update(task_urls).where(
                task_urls.c.task_number == sa.bindparam("the_task"),
                task_urls.c.position == sa.bindparam("the_position"),
            )
            self._connection.execute(update.values(probe_id=sa.bindparam("the_probe")), answers)

    def update_tasks(self, worker: str) -> None:
        """Write the counters of the tasks, and end those that have all their results."""
        for task in self._tasks.values():
            if not task.outcomes:
                continue
            row = task.row
            done = row.done + task.outcomes.total()
            values = {
                "done": done,
                "outcomes": dict(Counter(row.outcomes) + task.outcomes),
                "workers": sorted({*row.workers, worker}),
            }
            if done == row.total:
                values |= {"status": TaskStatus.DONE.value, "finished_ms": self._now_ms}
            self._connection.execute(sa.update(tasks).where(tasks.c.number == row.number).values(values))

    def _found(self, query: sa.Select[Any], column: sa.Column[Any], ids: set[str]) -> list[Any]:
        return [
            row
            for some in chunks(sorted(ids), LOOKUP_CHUNK)
            for row in self._connection.execute(query.where(column.in_(some)))
        ]

    def _owner(self, probed: Probed) -> str:
        """Whose it is: the task's or monitor's owner. What was deleted cannot say."""
        task = self._tasks.get(probed.request.task_id or "")
        monitor = self._monitors.get(probed.request.monitor_id or "")
        owner: str = task.row.owner if task else monitor.owner if monitor else LOCAL_OWNER
        return owner

    def _target_ids(self, results: Sequence[Probed]) -> dict[tuple[str, str], int]:
        """Ids of the results' targets by owner and key."""
        by_owner: dict[str, list[Target]] = {}
        for probed in results:
            by_owner.setdefault(self._owner(probed), []).append(probed.request.target)
        return {
            (owner, key): target_id
            for owner, some in by_owner.items()
            for key, target_id in remember(self._connection, owner, some, now_ms=self._now_ms).items()
        }

    def _waiting(self, results: Sequence[Probed], ids: dict[tuple[str, str], int]) -> dict[tuple[int, int], list[int]]:
        """Positions that wait for a target's result, by task number and target id."""
        wanted: dict[int, set[int]] = {}
        for probed in results:
            task = self._tasks.get(probed.request.task_id or "")
            if task is not None:
                wanted.setdefault(task.row.number, set()).add(ids[task.row.owner, probed.request.target.key])
        waiting: dict[tuple[int, int], list[int]] = {}
        for number, target_ids in wanted.items():
            for some in chunks(sorted(target_ids), LOOKUP_CHUNK):
                query = sa.select(task_urls.c.target_id, task_urls.c.position).where(
                    task_urls.c.task_number == number,
                    task_urls.c.probe_id.is_(None),
                    task_urls.c.target_id.in_(some),
                )
                for target_id, position in self._connection.execute(query):
                    waiting.setdefault((number, target_id), []).append(position)
        return waiting
