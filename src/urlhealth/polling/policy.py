"""When to probe which target, under a budget: `Planner` says when, `AdaptivePolicy` also keeps the time.

**The interval.** A probe costs the price c, in hours of delay. With onsets at rate λ, found up at the last probe,
waiting δ costs λ·∫₀^δ∫₀^s S(x) dx ds of undetected failing, plus c, per time δ; that is least where

    λ · ∫₀^δ x·S(x) dx = c        (least delay: for long outages λ·δ²/2 = c, the rate grows with the square root of λ)
    λ · ∫₀^δ x·f(x) dx = c        (most outages caught; f = -S' is the density of their lengths)

with S the share of outages longer than x. Beyond the length of most outages a longer interval loses nothing more, so a
target whose outages are all short is probed fast or hardly at all. Both integrals are closed for a mixture of
exponentials.

**The price** is one number for all targets of the budget: it rises while the planned probes exceed the budget. What
was not spent is kept, and what was overspent is saved again, up to a day's budget and half a per cent of all so far, so
that a burst anywhere gets probes that quiet hours did not need.

**Failing targets** are probed for the outage that may follow unseen: λ is then the rate of relapses, and of an end
that is followed by a new outage. **New targets** have the prior's hazard, which is higher than that of one which is
known to be quiet: they are explored. **Groups**: an outage raises the hazard of the group's others for some minutes.

A probe costs the same, whatever the number of targets: plans stand on a timer wheel of whole seconds, or, for the
monitors of the platform, in their rows (`crawl/adaptive.py`).
"""

from abc import ABC, abstractmethod
from array import array
from bisect import bisect_left
from collections.abc import Hashable, Sequence
from heapq import heappop, heappush
from math import exp, expm1, log
from operator import mul
from typing import Final

import numpy as np
import numpy.typing as npt

from urlhealth.errors import ConfigurationError
from urlhealth.polling.hazard import LENGTH_SHARES, LENGTHS_H, PRIOR_RATE, Hazards
from urlhealth.vocabulary import Objective

HOUR_MS: Final = 3_600_000
SECOND_MS: Final = 1_000

#: What catching an outage is worth for `Objective.BOTH`, in hours of delay.
CAUGHT_WORTH_H: Final = 1 / 7
#: Plans are made anew at least so often, for the price moves.
REPLAN_H: Final = 2.0
#: How fast the price follows, in logarithm per hour (with more than a probe an hour: per probe of a URL); and how far a
#: full or empty account moves it at once.
PRICE_GAIN_PER_H: Final = 0.2
LOG_PRICE_RANGE: Final = (-30.0, 10.0)
#: The account: at most this share of all that was granted so far, and this time's budget.
ACCOUNT_SHARE: Final = 0.005
ACCOUNT_H: Final = 24.0
#: An outage adds so many onsets per hour to the others of its group, up to so many outages, and fades with this
#: half-life.
GROUP_RATE: Final = 0.1
GROUP_OUTAGES: Final = 3.0
GROUP_HALF_LIFE_H: Final = 0.15
#: Larger groups are no single thing that fails at once, and would cost too much to plan anew.
GROUP_SIZE: Final = 256
#: Weight of relapses beside what the chain says: the two overlap.
RELAPSE_WEIGHT: Final = 0.5

_GRID_POINTS: Final = 33
_GOLDEN: Final = 0.6180339887498949
_BISECTIONS: Final = 24
_NEVER_S: Final = -1


def check_budget(budget_per_url_hour: float, min_interval_s: float, max_interval_s: float) -> None:
    """Raises `ConfigurationError` where no interval within the limits spends the budget."""
    if not 0 < min_interval_s <= max_interval_s:
        raise ConfigurationError(
            f"min_interval_s {min_interval_s:g} and max_interval_s {max_interval_s:g}: the first must be above 0 "
            "and not above the second"
        )
    lowest, highest = 3600 / max_interval_s, 3600 / min_interval_s
    if not lowest <= budget_per_url_hour <= highest:
        raise ConfigurationError(
            f"a budget of {budget_per_url_hour:g} probes per URL and hour cannot be kept with intervals between "
            f"{min_interval_s:g} and {max_interval_s:g} s: choose one between {lowest:.4g} and {highest:.4g}"
        )


class Planner(ABC):
    """Plans probes so that `budget_per_url_hour` times the number of targets, per hour, are where outages are likely.

    Targets are numbers that :meth:`add` gives. Where a plan goes is a subclass's business: :meth:`_enter`.
    """

    def __init__(
        self,
        *,
        budget_per_url_hour: float,
        min_interval_s: float = 300,
        max_interval_s: float = 43_200,
        objective: Objective = Objective.BOTH,
    ) -> None:
        """Raises `ConfigurationError` where no interval within the limits spends the budget."""
        check_budget(budget_per_url_hour, min_interval_s, max_interval_s)
        self.budget_per_url_hour = budget_per_url_hour
        self.min_h, self.max_h = min_interval_s / 3600, max_interval_s / 3600
        self.hazards = Hazards()
        self._grid_h, self._worth = _worth_of_probing(self.min_h, self.max_h, objective)
        #: By point of the grid: the share of outages of each kind that end within half the interval.
        self._gone = tuple(tuple(-expm1(-x / length_h / 2) for length_h in LENGTHS_H) for x in self._grid_h)
        self._weight = array("f")
        #: Probes per hour as planned, by target (0: not active) and in all.
        self._planned = array("f")
        self._planned_sum = 0.0
        #: Targets that have a budget, and how many there are for each that has a plan.
        self._active = 0
        self._scale = 1.0
        self._group = array("l")
        self._groups: dict[Hashable, int] = {}
        self._members: list[list[int]] = []
        self._group_outages: list[float] = []
        self._group_as_of_h: list[float] = []
        self._now_h = 0.0
        #: At first that at which a target about which nothing is known gets just its budget.
        self._log_price = log(PRIOR_RATE * self._worth_of_budget())
        self._price_gain_per_h = PRICE_GAIN_PER_H * max(1.0, budget_per_url_hour)
        #: Probes granted and spent so far.
        self.granted = 0.0
        self.spent = 0

    def add(self, t_ms: int, *, group: Hashable = None, weight: float = 1.0, prior_per_h: float = PRIOR_RATE) -> int:
        """A new target, not planned yet; its number.

        Args:
            group: who runs it; targets of one group may fail together.
            weight: what an outage of it counts, beside 1.
            prior_per_h: onsets per hour that a model foresees, used as far as its own past does not say.
        """
        target = self.hazards.add(t_ms / HOUR_MS, prior_per_h=prior_per_h)
        self._group.append(-1)
        self._weight.append(weight)
        self._planned.append(0.0)
        self._join(target, group)
        return target

    def planned_per_h(self) -> npt.NDArray[np.float64]:
        """Probes per hour as planned, of all targets, shape (n,); 0 for those that are not active."""
        return np.array(self._planned, np.float64)

    def _join(self, target: int, group: Hashable) -> None:
        """Put the target into a group; None is none."""
        if group is None:
            return
        number = self._group[target] = self._groups.setdefault(group, len(self._groups))
        if number == len(self._members):
            self._members.append([])
            self._group_outages.append(0.0)
            self._group_as_of_h.append(0.0)
        self._members[number].append(target)

    def observe(self, target: int, t_ms: int, failing: bool | None) -> bool:
        """What a probe at `t_ms` found; None if neither up nor failing can be said, which teaches nothing.

        Returns whether it saw an outage begin.
        """
        t_h = t_ms / HOUR_MS
        onset = failing is not None and self.hazards.observe(target, t_h, failing)
        if not self._planned[target]:
            return onset
        self._enter(target, t_ms, t_ms + round(self._plan(target, t_h) * HOUR_MS))
        number = self._group[target]
        if onset and number >= 0 and len(self._members[number]) <= GROUP_SIZE:
            self._group_outages[number] = self._outages_of(number, t_h) + 1
            self._group_as_of_h[number] = t_h
            for other in self._members[number]:
                if other != target and self._planned[other] and not self.hazards.failing(other):
                    self._replan(other, t_ms)
        return onset

    def _worth_of_budget(self) -> float:
        point = min(bisect_left(self._grid_h, 1 / self.budget_per_url_hour), len(self._grid_h) - 1)
        return float(sum(map(mul, LENGTH_SHARES, self._worth[point])))

    def _outages_of(self, number: int, t_h: float) -> float:
        return self._group_outages[number] * exp(-(t_h - self._group_as_of_h[number]) * log(2) / GROUP_HALF_LIFE_H)

    @abstractmethod
    def _enter(self, target: int, t_ms: int, due_ms: int) -> None:
        """At `t_ms` the target was planned to be probed at `due_ms`."""

    def _replan(self, target: int, t_ms: int) -> None:
        last_ms = round(self.hazards.seen_h[target] * HOUR_MS)
        self._enter(target, t_ms, last_ms + round(self._plan(target, t_ms / HOUR_MS) * HOUR_MS))

    def _plan(self, target: int, t_h: float) -> float:
        """The best interval in hours at the present price; the target is planned from now on."""
        interval_h = self._best_h(target, t_h)
        self._planned_sum += 1 / interval_h - self._planned[target]
        self._planned[target] = 1 / interval_h
        return interval_h

    def _unplan(self, target: int) -> None:
        """The target is planned no more."""
        self._planned_sum -= self._planned[target]
        self._planned[target] = 0.0
        if (number := self._group[target]) >= 0:
            self._members[number].remove(target)
            self._group[target] = -1

    def _settle(self, targets: Sequence[int], t_h: float) -> None:
        """Find the price at which these targets, taken for all, spend the budget.

        For a start with a known past: from a price that is far off, it would take days to get there.
        """
        low, high = LOG_PRICE_RANGE
        for _ in range(_BISECTIONS):
            self._log_price = (low + high) / 2
            if sum(1 / self._best_h(target, t_h) for target in targets) > len(targets) * self.budget_per_url_hour:
                low = self._log_price
            else:
                high = self._log_price

    def _best_h(self, target: int, t_h: float) -> float:
        hazards = self.hazards
        rate = hazards.rate(target, t_h)
        number = self._group[target]
        if number >= 0 and self._group_outages[number]:
            rate += GROUP_RATE * min(self._outages_of(number, t_h), GROUP_OUTAGES)
        shares = hazards.length_shares(target)
        wanted = exp(self._log_price - self._account()) / self._weight[target]
        grid_h, worth = self._grid_h, self._worth
        if hazards.failing(target):
            relapse_rate = RELAPSE_WEIGHT * hazards.relapse_rate(target)
            left, gone = hazards.lengths_left(target), self._gone

            def reached(point: int) -> float:
                """Hours of delay that a probe saves after the interval at this point of the grid."""
                interval_h = grid_h[point]
                again = relapse_rate + sum(map(mul, left, gone[point])) * min(rate, 2 / interval_h)
                return float(again * sum(map(mul, shares, worth[point])))
        else:

            def reached(point: int) -> float:
                return float(rate * sum(map(mul, shares, worth[point])))

        point = bisect_left(range(len(grid_h)), wanted, key=reached)
        if point == 0:
            return self.min_h
        if point == len(grid_h):
            return self.max_h
        below, above = reached(point - 1), reached(point)
        part = log(wanted / below) / log(above / below) if above > below > 0 else 1.0
        return float(grid_h[point - 1] * (grid_h[point] / grid_h[point - 1]) ** part)

    def _account(self) -> float:
        """How full the account is, from -1 to 1."""
        return max(-1.0, min(1.0, (self.granted - self.spent) / self._room()))

    def _room(self) -> float:
        """What the account holds when it is full, in probes."""
        return max(1.0, min(ACCOUNT_SHARE * self.granted, ACCOUNT_H * self._active * self.budget_per_url_hour))

    def _advance(self, t_ms: int) -> None:
        """Grant the budget of the time since the last call, and move the price."""
        passed_h = t_ms / HOUR_MS - self._now_h
        self._now_h = t_ms / HOUR_MS
        if not self._active or passed_h <= 0:
            return
        grant_per_h = self._active * self.budget_per_url_hour
        self.granted += grant_per_h * passed_h
        aim_per_h = grant_per_h * max(0.05, 1 + self._account())
        excess = max(-1.0, min(1.0, log((self._planned_sum * self._scale + 1e-9) / aim_per_h)))
        low, high = LOG_PRICE_RANGE
        self._log_price = max(low, min(high, self._log_price + min(1.0, self._price_gain_per_h * passed_h) * excess))


class AdaptivePolicy(Planner):
    """A planner with a timer wheel.

    The caller probes what :meth:`due` returns, when politeness allows, and reports each result with :meth:`observe`;
    times must not go back.
    """

    def __init__(
        self,
        *,
        budget_per_url_hour: float,
        min_interval_s: float = 300,
        max_interval_s: float = 43_200,
        objective: Objective = Objective.BOTH,
    ) -> None:
        super().__init__(
            budget_per_url_hour=budget_per_url_hour,
            min_interval_s=min_interval_s,
            max_interval_s=max_interval_s,
            objective=objective,
        )
        #: The wheel: numbers by second, the seconds as a heap; a number counts only in the second of `_entry_s`.
        self._wheel: dict[int, array[int]] = {}
        self._seconds: list[int] = []
        self._entry_s = array("q")
        self._due_ms = array("q")

    def start(self, target: int, t_ms: int) -> None:
        """Probe the target from now on; the first time within one interval, spread by its number."""
        self._advance(t_ms)
        self._active += 1
        interval_h = self._plan(target, self._now_h)
        self._enter(target, t_ms, t_ms + int(interval_h * HOUR_MS * (target * _GOLDEN % 1)))

    def stop(self, target: int, t_ms: int) -> None:
        """Probe the target no more."""
        self._advance(t_ms)
        self._active -= 1
        self._unplan(target)
        self._entry_s[target] = _NEVER_S

    def next_ms(self) -> int | None:
        """The earliest instant at which :meth:`due` has something to do; None if there is no active target."""
        return self._seconds[0] * SECOND_MS if self._seconds else None

    def due(self, t_ms: int, limit: int | None = None) -> list[int]:
        """Up to `limit` targets to probe now. One that is never observed is due again after the minimal interval."""
        self._advance(t_ms)
        found: list[int] = []
        while self._seconds and self._seconds[0] * SECOND_MS <= t_ms and (limit is None or len(found) < limit):
            second = self._seconds[0]
            entries = self._wheel[second]
            while entries and (limit is None or len(found) < limit):
                target = entries.pop()
                if self._entry_s[target] != second:
                    continue
                if self._due_ms[target] > t_ms:  # A plan made under an older price.
                    self._replan(target, t_ms)
                if self._due_ms[target] <= t_ms:
                    found.append(target)
                    self._enter(target, t_ms, t_ms + round(self.min_h * HOUR_MS))
            if not entries:
                del self._wheel[second]
                heappop(self._seconds)
        self.spent += len(found)
        return found

    def _enter(self, target: int, t_ms: int, due_ms: int) -> None:
        """Put the target on the wheel, for when it is due or to be planned anew, whichever is first."""
        while len(self._entry_s) <= target:
            self._entry_s.append(_NEVER_S)
            self._due_ms.append(0)
        self._due_ms[target] = due_ms
        at_ms = max(t_ms, min(due_ms, t_ms + int(REPLAN_H * HOUR_MS)))
        second = -(-at_ms // SECOND_MS)
        self._entry_s[target] = second
        entries = self._wheel.get(second)
        if entries is None:
            self._wheel[second] = array("l", [target])
            heappush(self._seconds, second)
        else:
            entries.append(target)


def _worth_of_probing(
    min_h: float, max_h: float, objective: Objective
) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
    """A grid of intervals in hours, and the integral of this module's docstring by point and kind of outage."""
    ratio = (max_h / min_h) ** (1 / (_GRID_POINTS - 1))
    grid_h = tuple(min_h * ratio**point for point in range(_GRID_POINTS))
    by_delay = 0.0 if objective is Objective.CAUGHT else 1.0
    by_caught_h = {Objective.DELAY: 0.0, Objective.CAUGHT: 1.0, Objective.BOTH: CAUGHT_WORTH_H}[objective]
    worth = tuple(
        tuple(
            (by_delay * length_h + by_caught_h) * length_h * (1 - exp(-x / length_h) * (1 + x / length_h))
            for length_h in LENGTHS_H
        )
        for x in grid_h
    )
    return grid_h, worth
