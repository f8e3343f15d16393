"""The shapes of the small crawler."""

from typing import Literal

from pydantic import BaseModel, Field

from serving.schemas.common import Urls


class SubmitRequest(BaseModel):
    """URLs to probe once."""

    urls: Urls


class Submitted(BaseModel):
    """The task that will do it."""

    task_id: str


class SimpleResult(BaseModel):
    """What was found at one URL."""

    timestamp: int = Field(description="When the probe began, in seconds since 1970 UTC.", examples=[1_700_000_000])
    errors: dict[Literal["http"], int | str] = Field(
        description="Empty for an answer below 400; otherwise `http` is the status, or a word.",
        examples=[{"http": 404}, {"http": "TIMEOUT"}, {}],
    )


class SimpleTask(BaseModel):
    """A task in the shape of the small crawler."""

    status: Literal["running", "done"]
    result: dict[str, SimpleResult] = Field(description="By URL as it was sent; those that are finished.")
