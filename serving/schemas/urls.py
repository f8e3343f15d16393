"""What a URL is, and has been."""

from typing import Any, Self

from pydantic import BaseModel, Field

from serving.schemas.common import Target, Time, rfc3339, rfc3339_or_none
from urlhealth.crawl import reading
from urlhealth.vocabulary import Health, Outcome, ProbeResult

_UPTIME = {"24h": 1.0, "7d": 0.9987, "30d": 0.9991, "1y": None}


class LastProbe(BaseModel):
    """The newest verdict: what it found, and how long each phase took (null where it was not reached)."""

    timestamp: Time
    outcome: Outcome
    status_code: int | None
    dns_ms: float | None
    connect_ms: float | None
    tls_ms: float | None
    first_byte_ms: float | None
    total_ms: float | None
    error: str | None

    @classmethod
    def of(cls, result: ProbeResult) -> Self:
        """The result as a reply."""
        names = cls.model_fields.keys() - {"timestamp"}
        return cls(timestamp=rfc3339(result.ts_ms), **{name: getattr(result, name) for name in names})


class UrlState(BaseModel):
    """What a URL is now, and how much of the time it was up."""

    target: Target
    group: str = Field(description="Who runs it: as given, otherwise the registrable domain.")
    state: Health = Field(description="`unknown` if the newest verdict is too old to say how it is now.")
    since: Time | None = Field(description="Since when it is that, as far as is known; null if unknown.")
    uptime: dict[str, float | None] = Field(
        description="Share of the time up to now in which it was up, of that in which its state was known; null if it "
        "never was.",
        examples=[_UPTIME],
    )
    degraded: bool = Field(
        description="Whether it is up, and its newest verdict was slow for it. Known seconds after the verdict."
    )
    last: LastProbe | None = Field(description="The newest verdict; null if it was never probed with its own options.")

    @classmethod
    def of(cls, state: reading.UrlState, *, degraded: bool) -> Self:
        """The state as a reply. `degraded`: what the features say of the newest verdict."""
        return cls(
            target=state.target.key,
            group=state.target.group,
            state=state.health,
            since=rfc3339_or_none(state.since_ms),
            uptime=state.uptime,
            degraded=degraded and state.health is Health.UP,
            last=None if state.last is None else LastProbe.of(state.last),
        )


class HistoryPoint(BaseModel):
    """One step. Durations are those of verdicts that were `ok`, redirects included; null where there were none."""

    start: Time
    outcomes: dict[str, int] = Field(description="Verdicts by outcome.", examples=[{"ok": 59, "timeout": 1}])
    mean_ms: float | None
    p50_ms: float | None = Field(description="Median, to within 2.5 %.")
    p95_ms: float | None = Field(description="95th percentile, to within 2.5 %.")
    deviation_ms: float | None = Field(description="Standard deviation.")


class UrlHistory(BaseModel):
    """A URL's verdicts from one instant to another, in steps."""

    target: Target
    start: Time
    end: Time
    step_s: int
    points: list[HistoryPoint] = Field(description="By time; steps without verdicts are left out.")

    @staticmethod
    def content(history: reading.UrlHistory) -> dict[str, Any]:
        """The history as the content of a reply: a thousand objects of classes would take longer than all the rest."""
        return {
            "target": history.target.key,
            "start": rfc3339(history.from_ms),
            "end": rfc3339(history.to_ms),
            "step_s": history.step_ms // 1000,
            "points": [
                {
                    "start": rfc3339(point.start_ms),
                    "outcomes": point.summary.outcomes,
                    "mean_ms": point.summary.mean_ms,
                    "p50_ms": point.summary.p50_ms,
                    "p95_ms": point.summary.p95_ms,
                    "deviation_ms": point.summary.deviation_ms,
                }
                for point in history.points
            ],
        }


class Incident(BaseModel):
    """A time in which a URL was seen failing."""

    start: Time = Field(description="The first failing verdict.")
    end: Time | None = Field(
        description="The next good verdict, or when the state was known no longer; null while it lasts."
    )
    outcome: Outcome = Field(description="Of the first failing verdict.")
    phase: str | None = Field(
        description="Where that failed: `dns`, `connect`, `tls`, `first_byte`, `body`, or `answer`, which was complete "
        "and said that something is wrong; null where that is not known.",
        examples=["connect"],
    )

    @classmethod
    def of(cls, incident: reading.Incident) -> Self:
        """The incident as a reply."""
        return cls(
            start=rfc3339(incident.start_ms),
            end=rfc3339_or_none(incident.end_ms),
            outcome=incident.outcome,
            phase=incident.phase,
        )
