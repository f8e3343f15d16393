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
    def of(cls, checks: list[Any], *, told: bool = True) -> Self:
        """The platform's checks as a reply; with or without what is in use, and what is wrong with it."""
        return cls(
            status="ready" if all(check.ok for check in checks if check.needed) else "not ready",
            checks=[
                Check(
                    name=check.name,
                    ok=check.ok,
                    detail=check.detail if told else "",
                    advice=check.advice if told else None,
                    needed=check.needed,
                )
                for check in checks
            ],
        )
