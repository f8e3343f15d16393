"""Templates: how values are shown, and the headers of every page."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from fastapi import Request, Response
from starlette.templating import Jinja2Templates

from serving.access import COOKIE
from serving.schemas import rfc3339
from urlhealth.errors import UrlHealthError
from urlhealth.features.wording import duration

HEADERS: Final = {
    # Scripts and requests of this server only. Swagger UI sets styles and images of its own.
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'; object-src 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}

_templates = Jinja2Templates(Path(__file__).parent / "templates")


def render(
    request: Request, name: str, context: Mapping[str, Any] | None = None, *, media_type: str | None = None
) -> Response:
    """A page. In templates `root` is the path that the application is mounted at."""
    root = request.scope.get("root_path", "").rstrip("/")
    here = request.url.path.removeprefix(root)
    whole = {"root": root, "here": here, "session": COOKIE in request.cookies, **(context or {})}
    headers = HEADERS if media_type is None else {}
    return _templates.TemplateResponse(request, name, whole, headers=headers, media_type=media_type)


def apology(request: Request, error: UrlHealthError, status: int) -> Response:
    """A page that says what is wrong."""
    answer = render(request, "apology.html", {"problem": str(error)})
    answer.status_code = status
    return answer


def percent(share: float | None, digits: int = 1) -> str:
    """0.123 as "12.3 %"."""
    return "unknown" if share is None else f"{share * 100:.{digits}f} %"


def when(ms: int | None) -> str:
    """An instant, to the second, UTC."""
    return "" if ms is None else rfc3339(ms)[:19].replace("T", " ")


def lasting(ms: float | None) -> str:
    """A duration in words."""
    return "" if ms is None or math.isnan(ms) else duration(ms / 3_600_000)


def in_query(value: object) -> str:
    """A value as it stands in a query."""
    return quote(str(value), safe="")


_templates.env.filters |= {"percent": percent, "when": when, "lasting": lasting, "q": in_query, "rfc3339": rfc3339}
_templates.env.trim_blocks = _templates.env.lstrip_blocks = True
