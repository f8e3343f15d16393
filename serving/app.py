"""The application: routes, errors, metrics and pages over one platform."""

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import cast

from anyio import CapacityLimiter
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.staticfiles import StaticFiles

from serving import errors, openapi, tracing
from serving.access import AccessControl
from serving.direct import DirectRoutes
from serving.graphql import route as graphql
from serving.metrics import Metrics
from serving.middleware import RequestMiddleware
from serving.routes import (
    alerts,
    features,
    health,
    instances,
    keys,
    models,
    monitors,
    open_inference,
    pages,
    polling,
    predictions,
    score,
    submit,
    tasks,
    ui,
    ui_models,
    ui_monitors,
    urls,
)
from urlhealth.platform import Platform
from urlhealth.settings import load_settings

STATIC = Path(__file__).parent / "static"


def create_app(platform: Platform | None = None) -> FastAPI:
    """The application over an opened `platform`, which stays its maker's to close; without one, the application makes
    it from the environment when it starts, runs its background work, and closes it when it stops.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if platform is not None:
            yield
            return
        own = Platform(load_settings())
        ends = ExitStack()
        ends.callback(own.close)
        with ends:
            own.open()
            if traces := tracing.started(own.settings):
                own.predictor.stages.span, shutdown = traces
                ends.callback(shutdown)
            own.start()
            # Not a lifespan state: BentoML drops what the lifespan of a mounted application yields.
            app.state.platform = own
            yield

    app = FastAPI(
        title="urlhealth",
        version=version("urlhealth"),
        description="Is each URL healthy now, what has it been like, and which will fail next.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own page loads from a CDN; ours is in routes/pages.py.
        redoc_url=None,
        telemetry={"metrics": False, "logs": False, "operation_spans": False},
    )
    app.state.platform = platform
    app.state.metrics = Metrics(lambda: cast(Platform, app.state.platform))
    app.openapi = lambda: openapi.describe(app)  # type: ignore[method-assign]
    app.state.uploads = CapacityLimiter(tasks.MAX_UPLOADS)
    errors.install(app)
    asked_often = (module.router.routes for module in (predictions, open_inference, instances, score))
    direct = [route for route in chain(*asked_often) if isinstance(route, APIRoute) and "POST" in (route.methods or ())]
    app.add_middleware(DirectRoutes, routes=direct, error_handlers=app.exception_handlers)
    app.add_middleware(AccessControl, platform=lambda: cast(Platform, app.state.platform))
    app.add_middleware(
        RequestMiddleware, metrics=app.state.metrics, settings=lambda: cast(Platform, app.state.platform).settings
    )
    resources = (
        tasks,
        monitors,
        polling,
        urls,
        features,
        predictions,
        score,
        models,
        open_inference,
        instances,
        submit,
        alerts,
        graphql,
        keys,
        health,
        pages,
        ui,
        ui_models,
        ui_monitors,
    )
    for resource in resources:
        app.include_router(resource.router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app
