"""Whose fault it is that many hosts cannot be reached at once: theirs, or our own network's. A canary decides."""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from urlhealth.vocabulary import Outcome, Probed, ProbeResult

#: How far back one looks for who could be reached and who could not.
_WINDOW_S: Final = 30.0
#: So many unrelated groups of hosts that cannot be reached are suspicious, if no more than those could be.
_MANY: Final = 3
#: How long a failure is held back for others to come that would make it suspicious.
_HOLD_S: Final = 1.0
#: For so long the canary's word is taken.
_TRUST_S: Final = 5.0


def unreachable(result: ProbeResult) -> bool:
    """Whether the probe failed at network level: the host was not spoken to."""
    if result.outcome is Outcome.TIMEOUT:
        return result.connect_ms is None
    return result.outcome in (Outcome.DNS, Outcome.CONNECT)


class OwnNetwork:
    """Holds results back while it is in doubt, and calls them `self` where our own network was out.

    Times are seconds of any one clock that never goes back. Whoever uses it probes the canary when `wants_canary` says
    so, tells `canary` what came of it, and calls `due` at `next_due_s`.
    """

    def __init__(self) -> None:
        self._reached: OrderedDict[str, float] = OrderedDict()
        self._failed: OrderedDict[str, float] = OrderedDict()
        self._doubtful: deque[tuple[float, Probed]] = deque()
        self._asking = False
        self._trusted_until_s = float("-inf")
        #: What the canary met, while our network is out.
        self._outage: str | None = None

    def judge(self, probed: Probed, now_s: float) -> Sequence[Probed]:
        """The results that may be delivered now that this one is there."""
        group, result = probed.request.target.group, probed.result
        if not unreachable(result):
            if result.status_code is not None:
                _note(self._reached, group, now_s)
            return (probed,)
        _note(self._failed, group, now_s)
        if now_s < self._trusted_until_s:
            return (probed if self._outage is None else self._own(probed),)
        self._doubtful.append((now_s + _HOLD_S, probed))
        return ()

    def wants_canary(self, now_s: float) -> bool:
        """Whether the canary is to be probed now; says so once for each time."""
        if self._asking or not self._doubtful:
            return False
        _forget(self._reached, now_s - _WINDOW_S)
        _forget(self._failed, now_s - _WINDOW_S)
        self._asking = len(self._failed) >= max(_MANY, len(self._reached))
        return self._asking

    def canary(self, result: ProbeResult, now_s: float) -> list[Probed]:
        """What the probe of the canary found; returns the results that this decides."""
        self._asking = False
        self._trusted_until_s = now_s + _TRUST_S
        self._outage = f"{result.target} could not be reached either" if unreachable(result) else None
        return self._decide(float("inf"))

    def due(self, now_s: float) -> list[Probed]:
        """The results that were held back for long enough."""
        if self._asking:
            return []
        self._outage = None
        return self._decide(now_s)

    @property
    def next_due_s(self) -> float | None:
        """When `due` will have something to say; None while that is for the canary to say."""
        return self._doubtful[0][0] if self._doubtful and not self._asking else None

    def _decide(self, until_s: float) -> list[Probed]:
        decided: list[Probed] = []
        while self._doubtful and self._doubtful[0][0] <= until_s:
            probed = self._doubtful.popleft()[1]
            decided.append(probed if self._outage is None else self._own(probed))
        return decided

    def _own(self, probed: Probed) -> Probed:
        words = f"our own network was out: {self._outage} ({probed.result.error})"
        return replace(probed, result=replace(probed.result, outcome=Outcome.SELF, error=words))


def _note(seen: OrderedDict[str, float], group: str, now_s: float) -> None:
    seen[group] = now_s
    seen.move_to_end(group)
    _forget(seen, now_s - _WINDOW_S)


def _forget(seen: OrderedDict[str, float], before_s: float) -> None:
    while seen and next(iter(seen.values())) < before_s:
        seen.popitem(last=False)
