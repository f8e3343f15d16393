"""A task's progress as Server-Sent Events."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Final

import anyio
from anyio.to_thread import run_sync

from serving.schemas import Task
from urlhealth.crawl.store import CrawlStore
from urlhealth.errors import NotFound
from urlhealth.vocabulary import TaskStatus

FINISHED: Final = frozenset({TaskStatus.DONE, TaskStatus.CANCELLED})
#: Time between two looks at a task.
POLL_S: Final = 0.25
#: Time after which a line is sent though nothing happened, so that nobody on the way takes the connection for dead.
_SILENT_S: Final = 15


async def task_events(crawl: CrawlStore, task_id: str, *, after: str | None, owner: str) -> AsyncIterator[str]:
    """`progress` whenever the task has come further since the event `after`; at its end `done`, `cancelled` or
    `deleted`, which is the last one. Between two looks nothing of the database is held.
    """
    silent_s = 0.0
    while True:
        try:
            event = await run_sync(partial(crawl.task_event, task_id, after=after, owner=owner))
        except NotFound:
            yield _message("deleted", "{}")
            return
        if event is not None:
            finished = event.task.status in FINISHED
            data = Task.of(event.task).model_dump_json()
            yield _message(event.task.status if finished else "progress", data, event_id=event.event_id)
            if finished:
                return
            after, silent_s = event.event_id, 0.0
        elif silent_s >= _SILENT_S:
            yield ": nothing new\n\n"
            silent_s = 0.0
        await anyio.sleep(POLL_S)
        silent_s += POLL_S


def _message(name: str, data: str, *, event_id: str | None = None) -> str:
    number = "" if event_id is None else f"id: {event_id}\n"
    return f"{number}event: {name}\ndata: {data}\n\n"
