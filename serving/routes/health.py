"""Health and metrics of the platform itself."""

from typing import cast

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from serving.dependencies import CallerDep, PlatformDep
from serving.metrics import Metrics
from serving.openapi import problems
from serving.schemas import Live, Ready
from urlhealth.crawl.keys import Scope

router = APIRouter(tags=["operations"])


@router.get("/health/live", summary="Say that the process answers", responses=problems())
async def live() -> Live:
    """Always 200. Restart a process that does not answer this."""
    return Live()


@router.get(
    "/health/ready",
    summary="Say whether all parts work",
    responses=problems()
    | {503: {"model": Ready, "description": "Some part does not work; `checks` say which, and what to do."}},
)
def ready(platform: PlatformDep, caller: CallerDep, response: Response) -> Ready:
    """200 if the stores and the model can be used. Send no traffic to a process that answers 503.

    What stands behind it is only told to those who may read.
    """
    reply = Ready.of(platform.checks(), told=caller.may(Scope.READ))
    response.status_code = 200 if reply.status == "ready" else 503
    return reply


@router.get(
    "/metrics",
    summary="Read metrics",
    response_class=Response,
    responses=problems()
    | {200: {"description": "Prometheus's text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(request: Request) -> Response:
    """Requests by route, the crawl's counts, the pipeline's lag, the model."""
    return Response(cast(Metrics, request.app.state.metrics).exposition(), media_type=CONTENT_TYPE_LATEST)
