"""The route of the graph."""

import logging
from typing import Any, Final

import orjson
from fastapi import APIRouter, Response
from graphql import GraphQLError, parse
from pydantic import BaseModel, Field

from serving.dependencies import Owner, PlatformDep
from serving.graphql import limits
from serving.graphql.loaders import Loaders
from serving.openapi import problems
from urlhealth.errors import UrlHealthError

log = logging.getLogger(__name__)

router = APIRouter(tags=["GraphQL"])

_MASKED: Final = "the server failed"


class GraphRequest(BaseModel):
    """A query."""

    query: str = Field(examples=["{ tasks(first: 3) { taskId results { items { url probe { outcome } } } } }"])
    variables: dict[str, Any] | None = Field(None, examples=[{}])
    operationName: str | None = Field(None, description="Which operation, where there are several.")  # noqa: N815


class GraphReply(BaseModel):
    """What was found, and what went wrong."""

    data: dict[str, Any] | None = None
    errors: list[dict[str, Any]] | None = None


@router.post(
    "/graphql",
    summary="Query the graph",
    response_model=GraphReply,
    responses=problems(413, 422)
    | {
        400: {"model": GraphReply, "description": "Nothing was carried out: `errors` say what is wrong with the query."}
    },
)
async def query(body: GraphRequest, platform: PlatformDep, owner: Owner) -> Response:
    """Tasks, their targets, and the targets' probes, features and predictions in one query. Read-only."""
    from serving.graphql.types import schema

    variables = body.variables or {}
    try:
        limits.check(parse(body.query, max_tokens=limits.MAX_TOKENS), variables, body.operationName)
    except GraphQLError as error:
        return _reply(400, {"errors": [error.formatted]})
    except RecursionError:
        return _reply(400, {"errors": [{"message": "the query is nested too deep"}]})
    result = await schema.execute(
        body.query,
        variable_values=variables,
        context_value=Loaders(platform, owner=owner),
        operation_name=body.operationName,
    )
    content: dict[str, Any] = {} if result.data is None else {"data": result.data}
    if result.errors:
        content["errors"] = [_shown(error) for error in result.errors]
    carried_out = result.data is not None or any(error.path for error in result.errors or ())
    return _reply(200 if carried_out else 400, content)


def _shown(error: GraphQLError) -> dict[str, Any]:
    """An error as it is told; what was not foreseen goes to the log instead."""
    formatted = dict(error.formatted)
    cause = error.original_error
    if cause is not None and not isinstance(cause, UrlHealthError | GraphQLError):
        log.error("GraphQL %s", error.path, exc_info=cause)
        formatted["message"] = _MASKED
    return formatted


def _reply(status: int, content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), status, None, "application/json")
