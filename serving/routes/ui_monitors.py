"""Pages of the monitors: search, tags, pause, changes to many at once, and where adaptive budgets go."""

from typing import Any, Final
from urllib.parse import parse_qs, urlencode

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError
from starlette.responses import RedirectResponse

from serving.dependencies import Body, Cursor, Owner, PlatformDep
from serving.rendering import apology, render
from serving.routes.ui import ROWS, Short, Text
from serving.schemas.monitors import MonitorPatch
from urlhealth.crawl.monitors import MonitorChange
from urlhealth.errors import InvalidRequest, NotFound

router = APIRouter(include_in_schema=False)

_POOLS: Final = 20


@router.get("/ui/monitors")
def monitors_page(
    request: Request,
    platform: PlatformDep,
    owner: Owner,
    search: Text = None,
    tag: Short = None,
    changed: int | None = None,
    cursor: Cursor = None,
) -> Response:
    """Monitors, with search and tags; how many a change was for, after one."""
    page = platform.overview.monitors(search=search or None, tag=tag or None, limit=ROWS, cursor=cursor, owner=owner)
    context = {
        "page": page,
        "search": search or "",
        "tag": tag or "",
        "changed": changed,
        "pools": platform.crawl.pools(limit=_POOLS, owner=owner).items,
    }
    return render(request, "monitors.html", context)


@router.post("/ui/monitors/change")
def change(request: Request, platform: PlatformDep, owner: Owner, body: Body) -> Response:
    """Change the monitors that are ticked, or all that the search finds, alike."""
    form = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
    first = {name: values[0] for name, values in form.items()}
    found = {name: first.get(name, "") for name in ("search", "tag")}
    try:
        wanted = _change(first.get("what", ""), first.get("value", "").strip())
        if first.get("which") == "all":
            ids = platform.overview.monitor_ids(search=found["search"] or None, tag=found["tag"] or None, owner=owner)
        else:
            ids = form.get("id", [])
        if not ids:
            raise InvalidRequest("tick the monitors that are to be changed, or choose all that the search finds")
        changed = platform.crawl.change_each(dict.fromkeys(ids, wanted), owner=owner)
    except InvalidRequest as error:
        return apology(request, error, 422)
    back = urlencode({**{name: value for name, value in found.items() if value}, "changed": changed})
    return RedirectResponse(f"{request.scope.get('root_path', '')}/ui/monitors?{back}", 303)


def _change(what: str, value: str) -> MonitorChange:
    """A line of the form as the change that the API would take."""
    fields: dict[str, dict[str, Any]] = {
        "pause": {"paused": True},
        "resume": {"paused": False},
        "interval": {"interval_s": value},
        "budget": {"schedule": {"mode": "adaptive", "budget_per_url_hour": value}},
        "tags": {"tags": value.replace(",", " ").split()},
    }
    if what not in fields:
        raise InvalidRequest("choose what is to be changed")
    try:
        return MonitorPatch.model_validate(fields[what], strict=False).to_domain()
    except ValidationError as error:
        problem = error.errors()[0]
        raise InvalidRequest(f"{value!r} cannot be used: {problem['msg']}") from error


@router.post("/ui/monitors/{monitor_id}/{what}")
def pause(request: Request, platform: PlatformDep, owner: Owner, monitor_id: str, what: str) -> Response:
    """Pause a monitor, or go on with it; the row's button, as it is then."""
    if what not in ("pause", "resume"):
        raise NotFound(f"a monitor does not {what!r}")
    monitor = platform.crawl.change_monitor(monitor_id, {"paused": what == "pause"}, owner=owner)
    return render(request, "pause.html", {"monitor": monitor})
