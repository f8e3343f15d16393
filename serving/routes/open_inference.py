"""The Open Inference Protocol V2 over REST, as Triton, KServe and their clients speak it."""

from importlib.metadata import version as installed_version
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from serving.dependencies import Body, Owner, PlatformDep, RequestId
from serving.inference import FEATURES, asked_model, of_features, of_urls
from serving.openapi import json_body, protocol_errors
from serving.schemas import Ready
from serving.tensors import HEADER_LENGTH, read_request, write_answer
from urlhealth.vocabulary import MODEL_NAME, PROBABILITIES

router = APIRouter(prefix="/v2", tags=["open inference protocol"])

_INPUTS: Final = [
    {"name": "url", "datatype": "BYTES", "shape": [-1]},
    {"name": "features", "datatype": "FP32", "shape": [-1, len(FEATURES)]},
    *({"name": name, "datatype": "FP32", "shape": [-1]} for name in FEATURES),
]
_OUTPUTS: Final = [
    *({"name": name, "datatype": "FP64", "shape": [-1]} for name in (*PROBABILITIES, "age_s")),
    {"name": "status", "datatype": "BYTES", "shape": [-1]},
]
_BODY: Final = json_body(
    {"inputs": [{"name": "url", "shape": [1], "datatype": "BYTES", "data": ["https://example.com"]}]},
    "One input `url`; or `features`, a matrix whose columns are in the order of the model's metadata; or features by "
    "name, those that are absent being unknown. Tensors may be binary.",
)


_REPLY: Final = protocol_errors(404, 413, 422, 503) | {200: {"content": {"application/octet-stream": {}}}}


@router.get("", summary="Describe the server (V2)", responses=protocol_errors())
def server() -> dict[str, Any]:
    """Name, version and extensions."""
    return {"name": "urlhealth", "version": installed_version("urlhealth"), "extensions": ["binary_tensor_data"]}


@router.get("/health/live", summary="Say that the process answers (V2)", responses=protocol_errors())
async def live() -> dict[str, bool]:
    """Always 200."""
    return {"live": True}


@router.get("/health/ready", summary="Say whether all parts work (V2)", responses=protocol_errors(503))
def ready(platform: PlatformDep, response: Response) -> dict[str, bool]:
    """The same as `GET /health/ready`."""
    is_ready = Ready.of(platform.checks()).status == "ready"
    response.status_code = 200 if is_ready else 503
    return {"ready": is_ready}


@router.get("/models/{model}", summary="Describe the model (V2)", responses=protocol_errors(404, 503))
@router.get(
    "/models/{model}/versions/{version}", summary="Describe a version (V2)", responses=protocol_errors(404, 503)
)
def metadata(model: str, platform: PlatformDep, version: str | None = None) -> dict[str, Any]:
    """Inputs and outputs. `age_s` and `status` are there for `url` only."""
    champion = asked_model(platform, model, version)
    return {
        "name": MODEL_NAME,
        "versions": [champion.version],
        "platform": "urlhealth",
        "inputs": _INPUTS,
        "outputs": _OUTPUTS,
    }


@router.get("/models/{model}/ready", summary="Say whether the model serves (V2)", responses=protocol_errors(404, 503))
@router.get(
    "/models/{model}/versions/{version}/ready",
    summary="Say whether a version serves (V2)",
    responses=protocol_errors(404, 503),
)
def model_ready(model: str, platform: PlatformDep, version: str | None = None) -> dict[str, Any]:
    """200 if it does."""
    asked_model(platform, model, version)
    return {"name": MODEL_NAME, "ready": True}


@router.post("/models/{model}/infer", summary="Infer (V2)", responses=_REPLY, openapi_extra=_BODY)
@router.post(
    "/models/{model}/versions/{version}/infer",
    summary="Infer with a version (V2)",
    responses=_REPLY,
    openapi_extra=_BODY,
)
def infer(
    model: str,
    body: Body,
    request: Request,
    platform: PlatformDep,
    request_id: RequestId,
    owner: Owner,
    version: str | None = None,
) -> Response:
    """Probabilities by URL, or by features."""
    scorer = asked_model(platform, model, version)
    asked = read_request(body, request.headers.get(HEADER_LENGTH))
    if asked.features is not None:
        answer = of_features(platform, asked.features, model=scorer)
    else:
        answer = of_urls(platform, asked.urls or [], request_id=request_id, owner=owner, model=scorer)
    content, header_length = write_answer(answer, asked)
    if header_length is None:
        return Response(content, media_type="application/json")
    return Response(content, headers={HEADER_LENGTH: str(header_length)}, media_type="application/octet-stream")
