"""Tasks: a set of URLs to probe once, and each URL's result."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from itertools import islice
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from urlhealth.crawl.database import chunks, insert, run, writing
from urlhealth.crawl.records import (
    LOOKUP_CHUNK,
    RESULT_COLUMNS,
    Records,
    add_targets,
    by_hand,
    cursor_number,
    new_id,
    page,
    result_of,
)
from urlhealth.crawl.schema import RECEIVING, idempotency_keys, probes, targets, task_urls, tasks
from urlhealth.errors import InvalidRequest, KeyReused, NotFound
from urlhealth.probing.urls import parse_targets
from urlhealth.vocabulary import (
    DEFAULT_OPTIONS,
    LOCAL_OWNER,
    CrawlTask,
    Page,
    ProbeOptions,
    Target,
    TaskResult,
    TaskStatus,
)

#: URLs of a task that are stored in one transaction: others can write in between.
CHUNK: Final = 10_000
#: A task whose URLs have stopped coming for so long was broken off.
BROKEN_OFF_MS: Final = 10 * 60_000
#: Results read at once by :meth:`TaskStore.iter_results`.
_PAGE: Final = 1_000

#: A task's URLs with what was found for each.
_RESULTS = (
    sa.select(task_urls.c.position, task_urls.c.task_number, task_urls.c.sent_url, targets.c.key, *RESULT_COLUMNS)
    .join(targets, targets.c.id == task_urls.c.target_id)
    .outerjoin(probes, probes.c.id == task_urls.c.probe_id)
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskEvent:
    """How far a task has come, and an id that changes with it."""

    event_id: str
    task: CrawlTask


class Answered(NamedTuple):
    """A URL of a task and what was found for it, as :class:`ProbeResult` has it: for those who read very many."""

    probe_id: int
    position: int
    sent_url: str
    target: str
    ts_ms: int
    outcome: str
    status_code: int | None
    dns_ms: float | None
    connect_ms: float | None
    tls_ms: float | None
    first_byte_ms: float | None
    total_ms: float | None
    size_bytes: int
    redirects: int
    final_url: str | None
    address: str | None
    http_version: str | None
    cert_expires_ms: int | None
    error: str | None
    #: As JSON, if there was more than one.
    attempts: str | None


_ANSWERED: Final = (
    f"SELECT p.id, u.position, u.sent_url, t.key, {', '.join(f'p.{name}' for name in Answered._fields[4:])} "
    "FROM (SELECT * FROM probes WHERE id > {after:d} AND task_number = {number:d} ORDER BY id LIMIT {limit:d}) AS p "
    "JOIN targets AS t ON t.id = p.target_id "
    "JOIN task_urls AS u {hint} ON u.task_number = p.task_number AND u.target_id = p.target_id ORDER BY p.id"
)


class _KeyTaken(Exception):
    """Another request with the same idempotency key was quicker; `first` has its task's id and digest."""

    def __init__(self, first: Any) -> None:
        self.first = first


class TaskStore(Records):
    """Creates, lists, reads and deletes tasks."""

    def create_task(
        self,
        urls: Iterable[str],
        *,
        options: ProbeOptions = DEFAULT_OPTIONS,
        owner: str = LOCAL_OWNER,
        idempotency_key: str | None = None,
    ) -> CrawlTask:
        """Store a new task; it is on disk when this returns.

        Args:
            urls: a list, or an iterator that is read to its end in bounded memory. Nobody sees the task before; if the
                iterator raises, the task is gone, and targets that were new stay known.
            idempotency_key: if it was given before with the same URLs and options, the task that they made is returned,
                as it is now. A key lives as long as its task.

        Raises:
            InvalidRequest: there are no URLs.
            InvalidUrls: naming the positions of URLs that cannot be probed (all of the first 10,000 that have any).
            KeyReused: the key was given before, with other URLs or options.
        """
        digest = blake2b(repr(asdict(options)).encode(), digest_size=16)
        if idempotency_key is not None and (first := self._task_of_key(owner, idempotency_key)):
            for url in urls:
                _add_to(digest, [url])
            return self._same(first, digest.digest(), owner)
        task = CrawlTask(
            task_id=new_id(self._clock),
            owner=owner,
            status=TaskStatus.QUEUED,
            total=0,
            done=0,
            options=options,
            created_ms=self._clock(),
        )
        try:
            for some, last in _chunks(urls):
                wanted = parse_targets(some, first=task.total)
                if idempotency_key is not None:
                    _add_to(digest, some)
                with writing(self._engine) as connection:
                    number = self._receive(connection, task, some, wanted)
                    task = replace(task, total=task.total + len(some))
                    if last:
                        self._publish(connection, number, task, idempotency_key, digest.digest())
        except BaseException as error:
            with writing(self._engine) as connection:
                mine = sa.and_(tasks.c.task_id == task.task_id, tasks.c.status == RECEIVING)
                connection.execute(sa.delete(tasks).where(mine))
            if isinstance(error, _KeyTaken):
                return self._same(error.first, digest.digest(), owner)
            raise
        if not task.total:
            raise InvalidRequest("urls: the list is empty; give at least one URL")
        return task

    def _receive(
        self, connection: sa.Connection, task: CrawlTask, urls: Sequence[str], wanted: Sequence[Target]
    ) -> int:
        """Add URLs to a task that is not seen yet, and make it if they are its first; returns its number."""
        now_ms = self._clock()
        if task.total:
            mine = sa.and_(tasks.c.task_id == task.task_id, tasks.c.status == RECEIVING)
            number = connection.scalar(sa.update(tasks).where(mine).values(started_ms=now_ms).returning(tasks.c.number))
            if number is None:
                raise InvalidRequest(f"no URL came for {BROKEN_OFF_MS // 60_000} minutes: send the task again")
        else:
            secured = {"options": self._vault.stored(task.options)}
            row = asdict(task) | secured | {"status": RECEIVING, "started_ms": now_ms, "workers": []}
            (number,) = connection.execute(sa.insert(tasks).values(row)).inserted_primary_key or (0,)
        add_targets(connection, task.owner, wanted, now_ms=now_ms)
        run(
            connection,
            "INSERT INTO task_urls (task_number, position, sent_url, target_id) "
            "SELECT ?, ?, ?, id FROM targets WHERE owner = ? AND key = ?",
            [
                (number, position, url, task.owner, target.key)
                for position, (url, target) in enumerate(zip(urls, wanted, strict=True), task.total)
            ],
        )
        return int(number)

    def _publish(
        self, connection: sa.Connection, number: int, task: CrawlTask, idempotency_key: str | None, digest: bytes
    ) -> None:
        """Let everybody see the task."""
        connection.execute(
            sa.update(tasks)
            .where(tasks.c.number == number)
            .values(status=task.status.value, total=task.total, started_ms=None)
        )
        if idempotency_key is not None:
            row = {"owner": task.owner, "key": idempotency_key, "digest": digest, "task_number": number}
            keep = insert(connection, idempotency_keys).values(row).on_conflict_do_nothing()
            kept = connection.scalar(keep.returning(idempotency_keys.c.key)) is not None
            if not kept and (first := self._task_of_key(task.owner, idempotency_key)):
                raise _KeyTaken(first)

    def _task_of_key(self, owner: str, idempotency_key: str) -> Any:
        """`task_id` of the task that came with this key, and `digest` of what came with it; None if there is none."""
        query = (
            sa.select(tasks.c.task_id, idempotency_keys.c.digest)
            .join(tasks, tasks.c.number == idempotency_keys.c.task_number)
            .where(idempotency_keys.c.owner == owner, idempotency_keys.c.key == idempotency_key)
        )
        with self._engine.connect() as connection:
            return connection.execute(query).one_or_none()

    def _same(self, first: Any, digest: bytes, owner: str) -> CrawlTask:
        """The task that came first with a key, if the same came with it."""
        if first.digest != digest:
            raise KeyReused(
                f"the idempotency key came before with other URLs or options, and made the task {first.task_id}: "
                "take a new key for a new task"
            )
        return self.task(first.task_id, owner=owner)

    def task(self, task_id: str, *, owner: str = LOCAL_OWNER) -> CrawlTask:
        """The task.

        Raises:
            NotFound: the owner has none of this id.
        """
        with self._engine.connect() as connection:
            return self._task_of(_task_row(connection, task_id, owner))

    def tasks(
        self,
        *,
        status: TaskStatus | None = None,
        limit: int,
        cursor: str | None = None,
        owner: str = LOCAL_OWNER,
    ) -> Page[CrawlTask]:
        """Tasks, newest first, all or those of one status."""
        query = sa.select(tasks).where(tasks.c.owner == owner, tasks.c.status != RECEIVING)
        query = query.order_by(tasks.c.number.desc()).limit(limit + 1)
        if status is not None:
            query = query.where(tasks.c.status == status.value)
        if cursor is not None:
            query = query.where(tasks.c.number < cursor_number("tasks", cursor))
        with self._engine.connect() as connection:
            return page(connection.execute(query).all(), limit, "tasks", self._task_of)

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

    def iter_results(self, task_id: str, *, owner: str = LOCAL_OWNER) -> Iterator[TaskResult]:
        """All results of a task in the order in which their URLs were sent, read page by page.

        Ends early if the task is deleted meanwhile.

        Raises:
            NotFound: at the call: the owner has no task of this id.
        """
        with self._engine.connect() as connection:
            number = _task_row(connection, task_id, owner).number
        return self._results_from(number)

    def _results_from(self, number: int) -> Iterator[TaskResult]:
        position = 0
        while True:
            query = _RESULTS.where(task_urls.c.task_number == number, task_urls.c.position >= position)
            with self._engine.connect() as connection:
                rows = connection.execute(query.order_by(task_urls.c.position).limit(_PAGE)).all()
            yield from map(_task_result_of, rows)
            if len(rows) < _PAGE:
                return
            position = rows[-1].position + 1  # there are gaps where URLs were erased

    def last_probe_id(self) -> int:
        """Id of the newest probe, of whatever; 0 before the first."""
        with self._engine.connect() as connection:
            return connection.scalar(sa.select(sa.func.max(probes.c.id))) or 0

    def answered(self, task_id: str, *, after: int, owner: str = LOCAL_OWNER) -> list[Answered]:
        """Results of a task in the order in which they came: some of those after the probe of this id.

        Empty if there are no more yet. To start at its first one, pass what :meth:`last_probe_id` was before the task.

        Raises:
            NotFound: the owner has no task of this id.
        """
        with self._engine.connect() as connection:
            number = _task_row(connection, task_id, owner).number
            rows = by_hand(connection, _ANSWERED, after=after, number=number, limit=_PAGE).fetchall()
        return list(map(Answered._make, rows))

    def task_event(self, task_id: str, *, after: str | None = None, owner: str = LOCAL_OWNER) -> TaskEvent | None:
        """How far a task has come, unless that is what the event of the id `after` has said already.

        Raises:
            NotFound: the owner has no task of this id.
        """
        task = self.task(task_id, owner=owner)
        event_id = f"{task.done}-{task.status.value}"
        return None if event_id == after else TaskEvent(event_id=event_id, task=task)

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

    def cancel_task(self, task_id: str, *, owner: str = LOCAL_OWNER) -> CrawlTask:
        """End a task that is not done: what it still waits for is not probed. The task and its results stay.

        Returns the task as it is then. One that is done stays done, and cancelling again changes nothing.

        Raises:
            NotFound: the owner has none of this id.
        """
        unfinished = sa.and_(tasks.c.task_id == task_id, tasks.c.owner == owner, tasks.c.finished_ms.is_(None))
        cancelled = {"status": TaskStatus.CANCELLED.value, "finished_ms": self._clock()}
        with writing(self._engine) as connection:
            connection.execute(sa.update(tasks).where(unfinished).values(cancelled))
            return self._task_of(_task_row(connection, task_id, owner))

    def delete_task(self, task_id: str, *, owner: str = LOCAL_OWNER) -> None:
        """Delete the task, which also ends it: what it still waits for is not probed. Its probes stay.

        Raises:
            NotFound: the owner has none of this id.
        """
        mine = sa.and_(tasks.c.task_id == task_id, tasks.c.owner == owner)
        with writing(self._engine) as connection:
            if connection.execute(sa.delete(tasks).where(mine)).rowcount == 0:
                raise _unknown(task_id)

    def _task_of(self, row: Any) -> CrawlTask:
        return CrawlTask(
            task_id=row.task_id,
            owner=row.owner,
            status=TaskStatus(row.status),
            total=row.total,
            done=row.done,
            outcomes=row.outcomes,
            workers=tuple(row.workers),
            options=self._vault.options(row.options),
            created_ms=row.created_ms,
            started_ms=row.started_ms,
            finished_ms=row.finished_ms,
        )


def _chunks(urls: Iterable[str]) -> Iterator[tuple[list[str], bool]]:
    """The URLs in runs of `CHUNK`, and whether a run is the last."""
    remaining = iter(urls)
    some = list(islice(remaining, CHUNK))
    while some:
        following = list(islice(remaining, CHUNK))
        yield some, not following
        some = following


def _add_to(digest: blake2b, urls: Iterable[str]) -> None:
    """Digest URLs as they were sent; a URL has no line feed."""
    digest.update("".join(f"{url}\n" for url in urls).encode(errors="surrogatepass"))


def _task_row(connection: sa.Connection, task_id: str, owner: str) -> sa.Row[Any]:
    query = sa.select(tasks).where(tasks.c.task_id == task_id, tasks.c.owner == owner)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise _unknown(task_id)
    return row


def _unknown(task_id: str) -> NotFound:
    return NotFound(f"there is no task {task_id[:80]!r}: it was deleted, or never created here")


def _task_result_of(row: Any) -> TaskResult:
    result = None if row.outcome is None else result_of(row)
    return TaskResult(position=row.position, sent_url=row.sent_url, result=result)
