"""The sites of the sample web and how they behave: each a pure function of the seed and the time.

So the same behaviour computes a past (`demo/past.py`) and is then lived on by the server (`demo/sample_web.py`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2b
from random import Random
from typing import Final

from urlhealth.vocabulary import BLOCKED_STATUSES, DEFAULT_OPTIONS, Outcome, system_clock

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS


class Kind(StrEnum):
    """What a site is like."""

    #: Never fails.
    STEADY = "steady"
    #: Answers after about a second.
    SLOW = "slow"
    #: Has short outages many times a day.
    FLAPPING = "flapping"
    #: Has an outage at the same hour of each day, one of them on weekdays only.
    DAILY = "daily"
    #: Was well until some days ago, and fails ever more often since.
    DYING = "dying"
    NOT_FOUND = "notfound"
    SERVER_ERROR = "servererror"
    #: Redirects a few times, and then answers.
    REDIRECT = "redirect"
    LOOP = "loop"
    SELF_SIGNED = "selfsigned"
    #: Answers; its certificate is good for a few days only.
    EXPIRING = "expiring"
    HANGING = "hanging"
    RESET = "reset"
    HUGE = "huge"
    #: Sends its body a byte at a time.
    DRIPPING = "dripping"


#: How many sites of each kind.
COUNTS: Final = {
    Kind.STEADY: 20,
    Kind.SLOW: 3,
    Kind.FLAPPING: 12,
    Kind.DAILY: 4,
    Kind.DYING: 4,
    **dict.fromkeys(tuple(Kind)[5:], 2),
}
#: Who runs them: the last label but one of a host.
GROUPS: Final = ("shop", "bank", "news", "docs", "games", "city")


class Act(StrEnum):
    """What a server does with a request."""

    ANSWER = "answer"
    REDIRECT = "redirect"
    HANG = "hang"
    RESET = "reset"
    HUGE = "huge"
    DRIP = "drip"


class Certificate(StrEnum):
    """What an https site shows."""

    TRUSTED = "trusted"
    EXPIRING = "expiring"
    SELF_SIGNED = "selfsigned"


#: How long each certificate is good for, from the anchor on.
GOOD_FOR_MS: Final = {
    Certificate.TRUSTED: 90 * DAY_MS,
    Certificate.EXPIRING: 5 * DAY_MS,
    Certificate.SELF_SIGNED: 90 * DAY_MS,
}
_HOPS_FOR_EVER: Final = 1_000


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """What a site does at an instant."""

    act: Act = Act.ANSWER
    status: int = 200
    #: Time that it thinks before the first byte.
    delay_ms: float = 0.0
    size_bytes: int = 0
    #: Redirects before the answer.
    hops: int = 0

    @property
    def outcome(self) -> Outcome:
        """What a probe with the default options finds, if it gets through TLS."""
        match self.act:
            case Act.HANG | Act.DRIP:
                return Outcome.TIMEOUT
            case Act.RESET:
                return Outcome.CONNECT
            case Act.HUGE:
                return Outcome.TOO_LARGE
            case Act.REDIRECT if self.hops > DEFAULT_OPTIONS.max_redirects:
                return Outcome.TOO_MANY_REDIRECTS
        if self.status < 400:
            return Outcome.OK
        return Outcome.BLOCKED if self.status in BLOCKED_STATUSES else Outcome.HTTP_ERROR


@dataclass(frozen=True, kw_only=True)
class Site:
    """One URL of the sample web, on a host of its own."""

    name: str
    kind: Kind
    group: str
    seed: int
    #: The instant to which a past leads, and from which the server goes on.
    anchor_ms: int
    port: int
    tls_port: int
    certificate: Certificate | None
    #: How it fails, where it does now and then.
    failure: State
    delay_ms: float
    size_bytes: int
    hops: int

    @property
    def host(self) -> str:
        return f"{self.name}.{self.group}.localhost"

    @property
    def url(self) -> str:
        if self.certificate is None:
            return f"http://{self.host}:{self.port}/"
        return f"https://{self.host}:{self.tls_port}/"

    @property
    def cert_expires_ms(self) -> int | None:
        """When its certificate ends, in whole seconds."""
        if self.certificate is None:
            return None
        return (self.anchor_ms + GOOD_FOR_MS[self.certificate]) // 1000 * 1000

    def state_at(self, t_ms: int) -> State:
        """What it does at an instant."""
        fails = _FAILS.get(self.kind)
        if fails is not None and fails(self, t_ms):
            return self.failure
        # A little slower at one time of the day than at the other.
        swing = 1 + 0.3 * math.sin(2 * math.pi * (t_ms / DAY_MS + self.draw("peak")))
        return State(
            act=_ACTS.get(self.kind, Act.ANSWER),
            status=self._status,
            delay_ms=self.delay_ms * swing,
            size_bytes=self.size_bytes,
            hops=self.hops,
        )

    @property
    def _status(self) -> int:
        match self.kind:
            case Kind.NOT_FOUND:
                return 404
            case Kind.SERVER_ERROR:
                return (500, 503)[int(self.draw("status") * 2)]
        return 200

    def draw(self, *labels: str | int) -> float:
        """A number in [0, 1) that depends on the seed, the site and the labels, and on nothing else."""
        return _draw(self.seed, self.name, *labels)


def sites(seed: int, *, anchor_ms: int | None = None, port: int = 8080, tls_port: int = 8443) -> list[Site]:
    """The sites that a seed makes, at least 60. `anchor_ms` divides past and present; None is now."""
    random = Random(seed)
    anchor_ms = system_clock() if anchor_ms is None else anchor_ms
    made: list[Site] = []
    for kind, count in COUNTS.items():
        for number in range(1, count + 1):
            made.append(
                Site(
                    name=f"{kind}-{number:02d}",
                    kind=kind,
                    group=GROUPS[(len(made) + seed) % len(GROUPS)],
                    seed=seed,
                    anchor_ms=anchor_ms,
                    port=port,
                    tls_port=tls_port,
                    certificate=_certificate(kind, number),
                    failure=random.choice(_FAILURES),
                    delay_ms=random.uniform(700, 1500) if kind is Kind.SLOW else random.uniform(3, 40),
                    size_bytes=int(random.lognormvariate(8.5, 1.0)),
                    hops=_HOPS_FOR_EVER if kind is Kind.LOOP else random.randint(2, 4) if kind is Kind.REDIRECT else 0,
                )
            )
    return made


_FAILURES: Final = (
    State(status=503, delay_ms=5, size_bytes=120),
    State(status=500, delay_ms=30, size_bytes=300),
    State(status=502, delay_ms=15, size_bytes=150),
    State(act=Act.RESET),
)
_ACTS: Final = {
    Kind.REDIRECT: Act.REDIRECT,
    Kind.LOOP: Act.REDIRECT,
    Kind.HANGING: Act.HANG,
    Kind.RESET: Act.RESET,
    Kind.HUGE: Act.HUGE,
    Kind.DRIPPING: Act.DRIP,
}


def _certificate(kind: Kind, number: int) -> Certificate | None:
    match kind:
        case Kind.SELF_SIGNED:
            return Certificate.SELF_SIGNED
        case Kind.EXPIRING:
            return Certificate.EXPIRING
        case Kind.STEADY | Kind.SLOW | Kind.FLAPPING | Kind.DAILY if number % 3 == 0:
            return Certificate.TRUSTED
    return None


def _flapping(site: Site, t_ms: int) -> bool:
    """Every three hours most likely one outage, of 15 to 50 minutes, at any time."""
    return _in_outage(
        site, t_ms, slot_ms=3 * HOUR_MS, chance=0.85, shortest_ms=15 * MINUTE_MS, longest_ms=50 * MINUTE_MS
    )


def _daily(site: Site, t_ms: int) -> bool:
    """40 to 90 minutes from the same time on each day, a few minutes earlier or later."""
    day, within_ms = divmod(t_ms, DAY_MS)
    if site.name.endswith("-04") and (day + 3) % 7 >= 5:  # 1970 began on a Thursday.
        return False
    start_ms = (site.draw("start") * 21 + 0.5) * HOUR_MS + site.draw("shift", day) * 10 * MINUTE_MS
    return 0 <= within_ms - start_ms < (40 + 50 * site.draw("length")) * MINUTE_MS


def _dying(site: Site, t_ms: int) -> bool:
    """Well until 8 to 12 days before the anchor; then outages ever more often; a day after at the latest, dead."""
    decline_ms = (8 + 4 * site.draw("decline")) * DAY_MS
    progress = 1 - (site.anchor_ms - t_ms) / decline_ms
    if progress <= 0:
        return False
    if t_ms > site.anchor_ms + (0.5 + 0.5 * site.draw("end")) * DAY_MS:
        return True
    return _in_outage(
        site,
        t_ms,
        slot_ms=2 * HOUR_MS,
        chance=min(0.95, 0.2 + 0.75 * progress),
        shortest_ms=15 * MINUTE_MS,
        longest_ms=60 * MINUTE_MS,
    )


def _in_outage(site: Site, t_ms: int, *, slot_ms: int, chance: float, shortest_ms: int, longest_ms: int) -> bool:
    """Whether an instant lies in its slot's outage: at most one a slot, with this chance, somewhere inside it."""
    slot, within_ms = divmod(t_ms, slot_ms)
    if site.draw("outage", slot) >= chance:
        return False
    length_ms = shortest_ms + (longest_ms - shortest_ms) * site.draw("length", slot)
    start_ms = (slot_ms - length_ms) * site.draw("start", slot)
    return 0 <= within_ms - start_ms < length_ms


#: Only these kinds have a past that changes; a steady site cannot fail, whatever the seed.
_FAILS: Final[dict[Kind, Callable[[Site, int], bool]]] = {
    Kind.FLAPPING: _flapping,
    Kind.DAILY: _daily,
    Kind.DYING: _dying,
}


@lru_cache(maxsize=100_000)
def _draw(*labels: str | int) -> float:
    return int.from_bytes(blake2b(repr(labels).encode(), digest_size=8).digest()) / 2**64
