"""The model that serves, judged by what came of its predictions."""

from typing import Annotated

from fastapi import APIRouter, Query

from serving.dependencies import Instant, Owner, PlatformDep, milliseconds
from serving.openapi import problems
from serving.schemas.models import Quality
from urlhealth.errors import InvalidRequest

router = APIRouter(prefix="/api/v1/models", tags=["predictions"])


@router.get("/url-health/quality", summary="Judge what was served", responses=problems(422, 503))
def quality(
    platform: PlatformDep,
    owner: Owner,
    start: Annotated[Instant, Query(alias="from", description="Seven days before `to`, unless given.")] = None,
    to: Annotated[Instant, Query(description="Now, unless given.")] = None,
) -> Quality:
    """Predictions that were served, joined with what later probes revealed, by version and horizon: the champion beside
    its shadow. Only targets that were up then count: that one fails that is failing is no forecast.
    """
    from_ms, to_ms = milliseconds(start), milliseconds(to)
    if from_ms is not None and from_ms >= (platform.clock() if to_ms is None else to_ms):
        raise InvalidRequest("`from` is not before `to`")
    champion = platform.champion.current
    found = platform.quality(from_ms=from_ms, to_ms=to_ms, owner=owner)
    return Quality.of(found, champion=None if champion is None else champion.version)
