"""What a URL is, and has been. URLs are query parameters: proxies merge the `//` in a path."""

from typing import Annotated, Final

import orjson
from fastapi import APIRouter, Query, Response

from serving.dependencies import Cursor, Instant, Limit, Owner, PlatformDep, milliseconds
from serving.openapi import problems
from serving.schemas import Incident, Listing, UrlHistory, UrlState
from urlhealth.crawl.reading import MAX_POINTS
from urlhealth.features.catalog import URL_STATE

router = APIRouter(prefix="/api/v1/url", tags=["urls"])

Url = Annotated[str, Query(description="The URL, percent-encoded.", examples=["https://example.com"])]
Name = Annotated[
    str | None, Query(min_length=1, max_length=200, description="Of a monitor with a name: that one's history.")
]

_UNITS_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


@router.get("", summary="Say how a URL is", responses=problems(404, 422, 503))
def get_url(url: Url, platform: PlatformDep, owner: Owner, name: Name = None) -> UrlState:
    """Its state, since when, how much of the time it was up, and the newest verdict with its phases."""
    known_for_s = platform.settings.known_for_s
    state = platform.crawl.url_state(url, known_for_s=known_for_s, name=name, owner=owner)
    features = platform.features.read(URL_STATE, [state.target.key])
    return UrlState.of(state, degraded=bool(features.states["degraded"][0]))


@router.delete("", status_code=204, summary="Erase a URL", responses=problems(404, 422, 503))
def erase_url(url: Url, platform: PlatformDep, owner: Owner, name: Name = None) -> None:
    """Erase all that is known of it: probes, roll-ups, its monitor, its results in tasks, features and predictions.

    Rows of the offline feature store go within seconds. Sums over its host and group keep its part, unless it was the
    last one. Models that learned from it stay as they are.
    """
    platform.erase_url(url, name=name, owner=owner)


@router.get("/history", summary="Say how a URL has been", response_model=UrlHistory, responses=problems(404, 422, 503))
def get_history(
    url: Url,
    platform: PlatformDep,
    owner: Owner,
    start: Annotated[Instant, Query(alias="from", description="One day before `to`, unless given.")] = None,
    to: Annotated[Instant, Query(description="Now, unless given.")] = None,
    step: Annotated[
        str | None,
        Query(
            pattern=r"^[1-9]\d{0,4}[smhd]$",
            description=f"Seconds, minutes, hours or days; {MAX_POINTS} steps at most. Below 1h for a day at most, "
            "below 1d for two months. Unless given, one that fits.",
            examples=["1h"],
        ),
    ] = None,
    name: Name = None,
) -> Response:
    """Verdicts by outcome and durations in steps, which begin at multiples of their length since 1970 UTC."""
    history = platform.crawl.url_history(
        url,
        from_ms=milliseconds(start),
        to_ms=milliseconds(to),
        step_ms=None if step is None else int(step[:-1]) * _UNITS_MS[step[-1]],
        name=name,
        owner=owner,
    )
    return Response(orjson.dumps(UrlHistory.content(history)), media_type="application/json")


@router.get("/incidents", summary="List a URL's incidents, newest first", responses=problems(404, 422, 503))
def list_incidents(
    url: Url, platform: PlatformDep, owner: Owner, name: Name = None, limit: Limit = 100, cursor: Cursor = None
) -> Listing[Incident]:
    """From the first failing verdict to the next good one."""
    page = platform.crawl.url_incidents(url, limit=limit, cursor=cursor, name=name, owner=owner)
    return Listing(items=[Incident.of(incident) for incident in page.items], next_cursor=page.next_cursor)
