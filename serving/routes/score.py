"""Scores by features, without a look into any store."""

from typing import Final

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from serving.inference import Matrix, answered, json_object, matrix_of_rows, read
from serving.openapi import json_body, problems
from urlhealth.errors import InvalidRequest
from urlhealth.vocabulary import PROBABILITIES

router = APIRouter(prefix="/api/v1/score", tags=["predictions"])


class Scores(BaseModel):
    """Probabilities, an item a row, by name as the registered model returns them."""

    model: str
    model_version: str
    items: list[dict[str, float]]


_EXAMPLE: Final = {"rows": [{"failing_now": 0, "failing_share_7d": 0.05}, {"failing_now": 1}]}


@router.post(
    "",
    summary="Score features",
    response_model=Scores,
    responses=problems(413, 422, 503),
    openapi_extra=json_body(_EXAMPLE, "`rows` of features: each an object by name, or a list of all. Null: unknown."),
)
async def score(request: Request) -> Response:
    """What the model says to rows of features as `POST /api/v1/features` gives them."""
    answer = await answered(request, await read(await request.body(), _rows))
    reply = {
        "model": answer.model,
        "model_version": answer.model_version,
        "items": [dict(zip(PROBABILITIES, row, strict=True)) for row in answer.probabilities().tolist()],
    }
    return Response(orjson.dumps(reply), media_type="application/json")


def _rows(body: bytes) -> Matrix:
    match json_object(body):
        case {"rows": list(rows), **others} if not others:
            return matrix_of_rows(rows)
        case _:
            raise InvalidRequest("the body is not a JSON object with the list 'rows' and nothing else")
