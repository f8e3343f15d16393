"""The OpenAPI document: FastAPI's, with every error described as the problem document that it is."""

import http
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from serving.errors import MEDIA_TYPE
from serving.schemas import MonitorRequest, PredictionsRequest, Problem, TaskRequest

_PROBLEM: Final = {"content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}

#: Models of bodies that routes read themselves.
BODIES: Final = (TaskRequest, MonitorRequest, PredictionsRequest)

TAGS: Final = [
    {"name": "tasks", "description": "URLs to probe once."},
    {"name": "monitors", "description": "URLs to probe again and again."},
    {"name": "polling", "description": "Where the budgets of adaptive monitors go."},
    {"name": "urls", "description": "What a URL is, and has been."},
    {"name": "alerts", "description": "Being told what fails, and what is about to."},
    {"name": "predictions", "description": "Features and forecasts by URL."},
    {"name": "open inference protocol", "description": "V2 over REST, for clients of Triton and KServe."},
    {"name": "V1", "description": "For clients of TensorFlow Serving and KServe."},
    {"name": "MLflow", "description": "For clients of `mlflow models serve`."},
    {"name": "GraphQL", "description": "Several of these in one query, read-only."},
    {"name": "keys", "description": "Who may call, and what was changed by whom."},
    {"name": "operations", "description": "Health and metrics of the platform itself."},
    {
        "name": "small crawler",
        "description": "The four calls that small crawlers share, for clients that exist already. New ones use tasks.",
    },
]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that may answer with these errors (and, like every route, with one not foreseen)."""
    described: dict[int | str, str] = {status: http.HTTPStatus(status).phrase for status in statuses}
    described["default"] = "Any other error."
    return {status: {"description": description, **_PROBLEM} for status, description in described.items()}


def protocol_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The same for a route of an inference protocol, which has a form of its own for errors."""
    content = {"application/json": {"schema": {"type": "object"}}}
    return {status: {**said, "content": content} for status, said in problems(*statuses).items()}


def json_body(example: Any, about: str) -> dict[str, Any]:
    """`openapi_extra` of a route that reads a JSON body itself."""
    content = {"application/json": {"schema": {"type": "object"}, "example": example}}
    return {"requestBody": {"required": True, "description": about, "content": content}}


def model_body(model: type[BaseModel], example: Any) -> dict[str, Any]:
    """`openapi_extra` of a route that reads a JSON body of this model itself; it is one of `BODIES`."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}}


def header(status: int, name: str, about: str) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route whose answer carries a header."""
    return {status: {"headers": {name: {"description": about, "schema": {"type": "string"}}}}}


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of `app`; made once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes, tags=TAGS
        )
        parts = document.setdefault("components", {}).setdefault("schemas", {})
        # Those that FastAPI does not see in a route's signature.
        for model in (Problem, *BODIES):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            parts |= schema.pop("$defs", {}) | {model.__name__: schema}
        app.openapi_schema = document
    return app.openapi_schema
