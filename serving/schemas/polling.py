"""Polling under a budget."""

from dataclasses import asdict
from typing import Self

from pydantic import BaseModel, Field

from serving.schemas.common import Target, Time, rfc3339
from serving.schemas.monitors import Schedule
from urlhealth import vocabulary as words
from urlhealth.crawl.adaptive import PoolReport
from urlhealth.crawl.pools import PollingPool
from urlhealth.polling import gain as gains


class Gain(BaseModel):
    """Outages, and what is found of them, beside equal intervals at the same budget (`docs/polling.md`)."""

    outages: float = Field(description="How many there were, seen or not.")
    caught: float
    uniform_caught: float = Field(description="With equal intervals.")
    caught_ratio: float | None = Field(description="How many times as many are caught; null where there are none.")
    delay_h: float = Field(description="Hours until detection, of all together; one that is missed counts its length.")
    uniform_delay_h: float
    delay_ratio: float | None = Field(description="Less than 1 is sooner; null where there are none.")

    @classmethod
    def of(cls, gain: gains.Gain) -> Self:
        return cls(**asdict(gain), caught_ratio=gain.caught_ratio, delay_ratio=gain.delay_ratio)


class Spread(BaseModel):
    """Intervals in seconds that are planned now."""

    least: int
    p10: int
    median: int
    p90: int
    most: int


class Spent(BaseModel):
    """Where the budget went."""

    since: Time
    as_of: Time
    granted: float = Field(description="Probes that the budget allowed since then.")
    spent: int = Field(description="Probes that were handed out since then.")
    planned_per_hour: float = Field(description="As it is planned now.")
    intervals_s: Spread | None
    estimated: Gain = Field(description="Per hour, with the present intervals, by what is known now.")
    realised: Gain = Field(description="Since then, from the outages that were found.")

    @classmethod
    def of(cls, report: PoolReport) -> Self:
        names = tuple(Spread.model_fields)
        return cls(
            since=rfc3339(report.since_ms),
            as_of=rfc3339(report.as_of_ms),
            granted=report.granted,
            spent=report.spent,
            planned_per_hour=report.planned_per_h,
            intervals_s=Spread(**dict(zip(names, report.intervals_s, strict=True))) if report.intervals_s else None,
            estimated=Gain.of(report.estimated),
            realised=Gain.of(report.realised),
        )


class Pool(BaseModel):
    """Monitors whose adaptive schedules are equal: they share the budget."""

    pool_id: int
    schedule: Schedule
    monitors: int = Field(description="Those that are not paused.")
    budget_per_hour: float = Field(description="Probes that they have together.")
    report: Spent | None = Field(description="Null in the first seconds.")

    @classmethod
    def of(cls, pool: PollingPool) -> Self:
        return cls(
            pool_id=pool.number,
            schedule=Schedule.of(pool.schedule),
            monitors=pool.monitors,
            budget_per_hour=pool.budget_per_h,
            report=None if pool.report is None else Spent.of(pool.report),
        )


class Polled(BaseModel):
    """A monitor of a pool, and how often it was probed."""

    monitor_id: str
    url: str
    target: Target
    group: str
    weight: float
    probes: int = Field(description="Handed out since it is in the pool.")
    interval_s: int = Field(description="As it is planned now.")
    next_due_at: Time
    skipped: int

    @classmethod
    def of(cls, monitor: words.Monitor) -> Self:
        return cls(
            monitor_id=monitor.monitor_id,
            url=monitor.target.url,
            target=monitor.target.key,
            group=monitor.target.group,
            weight=monitor.weight,
            probes=monitor.probes,
            interval_s=monitor.interval_s,
            next_due_at=rfc3339(monitor.next_due_ms),
            skipped=monitor.skipped,
        )
