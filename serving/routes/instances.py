"""Protocols that send instances: V1 as TensorFlow Serving and KServe speak it, and MLflow's `/invocations`."""

import csv
import io
from collections.abc import Sequence
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request, Response

from serving.inference import (
    Question,
    answered,
    answered_by_service,
    asked_model,
    asked_service,
    json_object,
    matrix_of_columns,
    matrix_of_rows,
    read,
)
from serving.intake import media_type
from serving.openapi import json_body, protocol_errors
from urlhealth.errors import InvalidRequest
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
async def describe(model: str, request: Request, version: str | None = None) -> dict[str, Any]:
    """What TensorFlow Serving and KServe say of a model that serves."""
    champion = await (asked_model if model == MODEL_NAME else asked_service)(request, model, version)
    status = {"error_code": "OK", "error_message": ""}
    state = {"version": champion.version, "state": "AVAILABLE", "status": status}
    return {"name": model, "ready": True, "model_version_status": [state]}


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
async def predict(model: str, request: Request, version: str | None = None) -> Response:
    """`predictions`, an object an instance; for `inputs`: `outputs`, an object of columns."""
    if model == MODEL_NAME:
        scorer = await asked_model(request, model, version)
        question, by_column = await read(await request.body(), _v1)
        answer = await answered(request, question, scorer)
    else:
        service = await asked_service(request, model, version)
        entities, by_column = await read(await request.body(), _v1_entities)
        answer = await answered_by_service(request, service, entities)
    reply = {"outputs": answer.columns()} if by_column else {"predictions": answer.records()}
    return Response(orjson.dumps(reply), media_type="application/json")


@router.post(
    "/invocations",
    tags=["MLflow"],
    summary="Predict (MLflow)",
    responses=protocol_errors(413, 422, 503),
    openapi_extra=_MLFLOW_BODY,
)
async def invocations(request: Request) -> Response:
    """`predictions`, a list of probabilities a row, in the order in which the registered model returns them."""
    reader = _csv if media_type(request) == "text/csv" else _mlflow
    answer = await answered(request, await read(await request.body(), reader))
    return Response(orjson.dumps({"predictions": answer.probabilities().tolist()}), media_type="application/json")


def _v1(body: bytes) -> tuple[Question, bool]:
    """What is asked, and whether by column."""
    match json_object(body):
        case {"instances": list(instances)}:
            return _instances(instances), False
        case {"inputs": dict(columns)}:
            return _columns(columns), True
        case _:
            raise InvalidRequest("the body has neither the list 'instances' nor the object 'inputs'")


def _v1_entities(body: bytes) -> tuple[dict[str, list[Any]], bool]:
    """The same for a model of your own: values by join key."""
    match json_object(body):
        case {"instances": [dict(first), *others] as instances} if all(isinstance(other, dict) for other in others):
            for position, instance in enumerate(instances):
                if instance.keys() != first.keys():
                    raise InvalidRequest(f"instance {position} has other join keys than the first one")
            return {name: [instance[name] for instance in instances] for name in first}, False
        case {"inputs": dict(columns)} if all(isinstance(values, list) for values in columns.values()):
            return columns, True
        case _:
            raise InvalidRequest("send 'instances', objects of join keys, or 'inputs', an object of a list for each")


def _mlflow(body: bytes) -> Question:
    match json_object(body, with_nan=True):
        case {"dataframe_split": {"columns": list(names), "data": list(rows)}}:
            return _columns(_transposed(names, rows))
        case {"dataframe_records": list(rows)} | {"instances": list(rows)} | {"inputs": list(rows)}:
            return _instances(rows)
        case {"inputs": dict(columns)}:
            return _columns(columns)
        case _:
            raise InvalidRequest("send dataframe_split, dataframe_records, instances or inputs, as MLflow has them")


def _instances(instances: list[Any]) -> Question:
    """Each instance a URL, or each a row of features."""
    urls = [item["url"] if isinstance(item, dict) and item.keys() == {"url"} else item for item in instances]
    if any(isinstance(url, str) for url in urls):
        return urls
    return matrix_of_rows(instances)


def _columns(columns: dict[str, Any]) -> Question:
    for name, values in columns.items():
        if not isinstance(values, list):
            raise InvalidRequest(f"column {name[:80]!r} is not a list")
    if "url" in columns:
        if len(columns) > 1:
            raise InvalidRequest("send the column 'url' alone, or features")
        urls: list[Any] = columns["url"]
        return urls
    return matrix_of_columns(columns)


def _csv(body: bytes) -> Question:
    try:
        names, *rows = csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True)
        if "url" in names:
            return _columns(_transposed(names, rows))
        values = [[float(cell) if cell else None for cell in row] for row in rows]
    except (ValueError, csv.Error) as error:
        raise InvalidRequest(f"the body is not CSV with a header line and numbers: {str(error)[:200]}") from None
    return _columns(_transposed(names, values))


def _transposed(names: Sequence[Any], rows: Sequence[Any]) -> dict[str, list[Any]]:
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise InvalidRequest("the names of the columns must be strings, each once")
    for position, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(names):
            raise InvalidRequest(f"row {position} does not have {len(names)} values, one a column")
    return {name: [row[column] for row in rows] for column, name in enumerate(names)}
