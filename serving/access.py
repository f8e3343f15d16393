"""Who may do what: one look at each request, before it is routed, so that no route can be forgotten.

Without any API key only this machine is served, and may do everything. With the first key each call needs one, health
apart. `RULES` says which scope a call needs; what is in no rule needs `admin`.
"""

import logging
import re
import time
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from anyio.to_thread import run_sync
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from serving.errors import NOT_LOCAL, problem, problem_of
from urlhealth.crawl.keys import LOCAL, Caller, KeyStore, Scope
from urlhealth.errors import Forbidden, QuotaExceeded, Unauthenticated, UrlHealthError
from urlhealth.platform import Platform
from urlhealth.settings import redacted

#: What a request's scope has the caller under.
CALLER: Final = "urlhealth.caller"
#: The cookie of a browser that is logged in.
COOKIE: Final = "urlhealth_session"

#: For calls that need no key.
PUBLIC: Final = None
#: What needs no key where the settings switch a status page on.
STATUS_PAGE: Final = re.compile(r"/status(\.rss)?|/badge/[^/]*")
#: The first that fits counts: methods, whole path, scope.
RULES: Final[tuple[tuple[str, str, Scope | None], ...]] = (
    ("GET", r"/(v2/)?health/(live|ready)|/(livez|readyz|healthz)|/static/.*", PUBLIC),
    ("GET|POST", r"/login", PUBLIC),
    ("POST", r"/logout", PUBLIC),
    ("GET|POST|DELETE", r"/api/v1/keys(/[^/]*(/rotate)?)?", Scope.ADMIN),
    ("GET", r"/api/v1/audit", Scope.ADMIN),
    ("POST", r"/api/v1/(predictions|features|score)|/score|/invocations", Scope.PREDICT),
    ("GET|POST", r"/v[12](/.*)?", Scope.PREDICT),
    ("GET", r"/|/docs|/openapi\.json|/schema\.json|/metrics|/ui/.*", Scope.READ),
    ("GET", STATUS_PAGE.pattern, Scope.READ),
    ("POST", r"/graphql", Scope.READ),
    ("POST", r"/ui/tasks|/ui/monitors/.*", Scope.CRAWL),
    ("POST", r"/ui/alerts/test|/ui/models/change", Scope.ADMIN),
    ("GET", r"/api/v1/(tasks|monitors|url|predictions|polling|models|alerts)(/.*)?|/tasks(/[^/]*)?", Scope.READ),
    # Channels say where to send to, and with what secret.
    ("PUT|POST|DELETE", r"/api/v1/alerts/.*", Scope.ADMIN),
    ("POST|PATCH|DELETE", r"/api/v1/(tasks|monitors)(/.*)?", Scope.CRAWL),
    ("POST", r"/submit", Scope.CRAWL),
    ("DELETE", r"/tasks/[^/]*|/api/v1/url", Scope.CRAWL),
)
_COMPILED: Final = tuple((frozenset(methods.split("|")), re.compile(path), scope) for methods, path, scope in RULES)

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
#: Requests that a caller may make at once after a pause, in seconds of its rate.
_BURST_S: Final = 1.0
_LONGEST_ACTION: Final = 2_000
_FOREIGN: Final = "a page of another site sent this: use the pages of this server, or a program"

log = logging.getLogger(__name__)


#: Who has shown no key, in a call that needs none.
NOBODY: Final = Caller(owner="", scopes=frozenset())


class NoRule(LookupError):
    """No rule is for this call."""


def scope_needed(method: str, path: str, *, status_page: bool = False) -> Scope | None:
    """The scope that a call needs; None if it needs no key. A `status_page` is for everybody.

    Raises:
        NoRule: none is for it.
    """
    method = "GET" if method == "HEAD" else method
    if status_page and method == "GET" and STATUS_PAGE.fullmatch(path):
        return PUBLIC
    for methods, pattern, scope in _COMPILED:
        if method in methods and pattern.fullmatch(path):
            return scope
    raise NoRule(f"{method} {path}")


class AccessControl:
    """Lets a request through with its `Caller`, or answers it."""

    def __init__(
        self, app: ASGIApp, platform: Callable[[], Platform], timer: Callable[[], float] = time.monotonic
    ) -> None:
        """`timer`: seconds that never go back, for the quota of requests."""
        self._app = app
        self._platform = platform
        self._timer = timer
        #: For each key with such a quota: how many requests it may make now, and as of when.
        self._tokens: dict[str, tuple[float, float]] = {}

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or CALLER in scope:
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})  # There is no other type, and none of ours.
            return
        app = await self._admit(scope) or self._app
        if CALLER in scope and _is_change(scope):
            await self._audited(app, scope, receive, send)
        else:
            await app(scope, receive, send)

    async def _admit(self, scope: AsgiScope) -> Response | None:
        """Set the caller, or say why not."""
        request, headers = Request(scope), Headers(scope=scope)
        if scope["method"] not in _SAFE_METHODS and _from_elsewhere(headers):
            return problem(request, NOT_LOCAL, _FOREIGN)
        try:
            status_page = self._platform().settings.status_page
            needed = scope_needed(scope["method"], scope["path"], status_page=status_page)
        except NoRule:
            needed = Scope.ADMIN
        try:
            keys = self._platform().keys
            if not await _exist(keys, needed):
                scope[CALLER] = LOCAL
                detail = _why_not_local((scope.get("server") or ("",))[0], headers.get("host", ""))
                return None if detail is None else problem(request, NOT_LOCAL, detail)
            try:
                scope[CALLER] = caller = await run_sync(_caller, keys, headers, request.cookies)
            except Unauthenticated:
                if needed is not PUBLIC:
                    raise
                scope[CALLER] = NOBODY
            if needed is PUBLIC:
                return None
            if not caller.may(needed):
                raise Forbidden(f"the API key may not do that: it needs the scope {needed}")
            self._meter(caller)
        except Unauthenticated as error:
            if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
                return RedirectResponse(f"/login?next={quote(scope['path'])}", 303)
            return problem_of(request, error)
        except UrlHealthError as error:
            return problem_of(request, error)
        return None

    def _meter(self, caller: Caller) -> None:
        rate, key_id = caller.quotas.requests_per_s, caller.key_id
        if rate is None or key_id is None:
            return
        now_s, most = self._timer(), max(1.0, rate * _BURST_S)
        left, since_s = self._tokens.get(key_id, (most, now_s))
        left = min(most, left + (now_s - since_s) * rate)
        allowed = left >= 1
        self._tokens[key_id] = (left - allowed, now_s)
        if not allowed:
            raise QuotaExceeded(f"the quota is {rate:g} requests a second", retry_after_s=(1 - left) / rate)

    async def _audited(self, app: ASGIApp, scope: AsgiScope, receive: Receive, send: Send) -> None:
        status = 500

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await app(scope, receive, send_noting)
        finally:
            query = unquote(scope.get("query_string", b"").decode("latin-1"))
            action = redacted(f"{scope['method']} {scope['path']}{'?' if query else ''}{query}")[:_LONGEST_ACTION]
            request_id = scope.get("state", {}).get("request_id")
            address = (scope.get("client") or (None,))[0]

            def record() -> None:
                self._platform().keys.record(
                    action, scope[CALLER], status=status, request_id=request_id, address=address
                )

            try:
                await run_sync(record)
            except UrlHealthError:
                log.exception("not in the audit log: %s %s", scope["method"], scope["path"])


async def _exist(keys: KeyStore, needed: Scope | None) -> bool:
    try:
        return keys.exist() if keys.looked else await run_sync(keys.exist)
    except UrlHealthError:
        if needed is PUBLIC:  # health is told, whatever the database does
            return False
        raise


def _caller(keys: KeyStore, headers: Headers, cookies: dict[str, str]) -> Caller:
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return keys.caller(secret.strip())
    if given := headers.get("x-api-key"):
        return keys.caller(given)
    if token := cookies.get(COOKIE):
        return keys.session_caller(token)
    raise Unauthenticated("an API key is needed: send one as `Authorization: Bearer uh_...`")


def _is_change(scope: AsgiScope) -> bool:
    """Whether it is for the audit log: all that is neither reading nor asking the model."""
    if scope["method"] in _SAFE_METHODS:
        return False
    try:
        return scope_needed(scope["method"], scope["path"]) in (Scope.CRAWL, Scope.ADMIN)
    except NoRule:
        return True


def _from_elsewhere(headers: Headers) -> bool:
    """Whether a browser sends it for a page of another site."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("cross-site", "same-site")
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2] != headers.get("host")


@lru_cache(maxsize=256)
def _why_not_local(server: str, sent: str) -> str | None:
    """What is wrong with an address of this server, or with a Host header; None if both are of this machine."""
    try:
        address: Any = ip_address(server)
    except ValueError:
        return None  # A Unix socket, or a test client: it has no address.
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address
    if not address.is_loopback:
        return f"there is no authentication without an API key: connect to loopback (127.0.0.1, ::1), not to {address}"
    # A page of another site can make its own name an address of this machine.
    try:
        host = urlsplit(f"//{sent}").hostname or ""
        if host != "localhost" and not host.endswith(".localhost"):
            ip_address(host)
    except ValueError:
        return f"this machine is not called {sent[:80]!r}: connect to 127.0.0.1, ::1 or localhost"
    return None
