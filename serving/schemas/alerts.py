"""Alerts."""

from typing import Any, Self

import orjson
from pydantic import BaseModel, Field

from serving.schemas.common import RequestBody, Time, rfc3339, rfc3339_or_none
from urlhealth.alerts import rules, store


class Alert(BaseModel):
    """What a rule says of a target, or of the platform itself."""

    number: int
    rule: str
    target: str | None = Field(description="Null for one on the platform itself.")
    host: str
    text: str
    opened_at: Time
    closed_at: Time | None = Field(description="Null while it is open.")
    told_at: Time | None = Field(description="When a message on it was made; null if there was none, or none yet.")

    @classmethod
    def of(cls, alert: store.Alert) -> Self:
        """The alert as a reply."""
        return cls(
            number=alert.number,
            rule=alert.rule,
            target=alert.target,
            host=alert.host,
            text=alert.text,
            opened_at=rfc3339(alert.opened_ms),
            closed_at=rfc3339_or_none(alert.closed_ms),
            told_at=rfc3339_or_none(alert.told_ms),
        )


class AlertChannel(BaseModel):
    """Where messages go."""

    name: str
    url: str = Field(description="Without what may be secret in it.")
    signed: bool = Field(description="Whether it is a webhook, whose messages are signed.")

    @classmethod
    def of(cls, channel: rules.Channel) -> Self:
        """The channel as a reply."""
        return cls(name=channel.name, url=channel.shown(), signed=channel.is_webhook)


class AlertRules(BaseModel):
    """All rules and channels."""

    channels: list[AlertChannel]
    rules: list[rules.AnyRule]


class AlertRulesApplied(BaseModel):
    """What became of rules and channels, by name."""

    created: list[str]
    changed: list[str]
    deleted: list[str]


class AlertTestRequest(RequestBody):
    """Which channel to try."""

    channel: str = Field(examples=["oncall"])


class AlertTest(BaseModel):
    """What became of a test message."""

    sent: bool
    problem: str | None = Field(description="Why it could not be sent.")


class DeadLetter(BaseModel):
    """A message that could not be sent, and is not tried any more."""

    message_id: str
    rule: str
    channel: str
    attempts: int
    created_at: Time
    problem: str | None
    payload: dict[str, Any] = Field(description="As a webhook is sent it.")

    @classmethod
    def of(cls, message: store.Message) -> Self:
        """The message as a reply."""
        return cls(
            message_id=message.message_id,
            rule=message.rule,
            channel=message.channel,
            attempts=message.attempts,
            created_at=rfc3339(message.created_ms),
            problem=message.error,
            payload=orjson.loads(message.payload),
        )
