"""When a host may be asked: how many probes at once, how many a second, and not while it wants to be left alone."""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import count
from typing import Final, Generic, TypeVar

#: Longest that a host is left alone after an answer that asks for it, whatever it says.
LONGEST_PAUSE_S: Final = 60.0
#: Pause after the first refusal without `Retry-After`; each further one in a row doubles it.
_FIRST_PAUSE_S: Final = 1.0

Item = TypeVar("Item")


class Turn(Enum):
    """What is to become of a probe now."""

    GO = auto()
    #: It was kept, and comes back when it may go.
    WAIT = auto()
    #: The host has refused everything for longer than a probe waits, and another one is waiting to find out.
    GIVE_UP = auto()


@dataclass(slots=True)
class _Pace:
    """A host that has to be left alone until some time."""

    not_before_s: float
    #: Refusals in a row, and the time of the first.
    refusals: int = 0
    since_s: float = 0.0


class Politeness(Generic[Item]):
    """Keeps the probes that have to wait for their host. Times are seconds of any one clock that never goes back.

    A host is remembered only while something of it is under way, waits, or is to be left alone.
    """

    def __init__(self, *, concurrency_per_host: int, rate_per_host: float = 0.0) -> None:
        """`concurrency_per_host`: probes at once; `rate_per_host`: probes begun in a second, 0 for any number."""
        self._concurrency = concurrency_per_host
        self._interval_s = 1 / rate_per_host if rate_per_host else 0.0
        self._busy: dict[str, int] = {}
        self._held: dict[str, deque[Item]] = {}
        self._paces: dict[str, _Pace] = {}
        #: Time, a tie-break, host: for each pace at least one that is not later.
        self._timer: list[tuple[float, int, str]] = []
        self._tie = count()

    def begin(self, host: str, item: Item, now_s: float) -> Turn:
        """Whether a probe of the host may go now; if so, `end` has to follow."""
        busy = self._busy.get(host, 0)
        pace = self._paces.get(host) if self._paces else None
        if busy >= self._concurrency or (pace is not None and now_s < pace.not_before_s):
            held = self._held.get(host)
            if held and pace is not None and pace.refusals and now_s - pace.since_s > LONGEST_PAUSE_S:
                return Turn.GIVE_UP
            self._held.setdefault(host, deque()).append(item)
            return Turn.WAIT
        self._busy[host] = busy + 1
        if self._interval_s:
            self._pause(host, now_s + self._interval_s)
        return Turn.GO

    def end(self, host: str, now_s: float) -> Sequence[Item]:
        """A probe of the host has ended; returns those that may be begun now."""
        busy = self._busy[host] - 1
        if busy:
            self._busy[host] = busy
        else:
            del self._busy[host]
        pace = self._paces.get(host) if self._paces else None
        if pace is not None:
            if now_s < pace.not_before_s:
                return ()
            if not busy and host not in self._held:
                del self._paces[host]
        return self._take(host, pace) if host in self._held else ()

    def refused(self, host: str, retry_after_s: float, now_s: float) -> list[Item]:
        """The host answered that it wants to be left alone, for `retry_after_s` or (0) for as long as we think right.

        Returns:
            The waiting probes to give up, for it has said nothing else for longer than a probe waits.
        """
        pace = self._paces.get(host)
        refusals = pace.refusals if pace else 0
        since_s = pace.since_s if pace and refusals else now_s
        pause_s = min(retry_after_s or _FIRST_PAUSE_S * 2 ** min(refusals, 16), LONGEST_PAUSE_S)
        pace = self._pause(host, now_s + pause_s)
        pace.refusals, pace.since_s = refusals + 1, since_s
        held = self._held.get(host)
        if not held or now_s - since_s <= LONGEST_PAUSE_S:
            return []
        first = held.popleft()
        given_up = list(held)
        self._held[host] = deque([first])
        return given_up

    def welcomed(self, host: str) -> None:
        """The host answered: earlier refusals no longer count."""
        if self._paces and (pace := self._paces.get(host)) is not None:
            pace.refusals = 0

    def due(self, now_s: float) -> list[Item]:
        """The probes whose host need no longer be left alone."""
        ready: list[Item] = []
        while self._timer and self._timer[0][0] <= now_s:
            _, _, host = heapq.heappop(self._timer)
            pace = self._paces.get(host)
            if pace is None or pace.not_before_s > now_s:
                continue
            if host in self._held:
                ready += self._take(host, pace)
            elif host not in self._busy:
                del self._paces[host]
        return ready

    @property
    def next_due_s(self) -> float | None:
        """When `due` will have something to say."""
        return self._timer[0][0] if self._timer else None

    def release(self, now_s: float) -> list[Item]:
        """All waiting probes, which are no longer kept here, for someone to choose which of them to begin anew."""
        released = [item for held in self._held.values() for item in held]
        self._held.clear()
        self._paces = {h: pace for h, pace in self._paces.items() if pace.not_before_s > now_s or h in self._busy}
        return released

    def _take(self, host: str, pace: _Pace | None) -> list[Item]:
        """As many waiting probes as there is room for; after a refusal, and where the rate is limited, one."""
        held = self._held[host]
        room = self._concurrency - self._busy.get(host, 0)
        if self._interval_s or (pace is not None and pace.refusals):
            room = min(room, 1)
        taken = [held.popleft() for _ in range(min(room, len(held)))]
        if not held:
            del self._held[host]
        return taken

    def _pause(self, host: str, until_s: float) -> _Pace:
        pace = self._paces.get(host)
        if pace is None:
            pace = self._paces[host] = _Pace(until_s)
        elif pace.not_before_s >= until_s:
            return pace
        pace.not_before_s = until_s
        heapq.heappush(self._timer, (until_s, next(self._tie), host))
        return pace
