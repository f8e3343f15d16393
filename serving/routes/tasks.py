"""Crawl tasks: URLs to probe once."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from serving.dependencies import Cursor, Limit, PlatformDep, check_count
from serving.openapi import header, problems
from serving.schemas import Listing, Task, TaskCreated, TaskRequest, TaskResult
from urlhealth.vocabulary import LOCAL_OWNER, TaskStatus

router = APIRouter(prefix="/api/v1/tasks", tags=["tasks"])


@router.post(
    "",
    status_code=202,
    summary="Probe URLs once",
    responses=header(202, "Location", "Path of the task.") | problems(413, 422, 503),
)
def create_task(body: TaskRequest, platform: PlatformDep, response: Response) -> TaskCreated:
    """Store a task. It is on disk before the reply, and is carried out even if the server stops in between."""
    check_count(body.urls, platform)
    task = platform.crawl.create_task(body.urls, options=body.options.to_domain(), owner=LOCAL_OWNER)
    response.headers["Location"] = f"{router.prefix}/{task.task_id}"
    return TaskCreated(task_id=task.task_id, status=task.status, total=task.total)


@router.get("", summary="List tasks, newest first", responses=problems(422, 503))
def list_tasks(
    platform: PlatformDep,
    status: Annotated[TaskStatus | None, Query(description="Only those in this status.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Listing[Task]:
    """All tasks, or those in one status."""
    page = platform.crawl.tasks(status=status, limit=limit, cursor=cursor, owner=LOCAL_OWNER)
    return Listing(items=[Task.of(task) for task in page.items], next_cursor=page.next_cursor)


@router.get("/{task_id}", summary="Say how far a task has come", responses=problems(404, 503))
def get_task(task_id: str, platform: PlatformDep) -> Task:
    """Status, counts by outcome, times, and who did the work."""
    return Task.of(platform.crawl.task(task_id, owner=LOCAL_OWNER))


@router.get("/{task_id}/results", summary="Read a task's results", responses=problems(404, 422, 503))
def get_results(task_id: str, platform: PlatformDep, limit: Limit = 100, cursor: Cursor = None) -> Listing[TaskResult]:
    """One item a URL as it was sent, in that order, also while the task is running."""
    page = platform.crawl.task_results(task_id, limit=limit, cursor=cursor, owner=LOCAL_OWNER)
    return Listing(items=[TaskResult.of(item) for item in page.items], next_cursor=page.next_cursor)


@router.delete("/{task_id}", status_code=204, summary="Delete a task", responses=problems(404, 503))
def delete_task(task_id: str, platform: PlatformDep) -> None:
    """Cancel it if it is running, and delete it. The probes in its URLs' history stay."""
    platform.crawl.delete_task(task_id, owner=LOCAL_OWNER)
