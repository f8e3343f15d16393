"""Protocols that send instances: V1 as TensorFlow Serving and KServe speak it, and MLflow's `/invocations`."""

import csv
import io
from collections.abc import Sequence
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request, Response

from serving.dependencies import Body, Owner, PlatformDep, RequestId
from serving.inference import Answer, asked_model, json_object, matrix_of_columns, matrix_of_rows, of_features, of_urls
from serving.openapi import json_body, protocol_errors
from urlhealth.errors import InvalidRequest
from urlhealth.platform import Platform
from urlhealth.prediction.champion import Champion
from urlhealth.vocabulary import MODEL_NAME

router = APIRouter()

_V1_BODY: Final = json_body(
    {"instances": ["https://example.com", "https://example.org/status"]},
    '`instances`: URLs, objects `{"url": ...}`, objects of features by name, or lists of all features. Or `inputs`: an '
    "object of columns, `url` or features.",
)
_MLFLOW_BODY: Final = json_body(
    {"dataframe_split": {"columns": ["url"], "data": [["https://example.com"]]}},
    "MLflow's forms: `dataframe_split`, `dataframe_records`, `instances` or `inputs`; or CSV with a header line. The "
    "columns are features by name, or `url` alone.",
)


@router.get("/v1/models/{model}", tags=["V1"], summary="Describe the model (V1)", responses=protocol_errors(404, 503))
@router.get(
    "/v1/models/{model}/versions/{version}",
    tags=["V1"],
    summary="Describe a version (V1)",
    responses=protocol_errors(404, 503),
)
def describe(model: str, platform: PlatformDep, version: str | None = None) -> dict[str, Any]:
    """What TensorFlow Serving and KServe say of a model that serves."""
    champion = asked_model(platform, model, version)
    status = {"error_code": "OK", "error_message": ""}
    state = {"version": champion.version, "state": "AVAILABLE", "status": status}
    return {"name": MODEL_NAME, "ready": True, "model_version_status": [state]}


@router.post(
    "/v1/models/{model}:predict",
    tags=["V1"],
    summary="Predict (V1)",
    responses=protocol_errors(404, 413, 422, 503),
    openapi_extra=_V1_BODY,
)
@router.post(
    "/v1/models/{model}/versions/{version}:predict",
    tags=["V1"],
    summary="Predict with a version (V1)",
    responses=protocol_errors(404, 413, 422, 503),
    openapi_extra=_V1_BODY,
)
def predict(
    model: str, body: Body, platform: PlatformDep, request_id: RequestId, owner: Owner, version: str | None = None
) -> Response:
    """`predictions`, an object an instance; for `inputs`: `outputs`, an object of columns."""
    scorer = asked_model(platform, model, version)
    match json_object(body):
        case {"instances": list(instances)}:
            reply: dict[str, Any] = {
                "predictions": _of_instances(platform, instances, request_id, owner, scorer).records()
            }
        case {"inputs": dict(columns)}:
            reply = {"outputs": _of_columns(platform, columns, request_id, owner, scorer).columns()}
        case _:
            raise InvalidRequest("the body has neither the list 'instances' nor the object 'inputs'")
    return Response(orjson.dumps(reply), media_type="application/json")


@router.post(
    "/invocations",
    tags=["MLflow"],
    summary="Predict (MLflow)",
    responses=protocol_errors(413, 422, 503),
    openapi_extra=_MLFLOW_BODY,
)
def invocations(body: Body, request: Request, platform: PlatformDep, request_id: RequestId, owner: Owner) -> Response:
    """`predictions`, a list of probabilities a row, in the order in which the registered model returns them."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "text/csv":
        answer = _of_csv(platform, body, request_id, owner)
    else:
        match json_object(body, with_nan=True):
            case {"dataframe_split": {"columns": list(names), "data": list(rows)}}:
                answer = _of_columns(platform, _columns(names, rows), request_id, owner)
            case {"dataframe_records": list(rows)} | {"instances": list(rows)} | {"inputs": list(rows)}:
                answer = _of_instances(platform, rows, request_id, owner)
            case {"inputs": dict(columns)}:
                answer = _of_columns(platform, columns, request_id, owner)
            case _:
                raise InvalidRequest("send dataframe_split, dataframe_records, instances or inputs, as MLflow has them")
    return Response(orjson.dumps({"predictions": answer.probabilities().tolist()}), media_type="application/json")


def _of_instances(
    platform: Platform, instances: Sequence[Any], request_id: str, owner: str, model: Champion | None = None
) -> Answer:
    """Each instance a URL, or each a row of features."""
    urls = [item["url"] if isinstance(item, dict) and item.keys() == {"url"} else item for item in instances]
    if any(isinstance(url, str) for url in urls):
        return of_urls(platform, urls, request_id=request_id, owner=owner, model=model)
    return of_features(platform, matrix_of_rows(instances), model=model)


def _of_columns(
    platform: Platform, columns: dict[str, Any], request_id: str, owner: str, model: Champion | None = None
) -> Answer:
    for name, values in columns.items():
        if not isinstance(values, list):
            raise InvalidRequest(f"column {name[:80]!r} is not a list")
    if "url" in columns:
        if len(columns) > 1:
            raise InvalidRequest("send the column 'url' alone, or features")
        return of_urls(platform, columns["url"], request_id=request_id, owner=owner, model=model)
    return of_features(platform, matrix_of_columns(columns), model=model)


def _of_csv(platform: Platform, body: bytes, request_id: str, owner: str) -> Answer:
    try:
        names, *rows = csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True)
        if "url" in names:
            return _of_columns(platform, _columns(names, rows), request_id, owner)
        values = [[float(cell) if cell else None for cell in row] for row in rows]
    except (ValueError, csv.Error) as error:
        raise InvalidRequest(f"the body is not CSV with a header line and numbers: {str(error)[:200]}") from None
    return _of_columns(platform, _columns(names, values), request_id, owner)


def _columns(names: Sequence[Any], rows: Sequence[Any]) -> dict[str, list[Any]]:
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise InvalidRequest("the names of the columns must be strings, each once")
    for position, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(names):
            raise InvalidRequest(f"row {position} does not have {len(names)} values, one a column")
    return {name: [row[column] for row in rows] for column, name in enumerate(names)}
