"""Alerts: their rules and channels, what is open, and what could not be sent."""

from typing import Annotated

from fastapi import APIRouter, Query

from serving.dependencies import Cursor, Limit, Owner, PlatformDep
from serving.openapi import problems
from serving.schemas.alerts import (
    Alert,
    AlertChannel,
    AlertRules,
    AlertRulesApplied,
    AlertTest,
    AlertTestRequest,
    DeadLetter,
)
from serving.schemas.common import Listing
from urlhealth.alerts.rules import AlertFile
from urlhealth.alerts.store import MessageStatus

router = APIRouter(prefix="/api/v1/alerts", tags=["alerts"])


@router.get("", summary="List alerts", responses=problems(422, 503))
def list_alerts(
    platform: PlatformDep,
    owner: Owner,
    limit: Limit = 100,
    cursor: Cursor = None,
    only_open: Annotated[bool, Query(alias="open", description="Only those that are not over.")] = False,
) -> Listing[Alert]:
    """Newest first."""
    page = platform.alerts.alerts(limit=limit, cursor=cursor, only_open=only_open, owner=owner)
    return Listing(items=[Alert.of(alert) for alert in page.items], next_cursor=page.next_cursor)


@router.get("/rules", summary="Read rules and channels", responses=problems(503))
def read_rules(platform: PlatformDep, owner: Owner) -> AlertRules:
    """All of them, by name. Of channels no secret is shown."""
    return AlertRules(
        channels=[AlertChannel.of(channel) for channel in platform.alerts.channels(owner=owner)],
        rules=[stored.rule for stored in platform.alerts.rules(owner=owner)],
    )


@router.put("/rules", summary="Set rules and channels", responses=problems(422, 503))
def apply_rules(
    body: AlertFile,
    platform: PlatformDep,
    owner: Owner,
    prune: Annotated[bool, Query(description="Delete those that are not sent.")] = False,
) -> AlertRulesApplied:
    """Those of the names that are sent become what is sent; the others stay, unless they are pruned."""
    channels, rules = platform.alerts.apply(body, prune=prune, owner=owner)
    return AlertRulesApplied(
        created=[*channels.new, *rules.new],
        changed=[*channels.changed, *rules.changed],
        deleted=[*channels.surplus, *rules.surplus] if prune else [],
    )


@router.delete("/rules/{name}", status_code=204, summary="Delete a rule", responses=problems(404, 503))
def delete_rule(name: str, platform: PlatformDep, owner: Owner) -> None:
    """Its alerts go with it; nothing is told of them any more."""
    platform.alerts.delete_rule(name, owner=owner)


@router.delete("/channels/{name}", status_code=204, summary="Delete a channel", responses=problems(404, 422, 503))
def delete_channel(name: str, platform: PlatformDep, owner: Owner) -> None:
    """One that no rule names."""
    platform.alerts.delete_channel(name, owner=owner)


@router.post("/test", summary="Try a channel", responses=problems(404, 422, 503))
def try_channel(body: AlertTestRequest, platform: PlatformDep, owner: Owner) -> AlertTest:
    """Send a test message, now."""
    problem = platform.alert_sender.try_out(platform.alerts.channel(body.channel, owner=owner))
    return AlertTest(sent=problem is None, problem=problem)


@router.get("/dead-letters", summary="List dead letters", responses=problems(422, 503))
def list_dead_letters(
    platform: PlatformDep, owner: Owner, limit: Limit = 100, cursor: Cursor = None
) -> Listing[DeadLetter]:
    """Messages that could not be sent, newest first."""
    page = platform.alerts.messages(MessageStatus.DEAD, limit=limit, cursor=cursor, owner=owner)
    return Listing(items=[DeadLetter.of(message) for message in page.items], next_cursor=page.next_cursor)


@router.post(
    "/dead-letters/{message_id}/retry",
    status_code=202,
    summary="Send a dead letter again",
    responses=problems(404, 503),
)
def retry_dead_letter(message_id: str, platform: PlatformDep, owner: Owner) -> None:
    """Under the id that it had, by which its receiver can tell that it is the same."""
    platform.alerts.retry(message_id, owner=owner)
