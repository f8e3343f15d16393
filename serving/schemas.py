"""The shapes of requests and replies. Times are RFC 3339 strings, UTC, with milliseconds; durations name their unit."""

from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from urlhealth import vocabulary as words
from urlhealth.crawl.monitors import MAX_INTERVAL_S, MIN_INTERVAL_S
from urlhealth.vocabulary import DEFAULT_OPTIONS, Freshness, Health, Outcome, TaskStatus

#: URLs that one request for features or predictions may name.
MAX_URLS = 1000

Item = TypeVar("Item")
Time = Annotated[str, Field(examples=["2026-01-01T00:00:00.000Z"], json_schema_extra={"format": "date-time"})]
Url = Annotated[str, Field(description="As it was sent.", examples=["https://example.com"])]
Target = Annotated[
    str,
    Field(
        description="The normalised URL that verdicts and features are kept under.", examples=["https://example.com/"]
    ),
]
Urls = Annotated[list[str], Field(min_length=1, examples=[["https://example.com", "https://example.org/status"]])]
FewUrls = Annotated[Urls, Field(max_length=MAX_URLS)]
Horizon = Literal["1h", "6h", "24h"]


def rfc3339(ms: int) -> str:
    """2026-01-01T00:00:00.000Z for milliseconds since 1970 UTC."""
    seconds, rest_ms = divmod(ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest_ms:03d}Z"


def _rfc3339_or_none(ms: int | None) -> str | None:
    return None if ms is None else rfc3339(ms)


class RequestBody(BaseModel):
    """What a caller sends. A field that is not known is an error: it is most often a misspelt one."""

    model_config = ConfigDict(extra="forbid")


class Listing(BaseModel, Generic[Item]):
    """Part of a list."""

    items: list[Item]
    next_cursor: str | None = Field(description="Give it as `cursor` for the next part; null at the end.")


class ProblemItem(BaseModel):
    """One fault in a request."""

    pointer: str | None = Field(None, description="JSON pointer into the body.", examples=["/urls/3"])
    parameter: str | None = Field(None, description="Name of the query or path parameter.", examples=["limit"])
    detail: str


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(examples=["urn:problem-type:urlhealth:invalid-urls"])
    title: str = Field(examples=["Some URLs cannot be probed"])
    status: int = Field(examples=[422])
    detail: str = Field(description="What is wrong, and what to do.")
    instance: str = Field(description="Path of the request.", examples=["/api/v1/tasks"])
    errors: list[ProblemItem] = Field([], description="The faults one by one, where there are several.")


class Options(RequestBody):
    """How to probe. A probe whose options differ from the defaults feeds no features."""

    connect_timeout_s: float = Field(
        DEFAULT_OPTIONS.connect_timeout_s, gt=0, le=120, description="Time for DNS, TCP and TLS together."
    )
    timeout_s: float = Field(DEFAULT_OPTIONS.timeout_s, gt=0, le=300, description="Time for everything.")
    max_redirects: int = Field(DEFAULT_OPTIONS.max_redirects, ge=0, le=50, description="Redirects to follow.")
    max_bytes: int = Field(
        DEFAULT_OPTIONS.max_bytes, ge=1, le=1 << 30, description="Body bytes to read before it is `too_large`."
    )
    verify_tls: bool = Field(DEFAULT_OPTIONS.verify_tls, description="Whether certificates are checked.")

    def to_domain(self) -> words.ProbeOptions:
        """The options as the platform knows them."""
        return words.ProbeOptions(**self.model_dump())

    @classmethod
    def of(cls, options: words.ProbeOptions) -> Self:
        """The inverse of :meth:`to_domain`."""
        return cls.model_validate(options, from_attributes=True)


class TaskRequest(RequestBody):
    """URLs to probe once."""

    urls: Urls
    options: Options = Field(default_factory=Options)


class TaskCreated(BaseModel):
    """A task that is stored and will be carried out, whatever happens to this server."""

    task_id: str
    status: TaskStatus
    total: int = Field(description="URLs as sent.")


class Task(TaskCreated):
    """A task and how far it has come."""

    done: int = Field(description="URLs that have their result.")
    outcomes: dict[str, int] = Field(
        description="How many of them had each outcome.", examples=[{"ok": 41, "timeout": 1}]
    )
    workers: list[str] = Field(description="Ids of the workers that probed for it.")
    options: Options
    created_at: Time
    started_at: Time | None
    finished_at: Time | None

    @classmethod
    def of(cls, task: words.CrawlTask) -> Self:
        """The task as a reply."""
        return cls(
            task_id=task.task_id,
            status=task.status,
            total=task.total,
            done=task.done,
            outcomes=task.outcomes,
            workers=list(task.workers),
            options=Options.of(task.options),
            created_at=rfc3339(task.created_ms),
            started_at=_rfc3339_or_none(task.started_ms),
            finished_at=_rfc3339_or_none(task.finished_ms),
        )


class TaskResult(BaseModel):
    """One URL of a task. While its probe is waited for, everything but `position` and `url` is null."""

    position: int = Field(description="Place in the list as it was sent, from 0.")
    url: Url
    target: Target | None = None
    timestamp: Time | None = Field(None, description="When the probe began.")
    outcome: Outcome | None = Field(None, description="What was found; null while the probe is waited for.")
    status_code: int | None = Field(None, description="HTTP status of the last answer.")
    dns_ms: float | None = Field(None, description="Time until the name was resolved; null if not reached, as below.")
    connect_ms: float | None = Field(None, description="Time for the TCP connection.")
    tls_ms: float | None = Field(None, description="Time for the TLS handshake.")
    first_byte_ms: float | None = Field(None, description="Time from the request until the answer's first byte.")
    total_ms: float | None = Field(None, description="Time for everything, redirects included.")
    size_bytes: int | None = Field(None, description="Body bytes read.")
    redirects: int | None = Field(None, description="Redirects followed.")
    final_url: str | None = Field(None, description="Where the answer came from, if not from the URL itself.")
    address: str | None = Field(None, description="IP address that answered.")
    http_version: str | None = Field(None, examples=["2"])
    cert_expires_at: Time | None = None
    error: str | None = Field(None, description="What went wrong, in words.")

    @classmethod
    def of(cls, item: words.TaskResult) -> Self:
        """The result as a reply."""
        found = item.result
        if found is None:
            return cls(position=item.position, url=item.sent_url)
        return cls(
            position=item.position,
            url=item.sent_url,
            target=found.target,
            timestamp=rfc3339(found.ts_ms),
            outcome=found.outcome,
            status_code=found.status_code,
            dns_ms=found.dns_ms,
            connect_ms=found.connect_ms,
            tls_ms=found.tls_ms,
            first_byte_ms=found.first_byte_ms,
            total_ms=found.total_ms,
            size_bytes=found.size_bytes,
            redirects=found.redirects,
            final_url=found.final_url,
            address=found.address,
            http_version=found.http_version,
            cert_expires_at=_rfc3339_or_none(found.cert_expires_ms),
            error=found.error,
        )


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


class FeaturesRequest(RequestBody):
    """URLs whose features are wanted."""

    urls: FewUrls


class Known(BaseModel):
    """What every item says about the knowledge that it rests on."""

    url: Url
    target: Target
    status: Freshness = Field(
        description="`fresh`; `stale` if the newest verdict is too old to say how it is now; `missing` if never probed."
    )
    age_s: float | None = Field(description="Age of the newest probe.")
    observed_at: Time | None = Field(description="When the newest probe was made.")


class FeaturesItem(Known):
    """The features of one URL, now."""

    features: dict[str, float | None] | None = Field(
        description="By name, null where unknown; null as a whole for a URL never seen."
    )

    @classmethod
    def of(cls, vector: words.FeatureVector) -> Self:
        """The vector as a reply."""
        return cls(
            url=vector.sent_url,
            target=vector.target,
            status=vector.status,
            age_s=vector.age_s,
            observed_at=_rfc3339_or_none(vector.observed_ms),
            # NaN is "unknown" in a vector, and null in JSON.
            features=None
            if vector.values is None
            else {name: value if value == value else None for name, value in vector.values.items()},
        )


class Features(BaseModel):
    """One item a URL, in the order in which they were sent."""

    items: list[FeaturesItem]


class PredictionsRequest(RequestBody):
    """URLs whose forecast is wanted."""

    urls: FewUrls
    horizons: Annotated[list[Horizon], Field(min_length=1, max_length=3)] = ["24h"]
    explain: bool = Field(False, description="Whether to give reasons.")


class Reason(BaseModel):
    """A feature that moved a prediction."""

    feature: str
    value: float | None = Field(description="Null where unknown.")
    contribution: float = Field(description="By how much it moved the log-odds.")
    text: str


class PredictionsItem(Known):
    """The forecast for one URL and one horizon."""

    horizon: Horizon
    probability: float | None = Field(
        description="Of being seen failing at any time within the horizon; null for a URL never seen."
    )
    probability_at_end: float | None = Field(description="Of failing at the horizon's end.")
    health: Health = Field(description="What the newest verdict said; `unknown` if that is too old.")
    model: str
    model_version: str
    reasons: list[Reason] = Field(description="Most moving first; empty unless asked for.")

    @classmethod
    def of(cls, prediction: words.Prediction) -> Self:
        """The prediction as a reply."""
        return cls(
            url=prediction.sent_url,
            target=prediction.target,
            horizon=prediction.horizon,
            probability=prediction.probability,
            probability_at_end=prediction.probability_at_end,
            status=prediction.status,
            health=prediction.health,
            age_s=prediction.age_s,
            observed_at=_rfc3339_or_none(prediction.observed_ms),
            model=prediction.model,
            model_version=prediction.model_version,
            reasons=[
                Reason(
                    feature=reason.feature,
                    value=reason.value if reason.value == reason.value else None,
                    contribution=reason.contribution,
                    text=reason.text,
                )
                for reason in prediction.reasons
            ],
        )


class Predictions(BaseModel):
    """One item a URL and horizon, URLs outermost, in the order in which they were sent."""

    request_id: str = Field(description="Under which the predictions are logged; also the header X-Request-ID.")
    items: list[PredictionsItem]


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
