"""What messages say."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from urlhealth.alerts.rules import Rule

if TYPE_CHECKING:
    from urlhealth.alerts.store import Alert

#: Alerts that one message lists.
MAX_LISTED: Final = 50

#: What is so of one target, and of several, by the rule's kind; and how it ended.
_TITLES: Final = {
    "state": ("is down", "are down", "back up"),
    "latency": ("is slow", "are slow", "fast again"),
    "risk": ("is likely to fail", "are likely to fail", "no longer likely to fail"),
    "certificate": ("has a certificate that expires soon", "have certificates that expire soon", "certificate renewed"),
    "lag": ("is late", "are late", "in time again"),
}
PLATFORM: Final = "urlhealth"


def payload_of(rule: Rule, host: str, found: Sequence["Alert"], *, begins: bool) -> dict[str, Any]:
    """A message on a host's alerts that begin, or end: JSON."""
    one, several, over = _TITLES[rule.kind]
    what = found[0].target or PLATFORM if len(found) == 1 else f"{host}: {len(found)} URLs"
    title = f"{what}: {over}" if not begins else f"{what} {one if len(found) == 1 else several}"
    lines = [f"{alert.target or PLATFORM}: {alert.text}" for alert in found[:MAX_LISTED]]
    if len(found) > MAX_LISTED:
        lines.append(f"and {len(found) - MAX_LISTED} more")
    return {
        "type": "alert" if begins else "recovery",
        "rule": rule.name,
        "kind": rule.kind,
        "host": host,
        "title": title,
        "text": "\n".join(lines),
        "alerts": [
            {
                "number": alert.number,
                "target": alert.target,
                "text": alert.text,
                "opened_at": _instant(alert.opened_ms),
                "closed_at": None if alert.closed_ms is None else _instant(alert.closed_ms),
            }
            for alert in found
        ],
    }


def trial_payload(channel: str) -> dict[str, Any]:
    """The message by which a channel is tried."""
    text = f"This is a test of the channel {channel!r}. If you read it, alerts will reach you."
    return {"type": "test", "title": "urlhealth: test", "text": text, "alerts": []}


def _instant(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
