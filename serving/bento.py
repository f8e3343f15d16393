"""The same application as a BentoML service, with a batched scoring API beside it. Only here is bentoml imported.

`bentoml serve` at the root of the checkout finds it through pyproject.toml. BentoML's own calls (`/score`, `/livez`,
`/readyz`, `/schema.json`) come first, all others go to the application.
"""

import asyncio
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from typing import Annotated, Any, cast

import bentoml
import numpy as np
import orjson
import uvicorn.config
from pydantic import BaseModel, ConfigDict, Field, create_model
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.access import AccessControl
from serving.app import create_app
from serving.errors import KINDS, TOO_LONG, http_kind, invalid, problem
from serving.intake import media_type
from serving.middleware import RequestMiddleware
from serving.schemas import MAX_URLS, Ready
from urlhealth.errors import NoModel
from urlhealth.features.catalog import VECTOR
from urlhealth.features.columns import names
from urlhealth.platform import Platform
from urlhealth.settings import quiet_third_parties
from urlhealth.vocabulary import PROBABILITIES

# BentoML runs this module as its program, and reports usage when it has loaded it.
quiet_third_parties()
# Its server is uvicorn with what is the default; it has no option to say otherwise, and makes it after this.
uvicorn.config.HTTP_PROTOCOLS["auto"] = "serving.protocol:LimitedHttp"

_app = create_app()
_FEATURES = names(VECTOR)

_ROW_FIELDS: dict[str, Any] = {f.name: (float | None, Field(None, description=f.about)) for f in VECTOR}
FeatureRow = create_model("FeatureRow", __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **_ROW_FIELDS)


class Score(BaseModel):
    """Probabilities for one row, and the model that they are of."""

    model: str
    model_version: str
    probabilities: dict[str, float] = Field(description="By name, as the registered model returns them.")


def _platform() -> Platform:
    return cast(Platform, _app.state.platform)


async def _mounted(scope: Scope, receive: Receive, send: Send) -> None:
    # BentoML looks into a mounted Starlette application and answers itself, in plain text, what is not in there. Behind
    # a plain function, ours answers, in its own form; its lifespan is then run below.
    await _app(scope, receive, send)


class _ScoreMiddleware:
    """Does for `/score` what the application does for its own calls: request ids, a limit on the body, metrics, and
    every error as a problem document.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        metrics = _app.state.metrics
        self._score = RequestMiddleware(self._with_problems, metrics, settings=lambda: _platform().settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        score = scope["type"] == "http" and scope["path"] == "/score"
        await (self._score if score else self._app)(scope, receive, send)

    async def _with_problems(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        if media_type(request) not in ("", "application/json"):  # BentoML would read forms, and knows pickles.
            sent = request.headers["content-type"][:80]
            detail = f"the Content-Type is {sent!r}: send application/json"
            await problem(request, http_kind(HTTPStatus.UNSUPPORTED_MEDIA_TYPE), detail)(scope, receive, send)
            return
        try:
            _platform().predictor.champion()
        except NoModel as error:  # BentoML would only say that something is wrong.
            await problem(request, KINDS[NoModel], str(error))(scope, receive, send)
            return
        status, body = 0, b""
        refused: HTTPException | None = None

        async def receive_noting() -> Message:
            nonlocal refused
            try:
                return await receive()
            except HTTPException as error:
                refused = error
                raise

        async def send_problem(message: Message) -> None:
            nonlocal status, body
            if message["type"] == "http.response.start":
                status = message["status"]
            if status < HTTPStatus.BAD_REQUEST:
                await send(message)
            elif message["type"] == "http.response.body":
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    if refused is not None:
                        status, body = refused.status_code, refused.detail.encode()
                    await _problem_of(request, status, body)(scope, receive, send)

        await self._app(scope, receive_noting, send_problem)


def _problem_of(request: Request, status: int, body: bytes) -> Response:
    """BentoML's own error, in the form of the application's."""
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        said = {"error": body.decode(errors="replace")}
    if isinstance(said, list):
        (said,) = said
    if status == HTTPStatus.BAD_REQUEST:
        faults = said.get("detail") or [{"type": "value_error", "loc": (), "msg": said["error"]}]
        return invalid(request, [{**fault, "loc": ("body", *fault["loc"])} for fault in faults])
    kind = TOO_LONG if status == TOO_LONG.status else http_kind(status)
    return problem(request, kind, said["error"])


@bentoml.service(
    name="urlhealth",
    http={"host": "127.0.0.1", "port": 3000},
    # BentoML's own are labelled with the path: each task's id would be a series that is kept for ever. Ours answer.
    metrics={"enabled": False},
)
@bentoml.asgi_app(_mounted, path="/")
class UrlHealth:
    """URL health: the crawl API, features and predictions by URL, and scores by features."""

    _lifespan: AbstractAsyncContextManager[Any]

    @bentoml.on_startup
    async def open(self) -> None:
        self._lifespan = _app.router.lifespan_context(_app)
        await self._lifespan.__aenter__()

    @bentoml.on_shutdown
    async def close(self) -> None:
        await self._lifespan.__aexit__(None, None, None)

    @bentoml.api(batchable=True, max_batch_size=MAX_URLS, max_latency_ms=10_000)
    async def score(
        self,
        rows: Annotated[list[FeatureRow], Field(min_length=1, max_length=MAX_URLS)],
    ) -> list[Score]:
        """Probabilities for rows of features by name (null or absent: unknown), one item a row."""
        champion = _platform().predictor.champion()
        vectors = np.array([[getattr(row, name) for name in _FEATURES] for row in rows], dtype=np.float32)
        scores = await asyncio.to_thread(champion.forecaster.predict_proba, vectors)
        return [
            Score(
                model=champion.name,
                model_version=champion.version,
                probabilities=dict(zip(PROBABILITIES, row, strict=True)),
            )
            for row in scores.tolist()
        ]

    def __is_ready__(self) -> bool:
        return Ready.of(_platform().checks()).status == "ready"


cast(Any, UrlHealth).add_asgi_middleware(AccessControl, platform=_platform)
cast(Any, UrlHealth).add_asgi_middleware(_ScoreMiddleware)
