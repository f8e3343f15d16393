"""Monitors."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AwareDatetime, BaseModel, Field, ValidationError, model_validator

from serving.schemas.common import RequestBody, Target, Time, Url, rfc3339
from serving.schemas.options import Options
from urlhealth import vocabulary as words
from urlhealth.crawl.monitors import MAX_INTERVAL_S, MAX_WEIGHT, MIN_INTERVAL_S, MonitorChange
from urlhealth.errors import InvalidRequest

#: Without control characters; and whatever can be written down (no half of a surrogate pair).
Line = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
IntervalS = Annotated[
    int, Field(ge=MIN_INTERVAL_S, le=MAX_INTERVAL_S, description="Time between two probes.", examples=[300])
]
Weight = Annotated[
    float,
    Field(
        ge=1 / MAX_WEIGHT,
        le=MAX_WEIGHT,
        allow_inf_nan=False,
        description="What an outage of it counts, beside 1, where the schedule is adaptive.",
    ),
]
Group = Annotated[Line, Field(description="Who runs it; by default the registrable domain.")]
Tags = Annotated[list[Line], Field(max_length=50, description="Words to select monitors by.", examples=[["prod"]])]
Paused = Annotated[bool, Field(description="Whether it is not probed for now.")]

_EVERY_MS: Final = {"day": 86_400_000, "week": 604_800_000}
_EPOCH: Final = datetime.fromtimestamp(0, UTC)


class Maintenance(RequestBody):
    """A time in which the target is worked on, and not probed: from `start` up to before `end`."""

    start: AwareDatetime
    end: AwareDatetime
    every: Literal["day", "week"] | None = Field(
        None, description="How often it comes again, from `start` on: each 24 or 168 hours, whatever clocks show."
    )

    @model_validator(mode="after")
    def _lasts(self) -> Self:
        if self.start >= self.end:
            raise ValueError("ends before it starts")
        if self.every is not None and _ms(self.end) - _ms(self.start) >= _EVERY_MS[self.every]:
            raise ValueError(f"lasts as long as the {self.every} after which it comes again: pause the monitor instead")
        return self

    def to_domain(self) -> words.Maintenance:
        """The window as the platform knows it."""
        every_ms = None if self.every is None else _EVERY_MS[self.every]
        return words.Maintenance(start_ms=_ms(self.start), end_ms=_ms(self.end), every_ms=every_ms)

    @classmethod
    def of(cls, window: words.Maintenance) -> Self:
        """The window as a reply."""
        start, end = (_EPOCH + timedelta(milliseconds=ms) for ms in (window.start_ms, window.end_ms))
        every = next((name for name, every_ms in _EVERY_MS.items() if every_ms == window.every_ms), None)
        return cls.model_validate({"start": start, "end": end, "every": every})


class Schedule(RequestBody):
    """Probes where outages are likely, under a budget that all monitors share whose schedules are equal."""

    mode: Literal["adaptive"]
    budget_per_url_hour: float = Field(
        gt=0, allow_inf_nan=False, description="Probes per monitor and hour, on average over those that share it."
    )
    min_interval_s: int = Field(300, ge=MIN_INTERVAL_S, le=MAX_INTERVAL_S)
    max_interval_s: int = Field(43_200, ge=MIN_INTERVAL_S, le=MAX_INTERVAL_S)
    objective: words.Objective = Field(
        words.Objective.BOTH, description="Least time until an outage is detected, most outages caught, or both."
    )
    pool: Line | None = Field(None, description="A name, so that schedules that are otherwise equal share nothing.")

    def to_domain(self) -> words.AdaptiveSchedule:
        """The schedule as the platform knows it."""
        return words.AdaptiveSchedule(**self.model_dump(exclude={"mode"}))

    @classmethod
    def of(cls, schedule: words.AdaptiveSchedule) -> Self:
        """The schedule as a reply."""
        return cls.model_validate({"mode": "adaptive", **asdict(schedule)})


Windows = Annotated[list[Maintenance], Field(max_length=100, description="Times without probes.")]


class MonitorRequest(RequestBody):
    """A URL to probe again and again."""

    url: Url
    interval_s: IntervalS | None = None
    schedule: Schedule | None = Field(None, description="Instead of an interval.")
    weight: Weight = 1.0
    name: Line | None = Field(
        None, description="Makes it a target of its own, with its own options and verdicts, beside others of the URL."
    )
    group: Group | None = None
    options: Options = Field(default_factory=Options)
    tags: Tags = Field(default_factory=list)
    paused: Paused = False
    maintenance: Windows = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.interval_s is None) == (self.schedule is None):
            raise ValueError("give interval_s or schedule, and not both")
        return self

    def to_domain(self) -> words.MonitorSpec:
        """The monitor as the platform wants it.

        Raises:
            InvalidRequest: naming the option that cannot be used, or not with the others.
        """
        options = self.options.to_domain() if "options" in self.model_fields_set else words.DEFAULT_OPTIONS
        return words.MonitorSpec(
            url=self.url,
            interval_s=self.interval_s,
            schedule=None if self.schedule is None else self.schedule.to_domain(),
            weight=self.weight,
            name=self.name,
            group=self.group,
            options=options,
            tags=tuple(dict.fromkeys(self.tags)),
            paused=self.paused,
            maintenance=tuple(window.to_domain() for window in self.maintenance),
        )


class MonitorPatch(RequestBody):
    """What is to become of a monitor. What is not named stays; what is, is replaced as a whole."""

    interval_s: IntervalS | None = None
    schedule: Schedule | None = None
    weight: Weight | None = None
    group: Group | None = None
    options: Options | None = None
    tags: Tags | None = None
    paused: Paused | None = None
    maintenance: Windows | None = None

    @model_validator(mode="after")
    def _not_null(self) -> Self:
        nulls = [name for name in self.model_fields_set if getattr(self, name) is None]
        if nulls:
            raise ValueError(f"{min(nulls)} is null: leave out what is to stay as it is")
        if self.interval_s is not None and self.schedule is not None:
            raise ValueError("give interval_s or schedule, and not both")
        return self

    def to_domain(self) -> MonitorChange:
        """The change as the platform knows it.

        Raises:
            InvalidRequest: naming the option that cannot be used, or not with the others.
        """
        change: MonitorChange = {}
        if self.interval_s is not None:
            change["interval_s"] = self.interval_s
        if self.schedule is not None:
            change["schedule"] = self.schedule.to_domain()
        if self.weight is not None:
            change["weight"] = self.weight
        if self.group is not None:
            change["group"] = self.group
        if self.options is not None:
            change["options"] = self.options.to_domain()
        if self.tags is not None:
            change["tags"] = tuple(dict.fromkeys(self.tags))
        if self.paused is not None:
            change["paused"] = self.paused
        if self.maintenance is not None:
            change["maintenance"] = tuple(window.to_domain() for window in self.maintenance)
        return change


class Monitor(BaseModel):
    """A target that is probed again and again."""

    monitor_id: str
    url: str
    name: str | None
    target: Target
    group: str
    interval_s: int = Field(description="Time between two probes; of an adaptive schedule, the one planned now.")
    schedule: Schedule | None
    weight: float
    options: Options
    tags: list[str]
    paused: bool
    maintenance: list[Maintenance]
    created_at: Time
    next_due_at: Time = Field(description="Its next slot, if it is not paused then, or under maintenance.")
    skipped: int = Field(description="Slots in which it was not probed, because nobody could in time.")
    feeds_features: bool = Field(description="False with options of its own and no name: its probes are stored only.")

    @classmethod
    def of(cls, monitor: words.Monitor) -> Self:
        """The monitor as a reply."""
        return cls(
            monitor_id=monitor.monitor_id,
            url=monitor.target.url,
            name=monitor.target.name,
            target=monitor.target.key,
            group=monitor.target.group,
            interval_s=monitor.interval_s,
            schedule=None if monitor.schedule is None else Schedule.of(monitor.schedule),
            weight=monitor.weight,
            options=Options.of(monitor.options),
            tags=list(monitor.tags),
            paused=monitor.paused,
            maintenance=[Maintenance.of(window) for window in monitor.maintenance],
            created_at=rfc3339(monitor.created_ms),
            next_due_at=rfc3339(monitor.next_due_ms),
            skipped=monitor.skipped,
            feeds_features=monitor.target.name is not None or monitor.options == words.DEFAULT_OPTIONS,
        )


class MonitorAnswer(BaseModel):
    """What became of one of many new monitors."""

    position: int = Field(description="Its place among those that were sent, from 0.")
    result: Literal["created", "exists", "invalid"]
    monitor_id: str | None = Field(description="Of the new monitor, or of the one that there is.")
    detail: str | None = Field(description="Why there is no new one.")


class MonitorAnswers(BaseModel):
    """One answer a monitor, in the order in which they were sent."""

    created: int
    exists: int
    invalid: int
    items: list[MonitorAnswer]


class Changed(BaseModel):
    """What a change or deletion of several did."""

    monitors: int = Field(description="How many were selected.")


def parse_monitor(given: Any) -> words.MonitorSpec:
    """The monitor that one item of a list, or of a file, means.

    Raises:
        InvalidRequest: naming the field and what is wrong with it, never its value.
    """
    try:
        return MonitorRequest.model_validate(given).to_domain()
    except ValidationError as error:
        from serving.errors import in_words  # with FastAPI, which a command only needs to name a fault

        raise InvalidRequest(in_words(error.errors(include_input=False, include_url=False))) from None


def _ms(instant: datetime) -> int:
    return (instant - _EPOCH) // timedelta(milliseconds=1)
