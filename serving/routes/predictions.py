"""Forecasts by URL."""

from fastapi import APIRouter

from serving.dependencies import PlatformDep, RequestId
from serving.freshness import judged
from serving.openapi import problems
from serving.schemas import Predictions, PredictionsItem, PredictionsRequest
from urlhealth.vocabulary import LOCAL_OWNER

router = APIRouter(prefix="/api/v1/predictions", tags=["predictions"])


@router.post("", summary="Predict failures", responses=problems(409, 413, 422, 503))
def predict(body: PredictionsRequest, platform: PlatformDep, request_id: RequestId) -> Predictions:
    """How likely each URL is to fail within each horizon. A URL never seen has status `missing`, and no probability."""
    predictions = platform.predictor.predict(body.urls, horizons=body.horizons, explain=body.explain)
    predictions = judged(predictions, max_age_s=body.max_age_s, on_stale=body.on_stale)
    platform.log_predictions(request_id, predictions, owner=LOCAL_OWNER)
    return Predictions(request_id=request_id, items=[PredictionsItem.of(prediction) for prediction in predictions])
