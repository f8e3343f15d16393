"""Features by URL."""

from fastapi import APIRouter

from serving.dependencies import Owner, PlatformDep
from serving.openapi import problems
from serving.schemas import Features, FeaturesItem, FeaturesRequest

router = APIRouter(prefix="/api/v1/features", tags=["predictions"])


@router.post("", summary="Read features", responses=problems(413, 422, 503))
def read_features(body: FeaturesRequest, platform: PlatformDep, owner: Owner) -> Features:
    """The feature vector of each URL at this instant: what a model would see."""
    return Features(items=[FeaturesItem.of(vector) for vector in platform.predictor.features(body.urls, owner=owner)])
