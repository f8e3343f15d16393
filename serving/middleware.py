"""What happens around every request: an id, a limit on the body, a measurement."""

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import logs
from serving.access import CALLER
from serving.errors import BUSY, body_too_long, problem
from serving.metrics import Metrics
from urlhealth.settings import Settings

#: Ten thousand URLs of the longest kind fit in.
MAX_BODY_BYTES: Final = 32 * 1024 * 1024

#: Longest time that a client may be silent within a body.
SILENT_S: Final = 60.0
#: The same for a caller whose bodies are half of what may be under way already.
CROWDED_S: Final = 0.25
_SMALL_BYTES: Final = 64 * 1024
#: What 429 asks a client to wait.
_RETRY_AFTER_S: Final = 1
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestMiddleware:
    """Gives each request an id (the caller's `X-Request-ID` if it is plain), counts its body, and times it.

    Of requests that change or compute something, only so many may be under way; more get 429 at once, before their body
    is read. A caller whose bodies come slowly can have half of these places, so that others have the other half. What
    only reads is always answered: health, metrics, events that are followed for hours.
    """

    silent_s = SILENT_S

    def __init__(self, app: ASGIApp, metrics: Metrics, settings: Callable[[], Settings]) -> None:
        """`settings` are asked for at each request: the application may open its platform after it was made."""
        self._app = app
        self._metrics = metrics
        self._settings = settings
        self._under_way = 0
        #: By caller: how many of its bodies are waited for.
        self._awaited: Counter[object] = Counter()

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
        # After its end, or where there is none, what is received is that the client has gone: that may take long.
        is_body = counted

        async def receive_limited() -> Message:
            nonlocal body_bytes, is_body
            if announced_bytes > state["max_body_bytes"]:
                raise body_too_long(state["max_body_bytes"])
            message = await (self._some_of_body(scope, receive, body_bytes) if is_body else receive())
            is_body = is_body and bool(message.get("more_body"))
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

    async def _some_of_body(self, scope: Scope, receive: Receive, body_bytes: int) -> Message:
        caller = scope.get(CALLER)
        who = caller and (caller.key_id or (scope.get("client") or (None,))[0])
        crowded = self._awaited[who] >= self._settings().max_requests // 2
        seconds = min(CROWDED_S, self.silent_s) if crowded else self.silent_s
        # One that has sent next to nothing takes no place from others either.
        free = int(crowded and body_bytes < _SMALL_BYTES)
        self._under_way -= free
        self._awaited[who] += 1
        try:
            async with asyncio.timeout(seconds):
                return await receive()
        except TimeoutError:
            raise HTTPException(408, f"nothing came for {seconds:g} s, and the body is not complete") from None
        finally:
            self._under_way += free
            self._awaited[who] -= 1
            if not self._awaited[who]:
                del self._awaited[who]


def new_id() -> str:
    """An id for a request: 32 hexadecimal digits. No secret, so none of the system's randomness: that is a call."""
    return f"{random.getrandbits(128):032x}"  # nosec B311


def _announced_bytes(scope: Scope) -> int:
    length = Headers(scope=scope).get("content-length", "")
    return int(length) if length.isdecimal() and len(length) < 20 else 0
