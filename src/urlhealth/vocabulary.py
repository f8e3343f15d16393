"""The words of the project, each defined once: targets, probes, outcomes, tasks, monitors, predictions.

Everything here is plain data: frozen, keyword-only, without behaviour beyond what follows from the fields.
Times are integers in milliseconds since 1970 UTC and end in ``_ms``; so do durations in milliseconds. Durations in
seconds end in ``_s``, in hours in ``_h``.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from enum import StrEnum
from itertools import chain, repeat
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Generic,
    Literal,
    Protocol,
    TypeVar,
    dataclass_transform,
    overload,
)

from annotated_types import Interval, Len, MaxLen

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: Whose data it is, until there are accounts.
LOCAL_OWNER: Final = "local"

#: Name of the registered model, and the alias that serving follows.
MODEL_NAME: Final = "url-health"
CHAMPION: Final = "champion"

#: The Feast feature service that training and serving read.
FEATURE_SERVICE: Final = "url_health_v1"

#: Returns the present time in milliseconds since 1970 UTC. Passed in wherever time matters, so tests can choose it.
Clock = Callable[[], int]


def system_clock() -> int:
    """The machine's clock, in milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000


Item = TypeVar("Item")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: type[Item]) -> type[Item]:
    """A dataclass that only the type checker holds frozen: made by the million, and in a third of the time."""
    return dataclass(kw_only=True, slots=True, unsafe_hash=True)(cls)


class Outcome(StrEnum):
    """What a probe found: a closed set. The class of an outcome, not its name, decides whether a target is failing."""

    OK = "ok"
    HTTP_ERROR = "http_error"
    BLOCKED = "blocked"
    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    TOO_LARGE = "too_large"
    PROTOCOL = "protocol"
    CONDITION = "condition"
    REFUSED = "refused"
    SELF = "self"

    @property
    def health(self) -> "Health":
        """Whether this outcome says up, down, or nothing about the target."""
        return _HEALTH[self]

    @property
    def code(self) -> int:
        """The outcome as a small integer, its position in this class: how feature state stores it."""
        return _CODES[self]


class Health(StrEnum):
    """Up, down, or unknown: the three values that states, labels and features are made of."""

    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"


#: ``blocked`` (the site does not want us), ``refused`` (we do not want the address) and ``self`` (our own network was
#: out) say nothing about the target: neither up nor down, and never a label.
_HEALTH: Final = {
    **dict.fromkeys(Outcome, Health.DOWN),
    Outcome.OK: Health.UP,
    Outcome.BLOCKED: Health.UNKNOWN,
    Outcome.REFUSED: Health.UNKNOWN,
    Outcome.SELF: Health.UNKNOWN,
}
_CODES: Final = {outcome: code for code, outcome in enumerate(Outcome)}

#: HTTP statuses by which a site says that it does not want to be asked (by us), rather than that it fails.
BLOCKED_STATUSES: Final = frozenset({401, 403, 429})


class ProbeSource(StrEnum):
    """Where a probe's row came from. Simulated probes are called so wherever they are shown."""

    CRAWL = "crawl"
    IMPORT = "import"
    SIMULATED = "simulated"


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeOptions:
    """How to probe, and what can change a probe's verdict. Only probes with the default options feed features.

    The fields are JSON: `ProbeOptions(**json)` is the inverse of `dataclasses.asdict`. Limits are in the annotations;
    `probing.options.parse_options` checks them.
    """

    #: Time to wait for DNS, TCP and TLS together.
    connect_timeout_s: Annotated[float, Interval(gt=0, le=120)] = 5.0
    #: Time to wait for everything.
    timeout_s: Annotated[float, Interval(gt=0, le=300)] = 10.0
    #: Redirects to follow before the verdict is `too_many_redirects`.
    max_redirects: Annotated[int, Interval(ge=0, le=50)] = 10
    #: Body bytes to read before the verdict is `too_large`.
    max_bytes: Annotated[int, Interval(ge=1, le=1 << 30)] = 10 * 1024 * 1024
    #: Whether the certificate and its name are checked.
    verify_tls: bool = True
    #: `HEAD` asks for no body.
    method: Literal["GET", "HEAD"] = "GET"
    #: Header fields to send, as pairs of name and value.
    headers: Annotated[tuple[tuple[str, str], ...], MaxLen(50)] = field(default=(), repr=False)
    #: "user:password". Like `bearer_token`, never sent to another host that a redirect leads to.
    basic_auth: str | None = field(default=None, repr=False)
    bearer_token: str | None = field(default=None, repr=False)
    #: URL of a proxy: http, https, socks5 or socks5h. It is the proxy's address that the address guard judges then.
    proxy: str | None = field(default=None, repr=False)
    #: The addresses of a name to use.
    ip_family: Literal["any", "ipv4", "ipv6"] = "any"
    #: "auto" offers 1.1 and 2; "2" and "3" must be what the answer comes by.
    http_version: Literal["auto", "1.1", "2", "3"] = "auto"
    #: Statuses that are `ok`; empty: all below 400.
    expected_statuses: Annotated[tuple[Annotated[int, Interval(ge=200, le=599)], ...], MaxLen(100)] = ()
    #: What the first MiB of the body must have in it: a text, a match (RE2), a node (JSONPath).
    body_contains: Annotated[str, Len(1, 10_000)] | None = None
    body_regex: Annotated[str, Len(1, 1_000)] | None = None
    body_jsonpath: Annotated[str, Len(1, 1_000)] | None = None
    #: Attempts after a failed one, each after a pause twice as long as the one before.
    retries: Annotated[int, Interval(ge=0, le=10)] = 0
    retry_delay_s: Annotated[float, Interval(gt=0, le=60)] = 1.0
    #: Whether the site's robots.txt is asked first, and obeyed.
    robots: bool = False

    def __post_init__(self) -> None:
        """What JSON made a list of is a tuple again."""
        object.__setattr__(self, "headers", tuple((name, value) for name, value in self.headers))
        object.__setattr__(self, "expected_statuses", tuple(self.expected_statuses))


DEFAULT_OPTIONS: Final = ProbeOptions()


@record
class Target:
    """What is probed and judged: a normalised URL, or a named monitor of one with options of its own."""

    #: Normalised as browsers do (WHATWG), without fragment.
    url: str
    #: Host name or address, lower case, as in the URL; with the port where it is not the scheme's own.
    host: str
    #: Who runs it: given with a monitor or a history, otherwise the registrable domain.
    group: str
    #: Name of the monitor, where it has options of its own.
    name: str | None = None

    @property
    def key(self) -> str:
        """The value of the Feast entity `url`."""
        return self.url if self.name is None else f"{self.url}#{self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One of several attempts of a probe; the fields mean what they mean in `ProbeResult`."""

    ts_ms: int
    outcome: Outcome
    status_code: int | None = None
    dns_ms: float | None = None
    connect_ms: float | None = None
    tls_ms: float | None = None
    first_byte_ms: float | None = None
    total_ms: float | None = None
    error: str | None = None


@record
class ProbeResult:
    """What one probe of one target found. A failed probe is a value like any other, never an exception."""

    #: Key of the target.
    target: str
    #: When the probe began.
    ts_ms: int
    outcome: Outcome
    #: HTTP status of the last answer; None without one.
    status_code: int | None = None
    #: Time until the name was resolved; None when that was not reached (so with all phases). Each phase is a duration
    #: of its own, not a time since the start.
    dns_ms: float | None = None
    #: Time for the TCP connection.
    connect_ms: float | None = None
    #: Time for the TLS handshake.
    tls_ms: float | None = None
    #: Time from the request sent until the first byte of the answer.
    first_byte_ms: float | None = None
    #: Time for everything, redirects included.
    total_ms: float | None = None
    #: Body bytes read.
    size_bytes: int = 0
    #: Redirects followed.
    redirects: int = 0
    #: Where the answer came from, if not from the target's own URL.
    final_url: str | None = None
    #: IP address that answered.
    address: str | None = None
    #: "1.0", "1.1", "2" or "3".
    http_version: str | None = None
    #: When the server's certificate expires.
    cert_expires_ms: int | None = None
    #: What went wrong, in words; None for `ok`.
    error: str | None = None
    #: All attempts in their order, where there was more than one; the result is that of one of them.
    attempts: tuple[Attempt, ...] = ()


@record
class ProbeRequest:
    """One target to probe, with what is needed to file the result under what asked for it."""

    target: Target
    #: The target's number in the store that asks; 0 where none does.
    target_id: int = 0
    options: ProbeOptions = DEFAULT_OPTIONS
    owner: str = LOCAL_OWNER
    task_id: str | None = None
    monitor_id: str | None = None
    #: The slot of the monitor that it is for: it is not begun before.
    due_ms: int | None = None
    #: Where it is to be probed from; None for anywhere.
    region: str | None = None


@record
class Probed:
    """A request and what came of it."""

    request: ProbeRequest
    result: ProbeResult
    #: Who did the work; None: the dispatcher's own process.
    worker_id: str | None = None


class Dispatcher(Protocol):
    """Takes probe requests and gives back results in batches: the engine in this process, or a queue of workers."""

    @property
    def worker_id(self) -> str:
        """Who does the work, for `CrawlTask.workers`."""

    @property
    def capacity(self) -> int:
        """How many more requests it can take now."""

    @property
    def failed(self) -> bool:
        """Whether it takes and gives nothing any more, and another one has to be made."""

    def submit(self, requests: Sequence[ProbeRequest]) -> None:
        """Take requests; returns at once."""

    def results(self, timeout_s: float, *, at_least: int = 1) -> list[Probed]:
        """All that is finished; waits up to `timeout_s` for `at_least` of them, or until no more are under way."""

    def dropped(self) -> list[ProbeRequest]:
        """Slots of monitors that nobody took in time, since the last call: they get no result."""

    def cancel(self, task_ids: Set[str]) -> None:
        """Drop the requests of these tasks, waiting or under way; returns at once. What is finished still comes."""

    def close(self) -> None:
        """Stop; requests under way are dropped."""


class TaskStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True, slots=True)
class CrawlTask:
    """A set of URLs to probe once, as one caller asked for it."""

    task_id: str
    owner: str
    status: TaskStatus
    #: URLs as sent.
    total: int
    #: URLs as sent that have their result.
    done: int
    #: How many of the done URLs had each outcome.
    outcomes: dict[str, int] = field(default_factory=dict)
    #: Ids of the workers that probed for it.
    workers: tuple[str, ...] = ()
    options: ProbeOptions = DEFAULT_OPTIONS
    created_ms: int
    started_ms: int | None = None
    finished_ms: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """One URL of a task: as it was sent, and what its probe found (None while it waits)."""

    position: int
    sent_url: str
    result: ProbeResult | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Maintenance:
    """A time, from `start_ms` up to before `end_ms`, in which a target is worked on, and not probed."""

    start_ms: int
    end_ms: int
    #: Time from one start to the next; None for a window that does not come again.
    every_ms: int | None = None

    def covers(self, ts_ms: int) -> bool:
        """Whether an instant lies in it."""
        since_ms = ts_ms - self.start_ms
        if self.every_ms is not None and since_ms >= 0:
            since_ms %= self.every_ms
        return 0 <= since_ms < self.end_ms - self.start_ms


class Objective(StrEnum):
    """What adaptive intervals are best for."""

    #: Least time until an outage is detected.
    DELAY = "delay"
    #: Most outages caught.
    CAUGHT = "caught"
    BOTH = "both"


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveSchedule:
    """Probes where outages are likely, under a budget. Monitors whose schedules are equal share it: they are a pool."""

    #: Probes per monitor and hour, on average over the pool.
    budget_per_url_hour: float
    min_interval_s: int = 300
    max_interval_s: int = 43_200
    objective: Objective = Objective.BOTH
    #: A name, so that pools that are otherwise equal are two.
    pool: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MonitorSpec:
    """A monitor as somebody wants it: with an interval, or an adaptive schedule."""

    url: str
    interval_s: int | None = None
    schedule: AdaptiveSchedule | None = None
    #: What an outage of it counts, beside 1, where the schedule is adaptive.
    weight: float = 1.0
    #: Makes it a target of its own, beside others of the URL.
    name: str | None = None
    #: None: the one that the target has, or the registrable domain.
    group: str | None = None
    options: ProbeOptions = DEFAULT_OPTIONS
    tags: tuple[str, ...] = ()
    paused: bool = False
    maintenance: tuple[Maintenance, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Monitor:
    """A target that is probed again and again."""

    monitor_id: str
    owner: str
    target: Target
    #: With an adaptive schedule, the one that is planned now.
    interval_s: int
    schedule: AdaptiveSchedule | None = None
    weight: float = 1.0
    options: ProbeOptions = DEFAULT_OPTIONS
    tags: tuple[str, ...] = ()
    paused: bool = False
    maintenance: tuple[Maintenance, ...] = ()
    created_ms: int
    #: When the next probe is due, if it is not paused.
    next_due_ms: int
    #: Slots in which it was not probed, because nobody could in time.
    skipped: int = 0
    #: Probes since it has its adaptive schedule.
    probes: int = 0


#: Begins the tag of a monitor that says where it is to be probed from: `region:eu`.
REGION_TAG: Final = "region:"


def region_of(tags: Sequence[str]) -> str | None:
    """The region that the first such tag of a monitor names, if any."""
    return next((tag.removeprefix(REGION_TAG) for tag in tags if tag.startswith(REGION_TAG)), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Page(Generic[Item]):
    """Part of a list, and the cursor that continues it (None at the end)."""

    items: list[Item]
    next_cursor: str | None


#: Forecast horizons in hours, as requests spell them: "1h", "6h", "24h".
HORIZONS_H: Final = (1, 6, 24)
HORIZONS: Final = {f"{hours}h": hours for hours in HORIZONS_H}

#: What the registered model returns, in this order: for each horizon the probability that the target is seen failing at
#: any time within it, then for each horizon the probability that it is failing at its end.
#: In place of a horizon, of what a model says that does not look ahead: one of your own.
NO_HORIZON: Final = ""
PROBABILITIES: Final = (
    *(f"onset_{hours}h" for hours in HORIZONS_H),
    *(f"failing_{hours}h" for hours in HORIZONS_H),
)


class Freshness(StrEnum):
    """Whether a prediction rests on recent knowledge."""

    FRESH = "fresh"
    #: The newest verdict is older than the platform holds a state for known (`known_for_s`).
    STALE = "stale"
    #: The target was never probed.
    MISSING = "missing"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """One feature that moved a prediction: its value, by how much it moved the log-odds, and a sentence."""

    feature: str
    value: float
    contribution: float
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The forecast for one URL as it was sent, and one horizon. Probabilities are None where nothing is known."""

    sent_url: str
    #: Key of the target.
    target: str
    horizon: str
    #: Of being seen failing at any time within the horizon; 1 for a target that is failing now.
    probability: float | None
    #: Of failing at the horizon's end.
    probability_at_end: float | None
    status: Freshness
    #: What the newest verdict said.
    health: Health
    #: Age of the newest probe.
    age_s: float | None
    #: Where `status` is not missing: when the state was observed.
    observed_ms: int | None
    model: str
    model_version: str
    #: Most moving first; empty unless asked for.
    reasons: tuple[Reason, ...] = ()


_OF_A_ROW: Final = tuple(item.name for item in fields(Prediction) if item.name != "reasons")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Forecasts(Sequence[Prediction]):
    """What one model said of n URLs at one instant: by column, for objects of a class cost more than the model does.

    As a sequence it holds a `Prediction` for each URL and horizon, URLs outermost.
    """

    sent_urls: Sequence[str]
    #: Keys of the targets.
    targets: Sequence[str]
    horizons: Sequence[str]
    status: Sequence[Freshness]
    health: Sequence[Health]
    age_s: Sequence[float | None]
    observed_ms: Sequence[int | None]
    #: float64 (n, len(PROBABILITIES)); NaN where nothing is known. For `NO_HORIZON`, (n, 1).
    probabilities: "npt.NDArray[np.float64]"
    model: str
    model_version: str
    #: By horizon, those of each URL; empty unless asked for.
    reasons: Mapping[str, Sequence[tuple[Reason, ...]]] = field(default_factory=dict)

    def of(self, horizon: str) -> tuple[list[float | None], list[float | None]]:
        """Of each URL, the probability of failing within the horizon, and that of failing at its end."""
        onset, failing = (
            [None if p != p else p for p in self.probabilities[:, PROBABILITIES.index(f"{kind}_{horizon}")].tolist()]
            for kind in ("onset", "failing")
        )
        return onset, failing

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The fields of each prediction except its reasons, in the order of `Prediction`."""
        known = self.status, self.health, self.age_s, self.observed_ms, repeat(self.model), repeat(self.model_version)
        by_horizon = [
            zip(self.sent_urls, self.targets, repeat(horizon), *self.of(horizon), *known, strict=False)
            for horizon in self.horizons
        ]
        return chain.from_iterable(zip(*by_horizon, strict=True))

    def __len__(self) -> int:
        return len(self.sent_urls) * len(self.horizons)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prediction]: ...
    def __getitem__(self, index: int | slice) -> Prediction | list[Prediction]:
        return list(self)[index]

    def __iter__(self) -> Iterator[Prediction]:
        reasons = self.reasons
        for i, row in enumerate(self.rows()):
            of_url, horizon = i // len(self.horizons), row[2]
            of_it = reasons[horizon][of_url] if reasons else ()
            yield Prediction(**dict(zip(_OF_A_ROW, row, strict=True)), reasons=of_it)


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What one request for predictions was answered with, and when: what the prediction log keeps."""

    request_id: str
    owner: str
    ts_ms: int
    forecasts: Forecasts


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureVector:
    """The features of one URL as it was sent, at one instant. `values` is None where nothing is known."""

    sent_url: str
    target: str
    status: Freshness
    age_s: float | None
    observed_ms: int | None
    values: dict[str, float] | None
