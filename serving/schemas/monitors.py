"""Monitors."""

from typing import Self

from pydantic import BaseModel, Field

from serving.schemas.common import RequestBody, Target, Time, Url, rfc3339
from urlhealth import vocabulary as words
from urlhealth.crawl.monitors import MAX_INTERVAL_S, MIN_INTERVAL_S


class MonitorRequest(RequestBody):
    """A URL to probe again and again."""

    url: Url
    interval_s: int = Field(
        ge=MIN_INTERVAL_S, le=MAX_INTERVAL_S, description="Time between two probes.", examples=[300]
    )
    group: str | None = Field(
        None,
        max_length=200,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        description="Who runs it; by default the registrable domain.",
    )


class Monitor(BaseModel):
    """A target that is probed at an interval."""

    monitor_id: str
    url: str
    target: Target
    group: str
    interval_s: int
    paused: bool
    created_at: Time
    next_due_at: Time

    @classmethod
    def of(cls, monitor: words.Monitor) -> Self:
        """The monitor as a reply."""
        return cls(
            monitor_id=monitor.monitor_id,
            url=monitor.target.url,
            target=monitor.target.key,
            group=monitor.target.group,
            interval_s=monitor.interval_s,
            paused=monitor.paused,
            created_at=rfc3339(monitor.created_ms),
            next_due_at=rfc3339(monitor.next_due_ms),
        )
