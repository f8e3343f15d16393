"""Calls the endpoints that are asked most often themselves: FastAPI's way to them takes longer than most answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.tracing import name_span


class DirectRoutes:
    """Answers the requests for some routes, with the application's handlers of errors, and passes on all others.

    The endpoints take a `request`, and the parameters of their path as texts; they read all else themselves. For
    FastAPI they are routes like others: it describes them, and would give the same answers.
    """

    def __init__(
        self, app: ASGIApp, routes: Sequence[APIRoute], error_handlers: Mapping[Any, Callable[..., Any]]
    ) -> None:
        """`error_handlers`: by class of error, or HTTP status."""
        self._app = app
        self._routes = [(method, route) for route in routes for method in route.methods or ()]
        # What nobody foresaw is for whoever logs it, further out.
        foreseen = {kind: handler for kind, handler in error_handlers.items() if kind is not Exception}
        self._direct = ExceptionMiddleware(_answer, handlers=foreseen)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for method, route in self._routes:
                if method == scope["method"] and (match := route.path_regex.match(scope["path"])):
                    scope["route"], scope["path_params"] = route, match.groupdict()
                    name_span(method, route)
                    await self._direct(scope, receive, send)
                    return
        await self._app(scope, receive, send)


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    response = await scope["route"].endpoint(request=Request(scope, receive, send), **scope["path_params"])
    await response(scope, receive, send)
