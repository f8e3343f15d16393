"""Tasks: a set of URLs to probe once, and each URL's result."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from urlhealth.crawl.database import chunks, writing
from urlhealth.crawl.records import (
    LOOKUP_CHUNK,
    RESULT_COLUMNS,
    Records,
    cursor_number,
    new_id,
    page,
    remember,
    result_of,
)
from urlhealth.crawl.schema import probes, targets, task_urls, tasks
from urlhealth.errors import InvalidRequest, NotFound
from urlhealth.probing.urls import parse_targets
from urlhealth.vocabulary import (
    DEFAULT_OPTIONS,
    LOCAL_OWNER,
    CrawlTask,
    Page,
    ProbeOptions,
    TaskResult,
    TaskStatus,
)

#: A task's URLs with what was found for each.
_RESULTS = (
    sa.select(task_urls.c.position, task_urls.c.task_number, task_urls.c.sent_url, targets.c.key, *RESULT_COLUMNS)
    .join(targets, targets.c.id == task_urls.c.target_id)
    .outerjoin(probes, probes.c.id == task_urls.c.probe_id)
)


class TaskStore(Records):
    """Creates, lists, reads and deletes tasks."""

    def create_task(
        self, urls: Sequence[str], *, options: ProbeOptions = DEFAULT_OPTIONS, owner: str = LOCAL_OWNER
    ) -> CrawlTask:
        """Store a new task; it is on disk when this returns.

        Raises:
            InvalidRequest: the list is empty.
            InvalidUrls: naming the position of each URL that cannot be probed.
        """
        if not urls:
            raise InvalidRequest("urls: the list is empty; give at least one URL")
        wanted = parse_targets(urls)
        now_ms = self._clock()
        task = CrawlTask(
            task_id=new_id(self._clock),
            owner=owner,
            status=TaskStatus.QUEUED,
            total=len(urls),
            done=0,
            options=options,
            created_ms=now_ms,
        )
        with writing(self._engine) as connection:
            ids = remember(connection, owner, wanted, now_ms=now_ms)
            row = asdict(task) | {"status": task.status.value, "workers": []}
            (number,) = connection.execute(sa.insert(tasks).values(row)).inserted_primary_key or (0,)
            connection.execute(
                sa.insert(task_urls),
                [
                    {"task_number": number, "position": i, "sent_url": url, "target_id": ids[target.key]}
                    for i, (url, target) in enumerate(zip(urls, wanted, strict=True))
                ],
            )
        return task

    def task(self, task_id: str, *, owner: str = LOCAL_OWNER) -> CrawlTask:
        """The task.

        Raises:
            NotFound: the owner has none of this id.
        """
        with self._engine.connect() as connection:
            return _task_of(_task_row(connection, task_id, owner))

    def tasks(
        self,
        *,
        status: TaskStatus | None = None,
        limit: int,
        cursor: str | None = None,
        owner: str = LOCAL_OWNER,
    ) -> Page[CrawlTask]:
        """Tasks, newest first, all or those of one status."""
        query = sa.select(tasks).where(tasks.c.owner == owner).order_by(tasks.c.number.desc()).limit(limit + 1)
        if status is not None:
            query = query.where(tasks.c.status == status.value)
        if cursor is not None:
            query = query.where(tasks.c.number < cursor_number("tasks", cursor))
        with self._engine.connect() as connection:
            return page(connection.execute(query).all(), limit, "tasks", _task_of)

    def task_results(
        self, task_id: str, *, limit: int, cursor: str | None = None, owner: str = LOCAL_OWNER
    ) -> Page[TaskResult]:
        """One item a URL, in the order in which they were sent.

        Raises:
            NotFound: the owner has no task of this id.
        """
        after = -1 if cursor is None else cursor_number("results", cursor)
        with self._engine.connect() as connection:
            number = _task_row(connection, task_id, owner).number
            query = _RESULTS.where(task_urls.c.task_number == number, task_urls.c.position > after)
            rows = connection.execute(query.order_by(task_urls.c.position).limit(limit + 1)).all()
        return page(rows, limit, "results", _task_result_of)

    def results_of(
        self, task_ids: Sequence[str], *, limit: int, owner: str = LOCAL_OWNER
    ) -> dict[str, list[TaskResult]]:
        """The results of several tasks, in their order, until there are `limit` results in all.

        The task at which the limit is reached has only its first ones, and those after it an empty list. Unknown ids
        are absent.
        """
        totals = sa.select(tasks.c.task_id, tasks.c.number, tasks.c.total).where(tasks.c.owner == owner)
        found: dict[str, list[TaskResult]] = {}
        with self._engine.connect() as connection:
            known = {
                row.task_id: row
                for some in chunks(task_ids, LOOKUP_CHUNK)
                for row in connection.execute(totals.where(tasks.c.task_id.in_(some)))
            }
            room = limit
            wanted: dict[int, int] = {}
            for task_id in task_ids:
                if task_id in known:
                    found[task_id] = []
                    wanted[known[task_id].number] = min(room, known[task_id].total)
                    room -= wanted[known[task_id].number]
            # Whole tasks in one query; each has at most `limit` results that are wanted.
            query = _RESULTS.where(
                task_urls.c.task_number.in_([number for number, count in wanted.items() if count]),
                task_urls.c.position < limit,
            )
            ids = {row.number: task_id for task_id, row in known.items()}
            for row in connection.execute(query.order_by(task_urls.c.task_number, task_urls.c.position)):
                if row.position < wanted[row.task_number]:
                    found[ids[row.task_number]].append(_task_result_of(row))
        return found

    def delete_task(self, task_id: str, *, owner: str = LOCAL_OWNER) -> None:
        """Delete the task, which also ends it: what it still waits for is not probed. Its probes stay.

        Raises:
            NotFound: the owner has none of this id.
        """
        mine = sa.and_(tasks.c.task_id == task_id, tasks.c.owner == owner)
        with writing(self._engine) as connection:
            if connection.execute(sa.delete(tasks).where(mine)).rowcount == 0:
                raise _unknown(task_id)


def _task_row(connection: sa.Connection, task_id: str, owner: str) -> sa.Row[Any]:
    query = sa.select(tasks).where(tasks.c.task_id == task_id, tasks.c.owner == owner)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise _unknown(task_id)
    return row


def _unknown(task_id: str) -> NotFound:
    return NotFound(f"there is no task {task_id[:80]!r}: it was deleted, or never created here")


def _task_of(row: Any) -> CrawlTask:
    return CrawlTask(
        task_id=row.task_id,
        owner=row.owner,
        status=TaskStatus(row.status),
        total=row.total,
        done=row.done,
        outcomes=row.outcomes,
        workers=tuple(row.workers),
        options=ProbeOptions(**row.options),
        created_ms=row.created_ms,
        started_ms=row.started_ms,
        finished_ms=row.finished_ms,
    )


def _task_result_of(row: Any) -> TaskResult:
    result = None if row.outcome is None else result_of(row)
    return TaskResult(position=row.position, sent_url=row.sent_url, result=result)
