"""From errors to HTTP: one table, and handlers that answer every error as `application/problem+json` (RFC 9457)."""

import http
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from urlhealth import errors

log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"


@dataclass(frozen=True)
class Kind:
    """A kind of problem: HTTP status, the last part of its `type`, and its title."""

    status: int
    name: str
    title: str

    @property
    def type(self) -> str:
        return f"urn:problem-type:urlhealth:{self.name}"


#: The nearest base class decides for classes that are not in the table.
KINDS: Final[Mapping[type[errors.UrlHealthError], Kind]] = {
    errors.InvalidRequest: Kind(422, "invalid-request", "The request cannot be carried out as it was written"),
    errors.InvalidUrls: Kind(422, "invalid-urls", "Some URLs cannot be probed"),
    errors.TooOld: Kind(409, "too-old", "What is known of some URLs is too old"),
    errors.Duplicate: Kind(409, "duplicate", "There is one already"),
    errors.InvalidCursor: Kind(422, "invalid-cursor", "This list did not give out that cursor"),
    errors.Unauthenticated: Kind(401, "unauthenticated", "An API key is needed"),
    errors.Forbidden: Kind(403, "forbidden", "The API key may not do that"),
    errors.QuotaExceeded: Kind(429, "quota-exceeded", "The API key has done as much as it may"),
    errors.KeyReused: Kind(409, "key-reused", "The idempotency key belongs to another request"),
    errors.NotFound: Kind(404, "not-found", "No such thing"),
    errors.NoModel: Kind(503, "no-model", "There is no model yet"),
    errors.NotEnoughHistory: Kind(503, "not-enough-history", "There is too little history to learn from"),
    errors.ModelMismatch: Kind(503, "model-mismatch", "The model does not fit this version's features"),
    errors.StateMismatch: Kind(503, "state-mismatch", "Stored feature state does not fit this version"),
    errors.StoreUnavailable: Kind(503, "store-unavailable", "A store cannot be used"),
    errors.LeaseLost: Kind(503, "lease-lost", "Another process has become the writer"),
    errors.ConfigurationError: Kind(500, "configuration", "The settings cannot work"),
    errors.UrlHealthError: Kind(500, "error", "The platform failed"),
}
INVALID_REQUEST: Final = KINDS[errors.InvalidRequest]
TOO_LONG: Final = Kind(413, "too-long", "The body is too long")
BUSY: Final = Kind(429, "busy", "Too many requests are under way")
NOT_LOCAL: Final = Kind(403, "not-local", "Only this machine is served")
INTERNAL: Final = Kind(500, "internal", "The server failed")

#: Validation messages that say more to a caller than pydantic's own.
_DETAILS: Final = {
    "json_invalid": "the body is not JSON: {error}",
    "missing": "is missing",
    "string_type": "is not a string",
    "extra_forbidden": "is not a field that is known here",
    "too_short": "holds {actual_length} items; send at least {min_length}",
    "too_long": "is one too many; send at most {max_length}",
    "model_attributes_type": "the body is not a JSON object; send one with the header Content-Type: application/json",
}


def body_too_long(most_bytes: int) -> HTTPException:
    """For a body of more than `most_bytes`."""
    return HTTPException(TOO_LONG.status, f"the body is longer than {most_bytes} bytes: send fewer URLs at once")


def problem(
    request: Request,
    kind: Kind,
    detail: str,
    *,
    items: Sequence[Mapping[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """One problem document; `items` become its `errors`. Inference protocols get their own form, with the detail."""
    media_type = "application/json"
    match request.url.path.split("/"):
        case ["", "v1" | "v2", *_]:
            body: dict[str, Any] = {"error": detail}
        case ["", "invocations"]:
            name = "BAD_REQUEST" if kind.status < http.HTTPStatus.INTERNAL_SERVER_ERROR else "INTERNAL_ERROR"
            body = {"error_code": name, "message": detail}
        case _:
            media_type = MEDIA_TYPE
            body = {
                "type": kind.type,
                "title": kind.title,
                "status": kind.status,
                "detail": detail,
                "instance": request.url.path,
            }
            if items:
                body["errors"] = items
    request_id = getattr(request.state, "request_id", None)
    extra = {} if request_id is None else {"X-Request-ID": request_id}
    return Response(orjson.dumps(body), kind.status, {**(headers or {}), **extra}, media_type)


def install(app: FastAPI) -> None:
    """Make `app` answer every error as a problem document."""
    app.add_exception_handler(errors.UrlHealthError, _domain)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _validation)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _http)  # type: ignore[arg-type]
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unforeseen)


def kind_of(error: errors.UrlHealthError) -> Kind:
    """The row of the table for an error: its own class's, or its nearest base's."""
    return next(KINDS[cls] for cls in type(error).__mro__ if cls in KINDS)


async def _domain(request: Request, error: errors.UrlHealthError) -> Response:
    return problem_of(request, error)


def problem_of(request: Request, error: errors.UrlHealthError) -> Response:
    """The problem document for an error of the platform."""
    kind = kind_of(error)
    if kind.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("%s %s: %s", request.method, request.url.path, error)
    items = []
    if isinstance(error, errors.InvalidUrls):
        items = [
            {"pointer": f"/urls/{position}", "detail": reason} for position, reason in sorted(error.problems.items())
        ]
    headers = {}
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, errors.QuotaExceeded):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    return problem(request, kind, str(error), items=items, headers=headers)


async def _validation(request: Request, error: RequestValidationError) -> Response:
    return invalid(request, error.errors())


def invalid(request: Request, found: Iterable[Mapping[str, Any]]) -> Response:
    """The problem document for what pydantic found in a request; the first part of each `loc` says in which part."""
    items = [_item(fault) for fault in found]
    return problem(request, INVALID_REQUEST, _sentence(items), items=items)


def in_words(found: Iterable[Mapping[str, Any]]) -> str:
    """What pydantic found in one item of a list, in a sentence."""
    return _sentence([_item({**fault, "loc": ("body", *fault["loc"])}) for fault in found])


def _sentence(items: Sequence[Mapping[str, str]]) -> str:
    first = items[0]
    where = first.get("parameter") or first["pointer"].removeprefix("/")
    more = f" (and {len(items) - 1} more)" if len(items) > 1 else ""
    return f"{where}: {first['detail']}{more}" if where else first["detail"]


def _item(found: Mapping[str, Any]) -> dict[str, str]:
    """What pydantic found, as one of a problem's `errors`. What was sent is not echoed: it may be long, or secret."""
    kind, context = found["type"], found.get("ctx", {})
    try:
        detail = _DETAILS[kind].format(**context)
    except KeyError:
        detail = _lower_first(found["msg"])
    place, *path = found["loc"]
    if place != "body":
        return {"parameter": ".".join(map(str, path)), "detail": detail}
    if kind == "json_invalid":
        at = f" (at byte {path[0]})" if path else ""
        return {"pointer": "", "detail": f"{detail}{at}"}
    if kind == "too_long" and context:
        path.append(context["max_length"])
    if kind == "missing" and not path:
        detail = "the body is missing: send a JSON object"
    return {"pointer": _pointer(path), "detail": detail}


def _pointer(path: Iterable[str | int]) -> str:
    """A JSON pointer (RFC 6901). JSON lets names hold half a surrogate pair, which no reply can: shown as "?"."""
    parts = (str(part).encode(errors="replace").decode() for part in path)
    return "".join(f"/{part.replace('~', '~0').replace('/', '~1')}" for part in parts)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


async def _http(request: Request, error: HTTPException) -> Response:
    path, method = request.url.path, request.method
    headers = error.headers or {}
    match error.status_code:
        case 400:
            # FastAPI's answer to a body that breaks its JSON parser (too deep, too long a number, not UTF-8).
            return problem(request, INVALID_REQUEST, "the body is not JSON that can be read")
        case 404:
            return problem(request, KINDS[errors.NotFound], f"there is no {path} here: see /docs", headers=headers)
        case 405:
            kind = Kind(405, "method-not-allowed", "The method is not allowed here")
            return problem(
                request, kind, f"{path} does not take {method}: see /docs for what it takes", headers=headers
            )
        case TOO_LONG.status:
            return problem(request, TOO_LONG, error.detail)
    return problem(request, http_kind(error.status_code), str(error.detail), headers=headers)


def http_kind(status: int) -> Kind:
    """The kind of a problem of which nothing is known but its HTTP status."""
    return Kind(status, "http", http.HTTPStatus(status).phrase)


async def _gone(request: Request, error: Exception) -> Response:  # noqa: ARG001  nobody is there to read it
    return problem(request, INVALID_REQUEST, "the request broke off")


async def _unforeseen(request: Request, error: Exception) -> Response:  # noqa: ARG001  the server logs it
    return problem(request, INTERNAL, "something went wrong in the server; its log has the details")
