"""Forecasts by URL, and of everything by risk."""

from functools import partial
from typing import Annotated, Final, Literal

import orjson
from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError

from serving.access import CALLER
from serving.dependencies import Cursor, Limit, Owner, PlatformDep
from serving.freshness import judged, not_fresh
from serving.intake import sent
from serving.openapi import model_body, problems
from serving.schemas import CurrentItem, Listing, Predictions, PredictionsRequest
from serving.schemas.common import Horizon
from serving.schemas.predictions import predictions_items
from urlhealth.platform import Platform

router = APIRouter(prefix="/api/v1/predictions", tags=["predictions"])

_LONGEST_MODEL: Final = 200
_MODEL: Final = {
    "name": "model",
    "in": "query",
    "required": False,
    "description": "`url-health@ALIAS` or a version; else the champion.",
    "schema": {"type": "string", "maxLength": _LONGEST_MODEL},
    "example": "3",
}
_EXAMPLE: Final = {"urls": ["https://example.com", "https://example.org/status"], "horizons": ["1h", "24h"]}


@router.post(
    "",
    summary="Predict failures",
    response_model=Predictions,
    responses=problems(404, 409, 413, 422, 503),
    openapi_extra={"parameters": [_MODEL], **model_body(PredictionsRequest, _EXAMPLE)},
)
async def predict(request: Request) -> Response:
    """How likely each URL is to fail within each horizon. A URL never seen has status `missing`, and no probability."""
    body, model = await sent(request, PredictionsRequest), _asked_model(request)
    platform: Platform = request.app.state.platform
    request_id, owner = request.state.request_id, request.scope[CALLER].owner
    ask = partial(
        platform.predictor.answer,
        body.urls,
        horizons=body.horizons,
        explain=body.explain,
        model=None if model is None else await run_sync(platform.versions.named, model),
        owner=owner,
    )
    forecasts = await ask()
    if body.probe == "if_stale" and (urls := not_fresh(forecasts, max_age_s=body.max_age_s)):
        await run_sync(partial(platform.probe_now, urls, wait_s=body.probe_wait_s, owner=owner))
        forecasts = await ask()
    forecasts = judged(forecasts, max_age_s=body.max_age_s, on_stale=body.on_stale)
    platform.log_predictions(request_id, forecasts, owner=owner)
    with platform.predictor.stages.timed("encode"):
        reply = {"request_id": request_id, "items": predictions_items(forecasts)}
        return Response(orjson.dumps(reply), media_type="application/json")


@router.get("", summary="List targets by risk", responses=problems(422, 503))
def by_risk(
    platform: PlatformDep,
    owner: Owner,
    order: Annotated[Literal["risk"], Query(description="Riskiest first.")] = "risk",  # noqa: ARG001 (only one so far)
    horizon: Horizon = "24h",
    group: Annotated[str | None, Query(max_length=300, description="Those of this group only.")] = None,
    tag: Annotated[str | None, Query(max_length=100, description="Those whose monitor has this tag only.")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Listing[CurrentItem]:
    """What is kept of every target that was ever probed: made anew after each probe, and every few minutes."""
    page = platform.current.riskiest(horizon=horizon, limit=limit, cursor=cursor, group=group, tag=tag, owner=owner)
    return Listing(items=[CurrentItem.of_current(item) for item in page.items], next_cursor=page.next_cursor)


def _asked_model(request: Request) -> str | None:
    model = request.query_params.get("model")
    if model is not None and len(model) > _LONGEST_MODEL:
        words = f"it has more than {_LONGEST_MODEL} characters"
        raise RequestValidationError([{"type": "string_too_long", "loc": ("query", "model"), "msg": words}])
    return model
