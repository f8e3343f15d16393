"""What route functions ask for by type. All are coroutines: FastAPI would send each plain function to a thread."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Query, Request

from serving.access import CALLER
from urlhealth.crawl.keys import Caller, Scope
from urlhealth.errors import InvalidUrls
from urlhealth.platform import Platform
from urlhealth.vocabulary import LOCAL_OWNER


async def _platform(request: Request) -> Platform:
    platform: Platform = request.app.state.platform
    return platform


async def _caller(request: Request) -> Caller:
    caller: Caller = request.scope[CALLER]
    return caller


async def _owner(request: Request) -> str:
    caller: Caller = request.scope[CALLER]
    return caller.owner


async def _shown(request: Request) -> str:
    caller: Caller = request.scope[CALLER]
    return caller.owner if caller.may(Scope.READ) else LOCAL_OWNER


async def _body(request: Request) -> bytes:
    return await request.body()


PlatformDep = Annotated[Platform, Depends(_platform)]
#: The body as it was sent, for routes that read it themselves.
Body = Annotated[bytes, Depends(_body)]
#: Who sends the request, and whose data they see.
CallerDep = Annotated[Caller, Depends(_caller)]
Owner = Annotated[str, Depends(_owner)]
#: Whose status page it is, where that is public: `local`'s for those who show no key.
Shown = Annotated[str, Depends(_shown)]

Limit = Annotated[int, Query(ge=1, le=1000, description="Items at most.")]
Cursor = Annotated[
    str | None, Query(max_length=200, description="`next_cursor` of the page before; without it, the first page.")
]

Instant = Annotated[datetime | None, Query(examples=["2026-01-01T00:00:00Z"])]


def milliseconds(instant: datetime | None) -> int | None:
    """Milliseconds since 1970 UTC; without a zone it is UTC."""
    if instant is None:
        return None
    return round((instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp() * 1000)


def check_count(urls: list[str], most: int) -> None:
    """Raises `InvalidUrls`, naming the first position that is too many for one task."""
    if len(urls) > most:
        raise InvalidUrls({most: f"is one too many: a task takes at most {most} URLs, and {len(urls)} were sent"})
