"""What the shapes share. Times are RFC 3339 strings, UTC, with milliseconds; durations name their unit."""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SkipValidation

#: URLs that one request for features or predictions may name.
MAX_URLS = 1000

Item = TypeVar("Item")
Time = Annotated[str, Field(examples=["2026-01-01T00:00:00.000Z"], json_schema_extra={"format": "date-time"})]
Url = Annotated[str, Field(description="As it was sent.", examples=["https://example.com"])]
Target = Annotated[
    str,
    Field(
        description="The normalised URL that verdicts and features are kept under.", examples=["https://example.com/"]
    ),
]
# `parse_targets` checks the items, so that it can name all the bad ones at once, whatever is wrong with each.
Urls = Annotated[
    list[SkipValidation[str]], Field(min_length=1, examples=[["https://example.com", "https://example.org/status"]])
]
FewUrls = Annotated[Urls, Field(max_length=MAX_URLS)]
Horizon = Literal["1h", "6h", "24h"]


def rfc3339(ms: int) -> str:
    """2026-01-01T00:00:00.000Z for milliseconds since 1970 UTC."""
    minutes, rest_ms = divmod(ms, 60_000)
    return f"{_minute(minutes)}{rest_ms // 1000:02d}.{rest_ms % 1000:03d}Z"


@lru_cache(maxsize=4096)
def _minute(minutes: int) -> str:
    """2026-01-01T00:00: for minutes since 1970 UTC: times that are asked for are often near each other."""
    # Not strftime: its years before 1000 have less than four digits.
    return datetime.fromtimestamp(minutes * 60, UTC).replace(tzinfo=None).isoformat()[:-2]


def rfc3339_or_none(ms: int | None) -> str | None:
    """The same, where there may be no time."""
    return None if ms is None else rfc3339(ms)


class RequestBody(BaseModel):
    """What a caller sends. A field that is not known is an error: it is most often a misspelt one."""

    model_config = ConfigDict(extra="forbid")


class Listing(BaseModel, Generic[Item]):
    """Part of a list."""

    items: list[Item]
    next_cursor: str | None = Field(description="Give it as `cursor` for the next part; null at the end.")


class ProblemItem(BaseModel):
    """One fault in a request."""

    pointer: str | None = Field(None, description="JSON pointer into the body.", examples=["/urls/3"])
    parameter: str | None = Field(None, description="Name of the query or path parameter.", examples=["limit"])
    detail: str


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(examples=["urn:problem-type:urlhealth:invalid-urls"])
    title: str = Field(examples=["Some URLs cannot be probed"])
    status: int = Field(examples=[422])
    detail: str = Field(description="What is wrong, and what to do.")
    instance: str = Field(description="Path of the request.", examples=["/api/v1/tasks"])
    errors: list[ProblemItem] = Field([], description="The faults one by one, where there are several.")
