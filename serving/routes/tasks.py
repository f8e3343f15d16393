"""Crawl tasks: URLs to probe once."""

from typing import Annotated, Any, Final

from anyio import to_thread
from fastapi import APIRouter, Header, Query, Request, Response
from starlette.responses import StreamingResponse

from serving.dependencies import CallerDep, Cursor, Limit, Owner, PlatformDep
from serving.events import FINISHED, task_events
from serving.exports import CSV, NDJSON, Format, as_csv, ndjson, preferred
from serving.intake import task_of
from serving.openapi import header, problems
from serving.schemas import Listing, Task, TaskCreated, TaskResult
from urlhealth.vocabulary import CrawlTask, TaskStatus

router = APIRouter(prefix="/api/v1/tasks", tags=["tasks"])

#: Bodies that are taken at once; later ones wait. Each holds a thread, and the sender says for how long.
MAX_UPLOADS: Final = 64

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="Any text of yours. Sent again with the same body, the reply is about the task that there is.",
        examples=["7b0c5f1e-nightly"],
    ),
]

_URLS: Final = ["https://example.com", "https://example.org/status"]
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "May be packed (`Content-Encoding: gzip`). Lines are taken as they come, however many.",
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/TaskRequest"},
                "example": {"urls": _URLS, "options": {"timeout_s": 5}},
            },
            NDJSON: {
                "schema": {
                    "type": "string",
                    "description": 'A line is a URL as a JSON string, or `{"url": ...}`. The first may be '
                    '`{"options": {...}}`, with the fields of `Options`.',
                },
                "example": '{"options": {"timeout_s": 5}}\n"https://example.com"\n{"url": "https://example.org/status"}\n',
            },
            "text/plain": {
                "schema": {
                    "type": "string",
                    "description": "A URL a line; blank lines and lines that begin with `#` are left out.",
                },
                "example": "\n".join(("# shops", *_URLS)),
            },
        },
    }
}


@router.post(
    "",
    status_code=202,
    summary="Probe URLs once",
    responses=header(202, "Location", "Path of the task.") | problems(408, 409, 413, 415, 422, 429, 503),
    openapi_extra=_BODY,
)
async def create_task(
    request: Request,
    platform: PlatformDep,
    caller: CallerDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> TaskCreated:
    """Store a task. It is on disk before the reply, and is carried out even if the server stops in between.

    Positions in an error (`/urls/3`) count URLs from 0, also where they were sent as lines.
    """

    def store() -> CrawlTask:
        urls, options = task_of(request, max_urls=platform.settings.max_urls_per_task)
        return platform.crawl.create_task(
            platform.keys.metered(caller, urls),
            options=options.to_domain(),
            owner=caller.owner,
            idempotency_key=idempotency_key,
        )

    task = await to_thread.run_sync(store, limiter=request.app.state.uploads)
    response.headers["Location"] = f"{router.prefix}/{task.task_id}"
    return TaskCreated(task_id=task.task_id, status=task.status, total=task.total)


@router.get("", summary="List tasks, newest first", responses=problems(422, 503))
def list_tasks(
    platform: PlatformDep,
    owner: Owner,
    status: Annotated[TaskStatus | None, Query(description="Only those in this status.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Listing[Task]:
    """All tasks, or those in one status."""
    page = platform.crawl.tasks(status=status, limit=limit, cursor=cursor, owner=owner)
    return Listing(items=[Task.of(task) for task in page.items], next_cursor=page.next_cursor)


@router.get("/{task_id}", summary="Say how far a task has come", responses=problems(404, 503))
def get_task(task_id: str, platform: PlatformDep, owner: Owner) -> Task:
    """Status, counts by outcome, times, and who did the work."""
    return Task.of(platform.crawl.task(task_id, owner=owner))


_WHOLE: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "content": {
            NDJSON: {
                "schema": {"type": "string", "description": "A `TaskResult` a line."},
                "example": '{"position":0,"url":"https://example.com","target":"https://example.com/","outcome":"ok",'
                '"status_code":200,"total_ms":81.5}\n',
            },
            CSV: {
                "schema": {"type": "string", "description": "The fields of `TaskResult`; a header line comes first."},
                "example": "position,url,target,timestamp,outcome,status_code\r\n"
                "0,https://example.com,https://example.com/,2026-01-01T00:00:00.000Z,ok,200\r\n",
            },
        }
    }
}


@router.get(
    "/{task_id}/results",
    summary="Read a task's results",
    response_model=Listing[TaskResult],
    responses=_WHOLE | problems(404, 422, 503),
)
def get_results(
    task_id: str,
    request: Request,
    platform: PlatformDep,
    owner: Owner,
    limit: Limit = 100,
    cursor: Cursor = None,
    format: Annotated[
        Format | None, Query(description="`ndjson` and `csv` are the whole, not pages. Goes before `Accept`.")
    ] = None,
) -> Listing[TaskResult] | Response:
    """One item a URL as it was sent, in that order, also while the task is running."""
    chosen = format or preferred(request.headers.get("accept", ""))
    if chosen == "json":
        page = platform.crawl.task_results(task_id, limit=limit, cursor=cursor, owner=owner)
        return Listing(items=[TaskResult.of(item) for item in page.items], next_cursor=page.next_cursor)
    results = platform.crawl.iter_results(task_id, owner=owner)
    if chosen == "ndjson":
        return StreamingResponse(ndjson(results), media_type=NDJSON)
    disposition = {"Content-Disposition": f'attachment; filename="{task_id}.csv"'}
    return StreamingResponse(as_csv(results), media_type=CSV, headers=disposition)


@router.get(
    "/{task_id}/events",
    summary="Follow a task",
    response_class=Response,
    responses=problems(404, 503)
    | {
        200: {
            "description": "Server-Sent Events: `progress`, and at the end `done`, `cancelled` or `deleted`. Their "
            "data is the task.",
            "content": {
                "text/event-stream": {
                    "schema": {"type": "string"},
                    "example": "id: 41\nevent: progress\n"
                    'data: {"task_id":"...","status":"running","total":42,"done":41}\n\n',
                }
            },
        },
        204: {"description": "The task is finished, and `Last-Event-ID` was its last event: do not ask again."},
    },
)
async def get_events(
    task_id: str,
    platform: PlatformDep,
    owner: Owner,
    last_event_id: Annotated[
        str | None, Header(max_length=200, description="Id of the last event seen; what follows it is sent.")
    ] = None,
) -> Response:
    """Its progress as it comes (Server-Sent Events), up to its end."""
    crawl = platform.crawl
    task = await to_thread.run_sync(lambda: crawl.task(task_id, owner=owner))
    if task.status in FINISHED and last_event_id is not None:
        event = await to_thread.run_sync(lambda: crawl.task_event(task_id, after=last_event_id, owner=owner))
        if event is None:
            return Response(status_code=204)
    events = task_events(crawl, task_id, after=last_event_id, owner=owner)
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@router.post("/{task_id}/cancel", summary="Cancel a task", responses=problems(404, 503))
def cancel_task(task_id: str, platform: PlatformDep, owner: Owner) -> Task:
    """Probe nothing more for it. The task and its results stay; one that is done stays as it is."""
    return Task.of(platform.crawl.cancel_task(task_id, owner=owner))


@router.delete("/{task_id}", status_code=204, summary="Delete a task", responses=problems(404, 503))
def delete_task(task_id: str, platform: PlatformDep, owner: Owner) -> None:
    """Cancel it if it is running, and delete it. The probes in its URLs' history stay."""
    platform.crawl.delete_task(task_id, owner=owner)
