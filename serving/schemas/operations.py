"""The platform itself."""

from typing import Any, Literal, Self

from pydantic import BaseModel, Field


class Check(BaseModel):
    """Whether one part works."""

    name: str
    ok: bool
    detail: str
    advice: str | None
    needed: bool = Field(description="Whether the platform is not ready without it.")


class Live(BaseModel):
    """The process answers."""

    status: Literal["live"] = "live"


class Ready(BaseModel):
    """Whether all parts work."""

    status: Literal["ready", "not ready"]
    checks: list[Check]

    @classmethod
    def of(cls, checks: list[Any]) -> Self:
        """The platform's checks as a reply."""
        return cls(
            status="ready" if all(check.ok for check in checks if check.needed) else "not ready",
            checks=[Check.model_validate(check, from_attributes=True) for check in checks],
        )
