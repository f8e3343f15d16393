"""What a pool's intervals are worth beside equal intervals at the same budget.

An outage of a kind with mean length L is caught by equal intervals δ with the probability p(δ) = L/δ·(1 - exp(-δ/L)),
and found after L·(1 - p(δ)) on average, if one that is missed counts its whole length. P and D are their means over the
kinds, by the target's shares.

- **Estimated**, from what is known now: a target with onsets at rate λ adds λ·P(δ) of its outages with its present
  interval δ, and λ·P(u) at the interval u of the budget.
- **Realised**, from the outages that were found: each stands for 1/P(δ) that there were, δ being the time since the
  probe before, so that equal intervals would have caught P(u)/P(δ) of them. (An inverse-probability, or
  Horvitz-Thompson, estimate.)
"""

from array import array
from dataclasses import dataclass, replace
from math import expm1
from typing import Final

import numpy as np
import numpy.typing as npt

from urlhealth.polling.hazard import LENGTHS_H
from urlhealth.polling.policy import Planner

Floats = npt.NDArray[np.float64]

_LENGTHS: Final = np.array(LENGTHS_H)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """Outages (a number, or a rate per hour), how many of them are caught, and the hours of delay until detection.

    The same beside them for equal intervals at the same budget.
    """

    outages: float = 0.0
    caught: float = 0.0
    uniform_caught: float = 0.0
    delay_h: float = 0.0
    uniform_delay_h: float = 0.0

    @property
    def caught_ratio(self) -> float | None:
        """How many times as many outages are caught; None where there are none."""
        return self.caught / self.uniform_caught if self.uniform_caught else None

    @property
    def delay_ratio(self) -> float | None:
        """The delay as a part of that of equal intervals; None where there is none."""
        return self.delay_h / self.uniform_delay_h if self.uniform_delay_h else None

    def found(self, shares: "array[float]", *, interval_h: float, uniform_h: float) -> "Gain":
        """With one outage more, found so long after the probe before.

        Args:
            shares: of the kinds of the target's outages.
            uniform_h: equal intervals at the same budget.
        """
        caught, delay_h = _judged(shares, interval_h)
        uniform_caught, uniform_delay_h = _judged(shares, uniform_h)
        return replace(
            self,
            outages=self.outages + 1 / caught,
            caught=self.caught + 1,
            uniform_caught=self.uniform_caught + uniform_caught / caught,
            delay_h=self.delay_h + delay_h / caught,
            uniform_delay_h=self.uniform_delay_h + uniform_delay_h / caught,
        )


def estimated(planner: Planner, t_h: float) -> Gain:
    """What the present intervals of the targets that are up gain, per hour, by what is known of them now."""
    planned = planner.planned_per_h()
    targets = np.flatnonzero((planned > 0) & ~planner.hazards.all_failing())
    if not len(targets):
        return Gain()
    rates = planner.hazards.all_rates(t_h)[targets]
    shares = planner.hazards.all_length_shares()[targets]
    uniform_h = np.full(len(targets), 1 / planner.budget_per_url_hour)
    caught, delay_h = _judged_all(shares, 1 / planned[targets])
    uniform_caught, uniform_delay_h = _judged_all(shares, uniform_h)
    return Gain(
        outages=float(rates.sum()),
        caught=float(rates @ caught),
        uniform_caught=float(rates @ uniform_caught),
        delay_h=float(rates @ delay_h),
        uniform_delay_h=float(rates @ uniform_delay_h),
    )


def _judged(shares: "array[float]", interval_h: float) -> tuple[float, float]:
    """P and D of the module's docstring for one target."""
    caught = delay_h = 0.0
    for share, length_h in zip(shares, LENGTHS_H, strict=True):
        kept = -length_h / interval_h * expm1(-interval_h / length_h)
        caught += share * kept
        delay_h += share * length_h * (1 - kept)
    return caught, delay_h


def _judged_all(shares: Floats, interval_h: Floats) -> tuple[Floats, Floats]:
    """The same for n targets: shapes (n, kinds) and (n,), twice (n,)."""
    ratio = interval_h[:, None] / _LENGTHS
    kept = -np.expm1(-ratio) / ratio
    return (shares * kept).sum(axis=1), (shares * _LENGTHS * (1 - kept)).sum(axis=1)
