"""What happens around every request: an id, a limit on the body, a measurement."""

import random
import re
import time
from collections.abc import Callable
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import logs
from serving.errors import BUSY, body_too_long, problem
from serving.metrics import Metrics
from urlhealth.settings import Settings

#: Ten thousand URLs of the longest kind fit in.
MAX_BODY_BYTES: Final = 32 * 1024 * 1024

#: What 429 asks a client to wait.
_RETRY_AFTER_S: Final = 1
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestMiddleware:
    """Gives each request an id (the caller's `X-Request-ID` if it is plain), counts its body, and times it.

    Of requests that change or compute something, only so many may be under way; more get 429 at once, before their body
    is read. What only reads is always answered: health, metrics, events that are followed for hours.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, settings: Callable[[], Settings]) -> None:
        """`settings` are asked for at each request: the application may open its platform after it was made."""
        self._app = app
        self._metrics = metrics
        self._settings = settings
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # The server drops the body of an answer to HEAD.
        sent_id = Headers(scope=scope).get("x-request-id", "")
        request_id = sent_id if _REQUEST_ID.fullmatch(sent_id) else new_id()
        # A route that reads its body as a stream may raise the limit.
        state = scope.setdefault("state", {})
        state |= {"request_id": request_id, "max_body_bytes": MAX_BODY_BYTES}
        scope.pop("route", None)  # Of an application that this one is mounted in.
        counted = scope["method"] not in _SAFE_METHODS
        logs.REQUEST_ID.set(request_id)
        started = time.perf_counter()
        status = 500
        announced_bytes = _announced_bytes(scope)
        body_bytes = 0

        async def receive_limited() -> Message:
            nonlocal body_bytes
            if announced_bytes > state["max_body_bytes"]:
                raise body_too_long(state["max_body_bytes"])
            message = await receive()
            body_bytes += len(message.get("body", b""))
            if body_bytes > state["max_body_bytes"]:
                raise body_too_long(state["max_body_bytes"])
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        app = self._app
        if counted and self._under_way >= (most := self._settings().max_requests):
            detail = f"{most} requests are under way already: try again in {_RETRY_AFTER_S} s"
            app = problem(Request(scope), BUSY, detail, headers={"Retry-After": str(_RETRY_AFTER_S)})
        self._under_way += counted
        try:
            await app(scope, receive_limited, send_with_id)
        finally:
            self._under_way -= counted
            duration_s = time.perf_counter() - started
            self._metrics.observe(scope, status, duration_s)
            logs.request(scope, status, duration_s)


def new_id() -> str:
    """An id for a request: 32 hexadecimal digits. No secret, so none of the system's randomness: that is a call."""
    return f"{random.getrandbits(128):032x}"


def _announced_bytes(scope: Scope) -> int:
    length = Headers(scope=scope).get("content-length", "")
    return int(length) if length.isdecimal() and len(length) < 20 else 0
