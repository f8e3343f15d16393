"""What the runner asks of the database: which targets of tasks wait, and where their results go."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from urlhealth.crawl.database import chunks, order_probe_ids, writing
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.records import (
    LOOKUP_CHUNK,
    ProbeRow,
    Records,
    by_hand,
    feeds_features,
    insert_probes,
    probe_row,
)
from urlhealth.crawl.schema import RECEIVING, monitors, probes, targets, task_urls, tasks
from urlhealth.crawl.tasks import BROKEN_OFF_MS
from urlhealth.vocabulary import (
    DEFAULT_OPTIONS,
    Probed,
    ProbeOptions,
    ProbeSource,
    Target,
    TaskStatus,
)

#: What waits for a task's targets, and how many URLs each has.
_WAITING: Final = (
    "SELECT target_id, count(*) FROM task_urls {hint} "
    "WHERE task_number = {number:d} AND target_id IN ({target_ids}) AND probe_id IS NULL GROUP BY target_id"
)
#: Gives the URLs that wait the probes after some id.
_ANSWER_URLS: Final = (
    "UPDATE task_urls {hint} SET probe_id = p.id FROM probes AS p WHERE p.id > {before:d} "
    "AND task_urls.task_number = p.task_number AND task_urls.target_id = p.target_id AND task_urls.probe_id IS NULL"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenTask:
    """A task that is not done."""

    number: int
    task_id: str
    owner: str
    options: ProbeOptions
    queued: bool


class WorkStore(Records):
    """Hands out what waits, and files what was found. Writes only under the lease."""

    def open_tasks(self, *, limit: int) -> list[OpenTask]:
        """Tasks of all owners that are not done, oldest first."""
        query = (
            sa.select(tasks.c.number, tasks.c.task_id, tasks.c.owner, tasks.c.options, tasks.c.status)
            .where(tasks.c.finished_ms.is_(None), tasks.c.status != RECEIVING)
            .order_by(tasks.c.number)
            .limit(limit)
        )

        def options_of(row: Any) -> ProbeOptions:
            options = self._vault.options(row.options)
            return DEFAULT_OPTIONS if options == DEFAULT_OPTIONS else options

        with self._engine.connect() as connection:
            return [
                OpenTask(
                    number=row.number,
                    task_id=row.task_id,
                    owner=row.owner,
                    options=options_of(row),
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
        query = sa.select(targets.c.id, targets.c.key, targets.c.name, targets.c.host, targets.c.group)
        query = query.join(distinct, distinct.c.target_id == targets.c.id).order_by(targets.c.id)
        with self._engine.connect() as connection:
            return [
                (
                    number,
                    Target(
                        url=key if name is None else key.removesuffix(f"#{name}"), host=host, group=group, name=name
                    ),
                )
                for number, key, name, host, group in connection.execute(query).all()
            ]

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

    def drop_broken_off(self) -> None:
        """Delete tasks whose URLs have stopped coming before the last one, because their process was killed."""
        broken_off = sa.and_(
            tasks.c.finished_ms.is_(None),
            tasks.c.status == RECEIVING,
            tasks.c.started_ms < self._clock() - BROKEN_OFF_MS,
        )
        with self._engine.connect() as connection:
            found = connection.scalars(sa.select(tasks.c.number).where(broken_off)).all()
        if found:
            with writing(self._engine) as connection:
                connection.execute(sa.delete(tasks).where(tasks.c.number.in_(found), broken_off))

    def file_results(self, results: Sequence[Probed], *, worker: str, lease: Lease) -> int:
        """Store results and give each to what asked for it, in one transaction; returns how many were stored.

        `worker`: who did the work, where a result does not say.

        A target of a task gets one result: a second one is dropped. The result for a task or monitor that was deleted
        meanwhile goes into the target's history all the same; one for a task that was cancelled is shown in it. What
        was found of a target that was erased meanwhile is dropped.

        Raises:
            LeaseLost: another process is the writer; nothing was written.
        """
        try:
            return self._file(results, worker=worker, lease=lease)
        except sa.exc.IntegrityError:  # a target was erased while it was probed
            return self._file(self._of_known_targets(results), worker=worker, lease=lease)

    def _of_known_targets(self, results: Sequence[Probed]) -> list[Probed]:
        ids = sorted({probed.request.target_id for probed in results})
        with self._engine.connect() as connection:
            known = {
                target_id
                for some in chunks(ids, LOOKUP_CHUNK)
                for target_id in connection.scalars(sa.select(targets.c.id).where(targets.c.id.in_(some)))
            }
        return [probed for probed in results if probed.request.target_id in known]

    def _file(self, results: Sequence[Probed], *, worker: str, lease: Lease) -> int:
        with writing(self._engine) as connection:
            lease.fence(connection)
            order_probe_ids(connection)
            batch = _Batch(connection, results, worker)
            before = connection.scalar(sa.select(sa.func.max(probes.c.id))) or 0
            insert_probes(connection, batch.rows)
            batch.answer_urls(before)
            batch.update_tasks(now_ms=self._clock())
        return len(batch.rows)


@dataclass
class _Progress:
    """What a batch adds to a task."""

    row: Any
    #: By target id: how many of the task's URLs wait for it.
    waiting: dict[int, int] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    workers: set[str] = field(default_factory=set)


class _Batch:
    """The rows to insert for a batch of results, and what they add to their tasks."""

    def __init__(self, connection: sa.Connection, results: Sequence[Probed], worker: str) -> None:
        self._connection = connection
        self.rows: list[ProbeRow] = []
        task_ids = {p.request.task_id for p in results if p.request.task_id}
        monitor_ids = {p.request.monitor_id for p in results if p.request.monitor_id}
        self._tasks = {
            row.task_id: _Progress(row)
            # Locked, so that the task is not deleted while its results are filed.
            for row in self._found(sa.select(tasks).with_for_update(), tasks.c.task_id, task_ids)
        }
        monitor_numbers = {
            row.monitor_id: row.number
            for row in self._found(
                sa.select(monitors.c.monitor_id, monitors.c.number), monitors.c.monitor_id, monitor_ids
            )
        }
        self._find_waiting(results)
        for probed in results:
            request = probed.request
            task = self._tasks.get(request.task_id or "")
            if task is not None:
                urls = task.waiting.pop(request.target_id, 0)
                if not urls:
                    continue
                task.outcomes[probed.result.outcome._value_] += urls
                task.workers.add(probed.worker_id or worker)
            self.rows.append(
                probe_row(
                    probed.result,
                    request.target_id,
                    owner=request.owner,
                    source=ProbeSource.CRAWL,
                    feeds_features=feeds_features(request),
                    task_number=task.row.number if task else None,
                    monitor_number=monitor_numbers.get(request.monitor_id or ""),
                )
            )

    def answer_urls(self, before: int) -> None:
        """Give each URL that waits the probe of its task and target; `before` is the id of the last older probe."""
        if self._tasks:
            by_hand(self._connection, _ANSWER_URLS, before=before)

    def update_tasks(self, *, now_ms: int) -> None:
        """Write the counters of the tasks, and end those that have all their results."""
        for task in self._tasks.values():
            if not task.outcomes:
                continue
            row = task.row
            done = row.done + task.outcomes.total()
            values = {
                "done": done,
                "outcomes": dict(Counter(row.outcomes) + task.outcomes),
                "workers": sorted({*row.workers, *task.workers}),
            }
            if done == row.total and row.finished_ms is None:
                values |= {"status": TaskStatus.DONE.value, "finished_ms": now_ms}
            self._connection.execute(sa.update(tasks).where(tasks.c.number == row.number).values(values))

    def _found(self, query: sa.Select[Any], column: sa.Column[Any], ids: Iterable[str]) -> list[Any]:
        return [
            row
            for some in chunks(sorted(ids), LOOKUP_CHUNK)
            for row in self._connection.execute(query.where(column.in_(some)))
        ]

    def _find_waiting(self, results: Sequence[Probed]) -> None:
        """For each task, count the URLs that wait for the targets of these results."""
        wanted: dict[str, list[int]] = {}
        for probed in results:
            if probed.request.task_id in self._tasks:
                wanted.setdefault(probed.request.task_id or "", []).append(probed.request.target_id)
        for task_id, target_ids in wanted.items():
            task = self._tasks[task_id]
            # The numbers as text: thousands of parameters would take longer than the query.
            ids = ", ".join(map(str, target_ids))
            task.waiting.update(by_hand(self._connection, _WAITING, number=task.row.number, target_ids=ids).fetchall())
