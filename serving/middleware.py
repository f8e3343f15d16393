"""What happens around every request: an id, a limit on the body, a measurement."""

import re
import time
import uuid
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import TOO_LONG, problem
from serving.metrics import Metrics

#: Ten thousand URLs of the longest kind that browsers send fit in.
MAX_BODY_BYTES: Final = 32 * 1024 * 1024

_TOO_LONG_DETAIL: Final = f"the body is longer than {MAX_BODY_BYTES} bytes: send fewer URLs at once"
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestMiddleware:
    """Gives each request an id (the caller's `X-Request-ID` if it is plain), counts its body, and times it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent_id = Headers(scope=scope).get("x-request-id", "")
        request_id = sent_id if _REQUEST_ID.fullmatch(sent_id) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        scope.pop("route", None)  # Of an application that this one is mounted in.
        started = time.perf_counter()
        status = 500
        body_bytes = 0

        async def receive_limited() -> Message:
            nonlocal body_bytes
            message = await receive()
            body_bytes += len(message.get("body", b""))
            if body_bytes > MAX_BODY_BYTES:
                raise HTTPException(TOO_LONG.status, _TOO_LONG_DETAIL)
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        app = _refuse if _announced_bytes(scope) > MAX_BODY_BYTES else self._app
        try:
            await app(scope, receive_limited, send_with_id)
        finally:
            self._metrics.observe(scope, status, time.perf_counter() - started)


def _announced_bytes(scope: Scope) -> int:
    length = Headers(scope=scope).get("content-length", "")
    return int(length) if length.isdecimal() and len(length) < 20 else 0


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    await problem(Request(scope), TOO_LONG, _TOO_LONG_DETAIL)(scope, receive, send)
