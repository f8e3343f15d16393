"""What the platform takes and replies: made from its OpenAPI document by `generate.py`. Do not edit.

Replies may have fields and words that this version does not know: the first are left out, the second are strings.
"""

from datetime import UTC, datetime
from typing import Annotated, Literal, Required, TypedDict

from pydantic import BaseModel, PlainSerializer

#: An instant, UTC; in JSON as the platform writes it, with milliseconds.
Time = Annotated[
    datetime,
    PlainSerializer(
        lambda at: at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z", when_used="json"
    ),
]


#: Whether a prediction rests on recent knowledge.
Freshness = Literal["fresh", "stale", "missing"] | str


#: Up, down, or unknown: the three values that states, labels and features are made of.
Health = Literal["up", "down", "unknown"] | str


#: What a probe found: a closed set. The class of an outcome, not its name, decides whether a target is
#: failing.
Outcome = (
    Literal[
        "ok",
        "http_error",
        "blocked",
        "dns",
        "connect",
        "tls",
        "timeout",
        "too_many_redirects",
        "too_large",
        "protocol",
        "condition",
        "refused",
        "self",
    ]
    | str
)


#: What adaptive intervals are best for.
Objective = Literal["delay", "caught", "both"] | str


TaskStatus = Literal["queued", "running", "done", "cancelled"] | str


class Reason(BaseModel):
    """A feature that moved a prediction."""

    feature: str
    #: Null where unknown.
    value: float | None
    #: By how much it moved the log-odds.
    contribution: float
    text: str


class CurrentItem(BaseModel):
    """The forecast that is kept of one target, with its reasons."""

    #: As it was sent.
    url: str
    #: The normalised URL that verdicts and features are kept under.
    target: str
    #: `fresh`; `stale` if the newest verdict is too old to say how it is now; `missing` if never probed.
    status: Freshness
    #: Age of the newest probe.
    age_s: float | None
    #: When the newest probe was made.
    observed_at: Time | None
    horizon: Literal["1h", "6h", "24h"] | str
    #: Of being seen failing at any time within the horizon; null for a URL never seen.
    probability: float | None
    #: Of failing at the horizon's end.
    probability_at_end: float | None
    #: What the newest verdict said; `unknown` if that is too old.
    health: Health
    model: str
    model_version: str
    #: Most moving first; empty unless asked for.
    reasons: list[Reason]
    #: When the forecast was made; `status` and `health` are of then.
    scored_at: Time


class FeaturesItem(BaseModel):
    """The features of one URL, now."""

    #: As it was sent.
    url: str
    #: The normalised URL that verdicts and features are kept under.
    target: str
    #: `fresh`; `stale` if the newest verdict is too old to say how it is now; `missing` if never probed.
    status: Freshness
    #: Age of the newest probe.
    age_s: float | None
    #: When the newest probe was made.
    observed_at: Time | None
    #: By name, null where unknown; null as a whole for a URL never seen.
    features: dict[str, float | None] | None


class Features(BaseModel):
    """One item a URL, in the order in which they were sent."""

    items: list[FeaturesItem]


class Incident(BaseModel):
    """A time in which a URL was seen failing."""

    #: The first failing verdict.
    start: Time
    #: The next good verdict, or when the state was known no longer; null while it lasts.
    end: Time | None
    #: Of the first failing verdict.
    outcome: Outcome
    #: Where that failed: `dns`, `connect`, `tls`, `first_byte`, `body`, or `answer`, which was complete and
    #: said that something is wrong; null where that is not known.
    phase: str | None


class Schedule(BaseModel):
    """Probes where outages are likely, under a budget that all monitors share whose schedules are equal."""

    mode: Literal["adaptive"] | str
    #: Probes per monitor and hour, on average over those that share it.
    budget_per_url_hour: float
    min_interval_s: int = 300
    max_interval_s: int = 43200
    #: Least time until an outage is detected, most outages caught, or both.
    objective: Objective
    #: A name, so that schedules that are otherwise equal share nothing.
    pool: str | None = None


class Options(BaseModel):
    """How to probe. A probe whose options differ from the defaults feeds no features."""

    #: Time for DNS, TCP and TLS together.
    connect_timeout_s: float = 5.0
    #: Time for everything.
    timeout_s: float = 10.0
    #: Redirects to follow before it is `too_many_redirects`.
    max_redirects: int = 10
    #: Body bytes to read before it is `too_large`.
    max_bytes: int = 10485760
    #: Whether certificates are checked.
    verify_tls: bool = True
    #: `HEAD` asks for no body.
    method: Literal["GET", "HEAD"] | str = "GET"
    #: Header fields to send. Replies show their names only.
    headers: dict[str, str] = {}
    #: `user:password`. Never sent to another host that a redirect leads to, never shown in a reply.
    basic_auth: str | None = None
    #: As `basic_auth`, for the scheme Bearer.
    bearer_token: str | None = None
    #: URL of a proxy (http, https, socks5, socks5h); never shown in a reply.
    proxy: str | None = None
    #: The addresses of a name to use.
    ip_family: Literal["any", "ipv4", "ipv6"] | str = "any"
    #: `auto` offers 1.1 and 2; `2` and `3` must be what the answer comes by.
    http_version: Literal["auto", "1.1", "2", "3"] | str = "auto"
    #: Statuses that are `ok`; empty: all below 400.
    expected_statuses: list[int] = []
    #: A text that the first MiB of the body must have in it, or it is `condition`.
    body_contains: str | None = None
    #: A regular expression (RE2) that must match there.
    body_regex: str | None = None
    #: A JSONPath that must find something there.
    body_jsonpath: str | None = None
    #: Attempts after a failed one.
    retries: int = 0
    #: Pause before the first of them; each later one is twice as long.
    retry_delay_s: float = 1.0
    #: Whether the site's robots.txt is asked first, and obeyed.
    robots: bool = False


class Maintenance(BaseModel):
    """A time in which the target is worked on, and not probed: from `start` up to before `end`."""

    start: Time
    end: Time
    #: How often it comes again, from `start` on: each 24 or 168 hours, whatever clocks show.
    every: Literal["day", "week"] | str | None = None


class Monitor(BaseModel):
    """A target that is probed again and again."""

    monitor_id: str
    url: str
    name: str | None
    #: The normalised URL that verdicts and features are kept under.
    target: str
    group: str
    #: Time between two probes; of an adaptive schedule, the one planned now.
    interval_s: int
    schedule: Schedule | None
    weight: float
    options: Options
    tags: list[str]
    paused: bool
    maintenance: list[Maintenance]
    created_at: Time
    #: Its next slot, if it is not paused then, or under maintenance.
    next_due_at: Time
    #: Slots in which it was not probed, because nobody could in time.
    skipped: int
    #: False with options of its own and no name: its probes are stored only.
    feeds_features: bool


class MonitorAnswer(BaseModel):
    """What became of one of many new monitors."""

    #: Its place among those that were sent, from 0.
    position: int
    result: Literal["created", "exists", "invalid"] | str
    #: Of the new monitor, or of the one that there is.
    monitor_id: str | None
    #: Why there is no new one.
    detail: str | None


class MonitorAnswers(BaseModel):
    """One answer a monitor, in the order in which they were sent."""

    created: int
    exists: int
    invalid: int
    items: list[MonitorAnswer]


class PredictionsItem(BaseModel):
    """The forecast for one URL and one horizon."""

    #: As it was sent.
    url: str
    #: The normalised URL that verdicts and features are kept under.
    target: str
    #: `fresh`; `stale` if the newest verdict is too old to say how it is now; `missing` if never probed.
    status: Freshness
    #: Age of the newest probe.
    age_s: float | None
    #: When the newest probe was made.
    observed_at: Time | None
    horizon: Literal["1h", "6h", "24h"] | str
    #: Of being seen failing at any time within the horizon; null for a URL never seen.
    probability: float | None
    #: Of failing at the horizon's end.
    probability_at_end: float | None
    #: What the newest verdict said; `unknown` if that is too old.
    health: Health
    model: str
    model_version: str
    #: Most moving first; empty unless asked for.
    reasons: list[Reason]


class Predictions(BaseModel):
    """One item a URL and horizon, URLs outermost, in the order in which they were sent."""

    #: Under which the predictions are logged; also the header X-Request-ID.
    request_id: str
    items: list[PredictionsItem]


class ProblemItem(BaseModel):
    """One fault in a request."""

    #: JSON pointer into the body.
    pointer: str | None = None
    #: Name of the query or path parameter.
    parameter: str | None = None
    detail: str


class Check(BaseModel):
    """Whether one part works."""

    name: str
    ok: bool
    detail: str
    advice: str | None
    #: Whether the platform is not ready without it.
    needed: bool


class Ready(BaseModel):
    """Whether all parts work."""

    status: Literal["ready", "not ready"] | str
    checks: list[Check]


class Task(BaseModel):
    """A task and how far it has come."""

    task_id: str
    status: TaskStatus
    #: URLs as sent.
    total: int
    #: URLs that have their result.
    done: int
    #: How many of them had each outcome.
    outcomes: dict[str, int]
    #: Ids of the workers that probed for it.
    workers: list[str]
    options: Options
    created_at: Time
    started_at: Time | None
    finished_at: Time | None


class TaskCreated(BaseModel):
    """A task that is stored and will be carried out, whatever happens to this server."""

    task_id: str
    status: TaskStatus
    #: URLs as sent.
    total: int


class Attempt(BaseModel):
    """One of several attempts; the fields mean what they mean in `TaskResult`."""

    timestamp: Time
    outcome: Outcome
    status_code: int | None
    dns_ms: float | None
    connect_ms: float | None
    tls_ms: float | None
    first_byte_ms: float | None
    total_ms: float | None
    error: str | None


class TaskResult(BaseModel):
    """One URL of a task. While its probe is waited for, everything but `position` and `url` is null."""

    #: Place in the list as it was sent, from 0.
    position: int
    #: As it was sent.
    url: str
    target: str | None = None
    #: When the probe began.
    timestamp: Time | None = None
    #: What was found; null while the probe is waited for.
    outcome: Outcome | None = None
    #: HTTP status of the last answer.
    status_code: int | None = None
    #: Time until the name was resolved; null if not reached, as below.
    dns_ms: float | None = None
    #: Time for the TCP connection.
    connect_ms: float | None = None
    #: Time for the TLS handshake.
    tls_ms: float | None = None
    #: Time from the request until the answer's first byte.
    first_byte_ms: float | None = None
    #: Time for everything, redirects included.
    total_ms: float | None = None
    #: Body bytes read.
    size_bytes: int | None = None
    #: Redirects followed.
    redirects: int | None = None
    #: Where the answer came from, if not from the URL itself.
    final_url: str | None = None
    #: IP address that answered.
    address: str | None = None
    http_version: str | None = None
    cert_expires_at: Time | None = None
    #: What went wrong, in words.
    error: str | None = None
    #: All attempts in their order, where there was more than one; the result is one of theirs.
    attempts: list[Attempt] | None = None


class HistoryPoint(BaseModel):
    """One step. Durations are those of verdicts that were `ok`, redirects included; null where there were none."""

    start: Time
    #: Verdicts by outcome.
    outcomes: dict[str, int]
    mean_ms: float | None
    #: Median, to within 2.5 %.
    p50_ms: float | None
    #: 95th percentile, to within 2.5 %.
    p95_ms: float | None
    #: Standard deviation.
    deviation_ms: float | None


class UrlHistory(BaseModel):
    """A URL's verdicts from one instant to another, in steps."""

    #: The normalised URL that verdicts and features are kept under.
    target: str
    start: Time
    end: Time
    step_s: int
    #: By time; steps without verdicts are left out.
    points: list[HistoryPoint]


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


class UrlState(BaseModel):
    """What a URL is now, and how much of the time it was up."""

    #: The normalised URL that verdicts and features are kept under.
    target: str
    #: Who runs it: as given, otherwise the registrable domain.
    group: str
    #: `unknown` if the newest verdict is too old to say how it is now.
    state: Health
    #: Since when it is that, as far as is known; null if unknown.
    since: Time | None
    #: Share of the time up to now in which it was up, of that in which its state was known; null if it never
    #: was.
    uptime: dict[str, float | None]
    #: Whether it is up, and its newest verdict was slow for it. Known seconds after the verdict.
    degraded: bool
    #: The newest verdict; null if it was never probed with its own options.
    last: LastProbe | None


class ScheduleDict(TypedDict, total=False):
    """Probes where outages are likely, under a budget that all monitors share whose schedules are equal."""

    mode: Required[Literal["adaptive"]]
    #: Probes per monitor and hour, on average over those that share it.
    budget_per_url_hour: Required[float]
    min_interval_s: int
    max_interval_s: int
    #: Least time until an outage is detected, most outages caught, or both.
    objective: Literal["delay", "caught", "both"]
    #: A name, so that schedules that are otherwise equal share nothing.
    pool: str | None


class OptionsDict(TypedDict, total=False):
    """How to probe. A probe whose options differ from the defaults feeds no features."""

    #: Time for DNS, TCP and TLS together.
    connect_timeout_s: float
    #: Time for everything.
    timeout_s: float
    #: Redirects to follow before it is `too_many_redirects`.
    max_redirects: int
    #: Body bytes to read before it is `too_large`.
    max_bytes: int
    #: Whether certificates are checked.
    verify_tls: bool
    #: `HEAD` asks for no body.
    method: Literal["GET", "HEAD"]
    #: Header fields to send. Replies show their names only.
    headers: dict[str, str]
    #: `user:password`. Never sent to another host that a redirect leads to, never shown in a reply.
    basic_auth: str | None
    #: As `basic_auth`, for the scheme Bearer.
    bearer_token: str | None
    #: URL of a proxy (http, https, socks5, socks5h); never shown in a reply.
    proxy: str | None
    #: The addresses of a name to use.
    ip_family: Literal["any", "ipv4", "ipv6"]
    #: `auto` offers 1.1 and 2; `2` and `3` must be what the answer comes by.
    http_version: Literal["auto", "1.1", "2", "3"]
    #: Statuses that are `ok`; empty: all below 400.
    expected_statuses: list[int]
    #: A text that the first MiB of the body must have in it, or it is `condition`.
    body_contains: str | None
    #: A regular expression (RE2) that must match there.
    body_regex: str | None
    #: A JSONPath that must find something there.
    body_jsonpath: str | None
    #: Attempts after a failed one.
    retries: int
    #: Pause before the first of them; each later one is twice as long.
    retry_delay_s: float
    #: Whether the site's robots.txt is asked first, and obeyed.
    robots: bool


class MaintenanceDict(TypedDict, total=False):
    """A time in which the target is worked on, and not probed: from `start` up to before `end`."""

    start: Required[datetime | str]
    end: Required[datetime | str]
    #: How often it comes again, from `start` on: each 24 or 168 hours, whatever clocks show.
    every: Literal["day", "week"] | None


class MonitorPatch(TypedDict, total=False):
    """What is to become of a monitor. What is not named stays; what is, is replaced as a whole."""

    interval_s: int | None
    schedule: ScheduleDict | None
    weight: float | None
    group: str | None
    options: OptionsDict | None
    tags: list[str] | None
    paused: bool | None
    maintenance: list[MaintenanceDict] | None


class MonitorRequest(TypedDict, total=False):
    """A URL to probe again and again."""

    #: As it was sent.
    url: Required[str]
    interval_s: int | None
    #: Instead of an interval.
    schedule: ScheduleDict | None
    #: What an outage of it counts, beside 1, where the schedule is adaptive.
    weight: float
    #: Makes it a target of its own, with its own options and verdicts, beside others of the URL.
    name: str | None
    group: str | None
    options: OptionsDict
    #: Words to select monitors by.
    tags: list[str]
    #: Whether it is not probed for now.
    paused: bool
    #: Times without probes.
    maintenance: list[MaintenanceDict]
