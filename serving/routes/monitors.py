"""Monitors: URLs to probe again and again."""

from fastapi import APIRouter, Response

from serving.dependencies import Cursor, Limit, PlatformDep
from serving.openapi import header, problems
from serving.schemas import Listing, Monitor, MonitorRequest
from urlhealth.vocabulary import LOCAL_OWNER

router = APIRouter(prefix="/api/v1/monitors", tags=["monitors"])


@router.post(
    "",
    status_code=201,
    summary="Monitor a URL",
    responses=header(201, "Location", "Path of the monitor.") | problems(409, 422, 503),
)
def create_monitor(body: MonitorRequest, platform: PlatformDep, response: Response) -> Monitor:
    """It is first probed within one interval, and then once in each."""
    monitor = platform.crawl.create_monitor(body.url, interval_s=body.interval_s, group=body.group, owner=LOCAL_OWNER)
    response.headers["Location"] = f"{router.prefix}/{monitor.monitor_id}"
    return Monitor.of(monitor)


@router.get("", summary="List monitors", responses=problems(422, 503))
def list_monitors(platform: PlatformDep, limit: Limit = 100, cursor: Cursor = None) -> Listing[Monitor]:
    """All monitors."""
    page = platform.crawl.monitors(limit=limit, cursor=cursor, owner=LOCAL_OWNER)
    return Listing(items=[Monitor.of(monitor) for monitor in page.items], next_cursor=page.next_cursor)


@router.get("/{monitor_id}", summary="Read a monitor", responses=problems(404, 503))
def get_monitor(monitor_id: str, platform: PlatformDep) -> Monitor:
    """Its interval, and when it is due next."""
    return Monitor.of(platform.crawl.monitor(monitor_id, owner=LOCAL_OWNER))


@router.delete("/{monitor_id}", status_code=204, summary="Delete a monitor", responses=problems(404, 503))
def delete_monitor(monitor_id: str, platform: PlatformDep) -> None:
    """Stop probing it. The probes in the URL's history stay."""
    platform.crawl.delete_monitor(monitor_id, owner=LOCAL_OWNER)
