"""The Open Inference Protocol V2 over REST, as Triton, KServe and their clients speak it."""

from functools import partial
from importlib.metadata import version as installed_version
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from serving.dependencies import PlatformDep
from serving.inference import FEATURES, answered, answered_by_service, asked_model, asked_service, read
from serving.openapi import json_body, protocol_errors
from serving.schemas import Ready
from serving.tensors import HEADER_LENGTH, entities_of, question_of, read_request, write_answer
from urlhealth.prediction.services import ServiceModel
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
    "name, those that are absent being unknown. Tensors may be binary. For a model of your own: its join keys.",
)


#: Feast's types of join keys, as V2 has them.
_DATATYPES: Final = {"STRING": "BYTES", "BYTES": "BYTES"}

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
async def metadata(model: str, request: Request, version: str | None = None) -> dict[str, Any]:
    """Inputs and outputs. `age_s` and `status` are there for `url` only."""
    if model != MODEL_NAME:
        service = await asked_service(request, model, version)
        return {
            "name": model,
            "versions": [service.version],
            "platform": "urlhealth",
            "inputs": [
                {"name": name, "datatype": _DATATYPES.get(kind, kind), "shape": [-1]}
                for name, kind in service.join_keys.items()
            ],
            "outputs": [{"name": "probability", "datatype": "FP64", "shape": [-1]}, _OUTPUTS[-1]],
            "parameters": {"feature_service": service.service},
        }
    champion = await asked_model(request, model, version)
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
async def model_ready(model: str, request: Request, version: str | None = None) -> dict[str, Any]:
    """200 if it does."""
    await (asked_model if model == MODEL_NAME else asked_service)(request, model, version)
    return {"name": model, "ready": True}


@router.post("/models/{model}/infer", summary="Infer (V2)", responses=_REPLY, openapi_extra=_BODY)
@router.post(
    "/models/{model}/versions/{version}/infer",
    summary="Infer with a version (V2)",
    responses=_REPLY,
    openapi_extra=_BODY,
)
async def infer(model: str, request: Request, version: str | None = None) -> Response:
    """Probabilities by URL, or by features; of a model of your own, by entity."""
    scorer = await (asked_model if model == MODEL_NAME else asked_service)(request, model, version)
    header_length = request.headers.get(HEADER_LENGTH)
    asked = await read(await request.body(), partial(read_request, header_length=header_length))
    if isinstance(scorer, ServiceModel):
        answer = await answered_by_service(request, scorer, entities_of(asked.tensors))
    else:
        answer = await answered(request, question_of(asked.tensors), scorer)
    content, json_length = write_answer(answer, asked)
    if json_length is None:
        return Response(content, media_type="application/json")
    return Response(content, headers={HEADER_LENGTH: str(json_length)}, media_type="application/octet-stream")
