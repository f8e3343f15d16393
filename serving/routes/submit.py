"""The four calls of the small crawler that many have been taught, at the root and in its exact shapes."""

from typing import Final

from fastapi import APIRouter, Response

from serving.dependencies import CallerDep, Owner, PlatformDep, check_count
from serving.openapi import header, problems
from serving.schemas import SimpleResult, SimpleTask, SubmitRequest, Submitted
from urlhealth.vocabulary import CrawlTask, Outcome, ProbeResult, TaskResult, TaskStatus

router = APIRouter(tags=["small crawler"])

#: What `GET /tasks` returns at most.
MAX_TASKS: Final = 100
MAX_RESULTS: Final = 10_000
LIMIT_HEADER: Final = f"tasks={MAX_TASKS}, results={MAX_RESULTS}"

#: The word for an outcome. `ok` has none; where the site answered with a status, that stands in place of the word.
WORDS: Final = {
    Outcome.HTTP_ERROR: "PROTOCOL_ERROR",
    Outcome.BLOCKED: "ROBOTS",
    Outcome.DNS: "DNS_ERROR",
    Outcome.CONNECT: "CONNECTION_ERROR",
    Outcome.TLS: "SSL_ERROR",
    Outcome.TIMEOUT: "TIMEOUT",
    Outcome.TOO_MANY_REDIRECTS: "TOO_MANY_REDIRECTS",
    Outcome.TOO_LARGE: "TOO_LARGE",
    Outcome.PROTOCOL: "PROTOCOL_ERROR",
    Outcome.CONDITION: "CONDITION",
    Outcome.SELF: "NO_NETWORK",
    Outcome.REFUSED: "BLOCKED_ADDRESS",
}


@router.post("/submit", summary="Probe URLs once (small crawler)", responses=problems(413, 422, 429, 503))
def submit(body: SubmitRequest, platform: PlatformDep, caller: CallerDep) -> Submitted:
    """The same as `POST /api/v1/tasks`, in the small crawler's shape."""
    check_count(body.urls, platform.settings.max_urls_per_task)
    urls = platform.keys.metered(caller, body.urls)
    return Submitted(task_id=platform.crawl.create_task(urls, owner=caller.owner).task_id)


@router.get(
    "/tasks",
    summary="Read the newest tasks (small crawler)",
    responses=header(200, "X-Limit", "What it returns at most.") | problems(503),
)
def list_tasks(platform: PlatformDep, owner: Owner, response: Response) -> dict[str, SimpleTask]:
    """The newest 100 tasks by id, with 10,000 results in all: the newest tasks' come first. For more, use `/api/v1`."""
    page = platform.crawl.tasks(limit=MAX_TASKS, owner=owner)
    results = platform.crawl.results_of([task.task_id for task in page.items], limit=MAX_RESULTS, owner=owner)
    response.headers["X-Limit"] = LIMIT_HEADER
    # A task without results was deleted a moment ago.
    return {task.task_id: _simple(task, results[task.task_id]) for task in page.items if task.task_id in results}


@router.get("/tasks/{task_id}", summary="Read a task (small crawler)", responses=problems(404, 503))
def get_task(task_id: str, platform: PlatformDep, owner: Owner) -> SimpleTask:
    """Status and results so far."""
    task = platform.crawl.task(task_id, owner=owner)
    results = platform.crawl.results_of([task_id], limit=task.total, owner=owner)
    return _simple(task, results.get(task_id, []))


@router.delete(
    "/tasks/{task_id}", status_code=204, summary="Delete a task (small crawler)", responses=problems(404, 503)
)
def delete_task(task_id: str, platform: PlatformDep, owner: Owner) -> None:
    """The same as `DELETE /api/v1/tasks/{task_id}`."""
    platform.crawl.delete_task(task_id, owner=owner)


def errors_of(result: ProbeResult) -> dict[str, int | str]:
    """The small crawler's `errors` for one result."""
    if result.outcome is Outcome.OK:
        return {}
    answered = result.outcome in (Outcome.HTTP_ERROR, Outcome.BLOCKED) and result.status_code is not None
    return {"http": result.status_code if answered else WORDS[result.outcome]}  # type: ignore[dict-item]


def _simple(task: CrawlTask, results: list[TaskResult]) -> SimpleTask:
    running = task.status in (TaskStatus.QUEUED, TaskStatus.RUNNING)
    return SimpleTask(
        status="running" if running else "done",
        result={
            item.sent_url: SimpleResult(timestamp=item.result.ts_ms // 1000, errors=errors_of(item.result))
            for item in results
            if item.result is not None
        },
    )
