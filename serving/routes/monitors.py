"""Monitors: URLs to probe again and again."""

import tempfile
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final

import orjson
from anyio import to_thread
from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from starlette.responses import StreamingResponse

from serving.dependencies import CallerDep, Cursor, Limit, Owner, PlatformDep
from serving.exports import NDJSON
from serving.intake import (
    MAX_STREAM_BYTES,
    NDJSON_TYPES,
    json_value,
    limited,
    lines,
    loads,
    media_type,
    received,
    valid,
)
from serving.middleware import MAX_BODY_BYTES
from serving.openapi import header, problems
from serving.schemas import (
    Changed,
    Listing,
    Monitor,
    MonitorAnswer,
    MonitorAnswers,
    MonitorPatch,
    MonitorRequest,
    parse_monitor,
)
from serving.schemas.monitors import Line
from urlhealth.crawl.keys import Caller
from urlhealth.crawl.monitors import ALL, Selection
from urlhealth.errors import Duplicate, InvalidRequest
from urlhealth.platform import Platform
from urlhealth.vocabulary import MonitorSpec

router = APIRouter(prefix="/api/v1/monitors", tags=["monitors"])

#: Answers that are kept in memory, in bytes; more are kept in a file until they are sent.
_SPOOL_BYTES: Final = 1 << 20

_ONE: Final = {"url": "https://example.com", "interval_s": 300}
_OTHER: Final = {"url": "https://example.org/status", "interval_s": 60, "tags": ["prod"]}
_ADAPTIVE: Final = {"url": "https://example.net", "schedule": {"mode": "adaptive", "budget_per_url_hour": 1}}
_REQUEST: Final = {"$ref": "#/components/schemas/MonitorRequest"}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "One, a list, or one a line. May be packed (`Content-Encoding: gzip`).",
        "content": {
            "application/json": {
                "schema": {"anyOf": [_REQUEST, {"type": "array", "items": _REQUEST}]},
                "examples": {
                    "one": {"value": _ONE},
                    "several": {"value": [_ONE, _OTHER]},
                    "adaptive": {"value": _ADAPTIVE},
                },
            },
            NDJSON: {
                "schema": {"type": "string", "description": "A `MonitorRequest` a line."},
                "example": "".join(orjson.dumps(item).decode() + "\n" for item in (_ONE, _OTHER)),
            },
        },
    }
}
_ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Of several, what became of each.",
        "model": MonitorAnswers,
        "content": {
            NDJSON: {
                "schema": {"type": "string", "description": "To lines: a `MonitorAnswer` a line."},
                "example": '{"position":0,"result":"created","monitor_id":"...","detail":null}\n',
            }
        },
    }
}


def _selection(
    id: Annotated[list[Line] | None, Query(max_length=1000, description="Any of these monitors.")] = None,
    url: Annotated[str | None, Query(description="The monitor of this URL.")] = None,
    name: Annotated[Line | None, Query(description="Its one of this name.")] = None,
    group: Annotated[Line | None, Query(description="Those of this group.")] = None,
    tag: Annotated[Line | None, Query(description="Those with this tag.")] = None,
) -> Selection:
    if name is not None and url is None:
        raise InvalidRequest("name says which monitor of a URL: send url, too")
    return Selection(ids=tuple(id or ()), url=url, name=name, group=group, tag=tag)


def _some(selection: Annotated[Selection, Depends(_selection)]) -> Selection:
    if selection == ALL:
        raise InvalidRequest("say which monitors: by id, url, group or tag")
    return selection


@router.post(
    "",
    status_code=201,
    summary="Monitor URLs",
    response_model=Monitor,
    responses=header(201, "Location", "Path of the monitor.") | _ANSWERS | problems(408, 409, 413, 415, 422, 429, 503),
    openapi_extra=_BODY,
)
async def create_monitors(request: Request, platform: PlatformDep, caller: CallerDep) -> Response:
    """A monitor is first probed within one interval, and then once in each.

    One that cannot be is an error. Of several each has its answer, and the good ones are stored whatever the others
    are, some thousand at once, as they come. If the call breaks off, send it again: what is there already is said to
    be.
    """
    answer: Response = await to_thread.run_sync(_create, request, platform, caller, limiter=request.app.state.uploads)
    return answer


def _create(request: Request, platform: Platform, caller: Caller) -> Response:
    match media_type(request):
        case "application/json":
            body = json_value(b"".join(limited(received(request), MAX_BODY_BYTES)))
            return (
                _create_list(body, platform, caller) if isinstance(body, list) else _create_one(body, platform, caller)
            )
        case content_type if content_type in NDJSON_TYPES:
            request.state.max_body_bytes = MAX_STREAM_BYTES
            return _create_lines(limited(received(request), MAX_STREAM_BYTES), platform, caller)
        case content_type:
            raise HTTPException(
                415, f"the Content-Type is {content_type[:80]!r}: send application/json or application/x-ndjson"
            )


def _create_one(body: Any, platform: Platform, caller: Caller) -> Response:
    specs = platform.keys.metered_monitors(caller, [valid(MonitorRequest, body).to_domain()])
    (answer,) = platform.crawl.create_monitors(specs, owner=caller.owner)
    if isinstance(answer, InvalidRequest):
        raise answer
    monitor = Monitor.of(platform.crawl.monitor(answer, owner=caller.owner))
    headers = {"Location": f"{router.prefix}/{monitor.monitor_id}"}
    return Response(monitor.model_dump_json(), 201, headers, "application/json")


def _create_list(items: list[Any], platform: Platform, caller: Caller) -> Response:
    answers = list(_answers(items, platform, caller))
    found = [answer.result for answer in answers]
    whole = MonitorAnswers(
        created=found.count("created"), exists=found.count("exists"), invalid=found.count("invalid"), items=answers
    )
    return Response(whole.model_dump_json(), 200, None, "application/json")


def _create_lines(pieces: Iterable[bytes], platform: Platform, caller: Caller) -> Response:
    # Answered when all has come: a client that reads nothing before it has sent all would wait for ever.
    spool = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115  closed when it is sent
    try:
        items = (_loaded(number, line) for number, line in lines(pieces))
        for answer in _answers(items, platform, caller):
            spool.write(answer.model_dump_json().encode() + b"\n")
    except BaseException:
        spool.close()
        raise

    def sent() -> Iterator[bytes]:
        with spool:
            spool.seek(0)
            while piece := spool.read(_SPOOL_BYTES):
                yield piece

    return StreamingResponse(sent(), media_type=NDJSON)


def _loaded(number: int, line: bytes) -> Any:
    try:
        return loads(number, line)
    except InvalidRequest as fault:
        return fault


def _answers(items: Iterable[Any], platform: Platform, caller: Caller) -> Iterator[MonitorAnswer]:
    specs = platform.keys.metered_monitors(caller, map(_spec, items))
    for position, answer in enumerate(platform.crawl.create_monitors(specs, owner=caller.owner)):
        match answer:
            case str():
                yield MonitorAnswer(position=position, result="created", monitor_id=answer, detail=None)
            case Duplicate():
                yield MonitorAnswer(
                    position=position, result="exists", monitor_id=answer.monitor_id, detail=str(answer)
                )
            case _:
                yield MonitorAnswer(position=position, result="invalid", monitor_id=None, detail=str(answer))


def _spec(item: Any) -> MonitorSpec | InvalidRequest:
    if isinstance(item, InvalidRequest):
        return item
    try:
        return parse_monitor(item)
    except InvalidRequest as fault:
        return fault


@router.get("", summary="List monitors", responses=problems(422, 503))
def list_monitors(
    platform: PlatformDep,
    owner: Owner,
    selection: Annotated[Selection, Depends(_selection)],
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Listing[Monitor]:
    """All monitors, or those for which everything holds that is given; oldest first."""
    page = platform.crawl.monitors(selection, limit=limit, cursor=cursor, owner=owner)
    return Listing(items=[Monitor.of(monitor) for monitor in page.items], next_cursor=page.next_cursor)


@router.patch("", summary="Change several monitors alike", responses=problems(422, 503))
def change_monitors(
    body: MonitorPatch, platform: PlatformDep, owner: Owner, selection: Annotated[Selection, Depends(_some)]
) -> Changed:
    """Change those for which everything holds that the query gives."""
    return Changed(monitors=platform.crawl.change_monitors(selection, body.to_domain(), owner=owner))


@router.delete("", summary="Delete several monitors", responses=problems(422, 503))
def delete_monitors(platform: PlatformDep, owner: Owner, selection: Annotated[Selection, Depends(_some)]) -> Changed:
    """Delete those for which everything holds that the query gives. The probes in their URLs' history stay."""
    return Changed(monitors=platform.crawl.delete_monitors(selection, owner=owner))


@router.get("/{monitor_id}", summary="Read a monitor", responses=problems(404, 503))
def get_monitor(monitor_id: str, platform: PlatformDep, owner: Owner) -> Monitor:
    """Its interval, and when it is due next."""
    return Monitor.of(platform.crawl.monitor(monitor_id, owner=owner))


@router.patch("/{monitor_id}", summary="Change a monitor", responses=problems(404, 422, 503))
def change_monitor(monitor_id: str, body: MonitorPatch, platform: PlatformDep, owner: Owner) -> Monitor:
    """Change what is named; the rest stays. With another interval, its next slot is within one from now."""
    return Monitor.of(platform.crawl.change_monitor(monitor_id, body.to_domain(), owner=owner))


@router.delete("/{monitor_id}", status_code=204, summary="Delete a monitor", responses=problems(404, 503))
def delete_monitor(monitor_id: str, platform: PlatformDep, owner: Owner) -> None:
    """Stop probing it. The probes in the URL's history stay."""
    platform.crawl.delete_monitor(monitor_id, owner=owner)
