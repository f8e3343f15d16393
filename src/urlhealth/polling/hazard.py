"""How often each target's outages begin and how long they last, estimated from probes that do not see everything.

A probe sees an outage only if it is still there. Of the outages that begin at rate λ in the time δ since the last
probe found the target up, the next probe sees λ·G(δ), with G(δ) = ∫₀^δ S(x) dx and S(x) the share of outages longer
than x. So each up-time δ is counted as exposure G(δ), not δ: onsets seen, by exposure, estimate λ however often the
target was probed (the maximum of a thinned Poisson likelihood). S is a mixture of exponentials, whose shares are
estimated by target in the same way: each kind of outage has its own count and its own exposure, so that short ones,
mostly missed, are not taken for rare; and an outage counts for each kind as far as what was seen of it speaks for that.

The rate is a chain of such estimates, each over a shorter memory and each drawn to the one before it, as a gamma
prior would: (N + a) / (E + a / λ of the longer memory). So a burst shows at once, and fades within hours.

Times are in hours since 1970 UTC, rates per hour.
"""

from array import array
from collections.abc import Sequence
from math import exp, expm1, inf, log
from operator import mul
from struct import Struct
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: Memories of the chain, longest first, and how many onsets' worth each is drawn to the one before it.
HALF_LIVES_H: Final = (inf, 720.0, 168.0, 24.0, 4.0, 0.7)
SHAPES: Final = (0.3, 1.0, 1.0, 1.0, 1.0, 1.0)
#: Onsets per hour of a target about which nothing is known: an outage in ten days.
PRIOR_RATE: Final = 0.004
#: Kinds of outages by mean length, their shares before anything is known, and how many outages' worth those count.
LENGTHS_H: Final = (0.08, 0.3, 1.5, 12.0, 100.0, 1500.0)
LENGTH_SHARES: Final = (0.4, 0.3, 0.15, 0.08, 0.05, 0.02)
LENGTH_SHAPE: Final = 2.0
#: An outage after an up-time shorter than this is a relapse. How many a failing target has per hour, before any is
#: known, and how many relapses' worth that counts.
RELAPSE_H: Final = 1.0
PRIOR_RELAPSE_RATE: Final = 0.002
RELAPSE_SHAPE: Final = 0.3
#: How long the up-time before a relapse usually is: decides which share of them probes see.
USUAL_RELAPSE_UP_H: Final = 0.2
#: A history says nothing beyond this time after a row: its monitor was off.
KNOWN_FOR_H: Final = 48.0

#: What is known to the instant, as a time that is not zero.
_INSTANT_H: Final = 1e-3
_DECAYS: Final = tuple(log(2) / half_life for half_life in HALF_LIVES_H)
_ENDS: Final = tuple(1 / length for length in LENGTHS_H)
#: By memory, then by kind: the rate at which an onset is lost, to its end or to fading memory.
_LOSSES: Final = tuple(tuple(end + decay for end in _ENDS) for decay in _DECAYS)
_LEVELS: Final = len(HALF_LIVES_H)
_KINDS: Final = len(LENGTHS_H)
#: What :meth:`Hazards.dump` writes: a number for the form, then the fields in the order of their making.
_FORM: Final = 1
_DUMPED: Final = Struct(f"<B{2 * _LEVELS + 2 * _KINDS}f4fb3d")


class Hazards:
    """The estimates of many targets, numbered from 0, in about 200 bytes each."""

    def __init__(self) -> None:
        #: Onsets and exposures by target and memory, as of `_as_of_h`.
        self._onsets = array("f")
        self._exposures = array("f")
        self._as_of_h = array("d")
        #: Outages seen to their end and exposures, by target and kind.
        self._lengths = array("f")
        self._length_exposures = array("f")
        self._shares = array("f")
        self._prior = array("f")
        #: Relapses, and hours failing in which a relapse would have been seen.
        self._relapses = array("f")
        self._failing_h = array("f")
        #: 1 failing, 0 up, -1 not known; when it was last found so; when the state began, as far as known.
        self._state = array("b")
        self.seen_h = array("d")
        self._since_h = array("d")
        #: The expected age of the outage at the last probe, for it may be a later one than the first that was seen.
        self._age_h = array("f")
        #: How long before the first probe that saw it the outage may have begun.
        self._before_h = array("f")

    def add(self, t_h: float, *, prior_per_h: float = PRIOR_RATE) -> int:
        """A new target, its number; `prior_per_h` are its onsets per hour as far as somebody else can tell."""
        self._onsets.extend([0.0] * _LEVELS)
        self._exposures.extend([0.0] * _LEVELS)
        self._lengths.extend([0.0] * _KINDS)
        self._length_exposures.extend([0.0] * _KINDS)
        self._shares.extend(LENGTH_SHARES)
        for column in (self._relapses, self._failing_h, self._age_h):
            column.append(0.0)
        self._before_h.append(_INSTANT_H)
        for column in (self._as_of_h, self.seen_h, self._since_h):
            column.append(t_h)
        self._prior.append(prior_per_h)
        self._state.append(-1)
        return len(self._state) - 1

    def dump(self, target: int) -> bytes:
        """All that is known of a target, in 142 bytes."""
        levels = slice(target * _LEVELS, (target + 1) * _LEVELS)
        kinds = slice(target * _KINDS, (target + 1) * _KINDS)
        return _DUMPED.pack(
            _FORM,
            *self._onsets[levels],
            *self._exposures[levels],
            *self._lengths[kinds],
            *self._length_exposures[kinds],
            self._relapses[target],
            self._failing_h[target],
            self._age_h[target],
            self._before_h[target],
            self._state[target],
            self._as_of_h[target],
            self.seen_h[target],
            self._since_h[target],
        )

    def restore(self, target: int, dumped: bytes) -> bool:
        """Put back what :meth:`dump` gave; False, and nothing done, if it is of another version of this program."""
        if len(dumped) != _DUMPED.size or dumped[0] != _FORM:
            return False
        _, *columns = _DUMPED.unpack(dumped)
        levels = slice(target * _LEVELS, (target + 1) * _LEVELS)
        kinds = slice(target * _KINDS, (target + 1) * _KINDS)
        places = ((self._onsets, levels), (self._exposures, levels), (self._lengths, kinds))
        at = 0
        for column, place in (*places, (self._length_exposures, kinds)):
            width = place.stop - place.start
            column[place] = array("f", columns[at : at + width])
            at += width
        (
            self._relapses[target],
            self._failing_h[target],
            self._age_h[target],
            self._before_h[target],
            self._state[target],
            self._as_of_h[target],
            self.seen_h[target],
            self._since_h[target],
        ) = columns[at:]
        self._share(target)
        return True

    def set_back(self, target: int, t_h: float) -> None:
        """The clock was set back: what was known after `t_h` is known as of it."""
        late_h = self.seen_h[target] - t_h
        if late_h > 0:
            for column in (self._as_of_h, self.seen_h, self._since_h):
                column[target] -= late_h

    def foresee(self, target: int, prior_per_h: float) -> None:
        """Another prior: onsets per hour as far as somebody else can tell now."""
        self._prior[target] = prior_per_h

    def failing(self, target: int) -> bool:
        """Whether the last probe found it failing."""
        return self._state[target] == 1

    def learn(self, target: int, t_h: Sequence[float], failing: Sequence[bool], until_h: float) -> None:
        """A past without a missed outage: each state held until the next row, the last one until `until_h`."""
        for at_h, down in zip(t_h, failing, strict=True):
            before, length_h = self._state[target], at_h - self.seen_h[target]
            if before == 0:
                self._count_up(target, at_h, min(length_h, KNOWN_FOR_H), None)
                if down:
                    self._count_onset(target, at_h)
            elif before == 1:
                self._failing_h[target] += min(length_h, KNOWN_FOR_H)
                self._age_h[target] += length_h
                if not down:
                    self._count_length(target, before_h=_INSTANT_H, seen_h=self._age_h[target], after_h=_INSTANT_H)
            self._move(target, at_h, down, age_h=0.0)
        rest_h = until_h - self.seen_h[target]
        if self._state[target] == 0:
            self._count_up(target, until_h, min(rest_h, KNOWN_FOR_H), None)
        elif self._state[target] == 1:
            self._failing_h[target] += min(rest_h, KNOWN_FOR_H)
            self._age_h[target] += rest_h
        self.seen_h[target] = until_h
        self._share(target)

    def observe(self, target: int, t_h: float, failing: bool) -> bool:
        """What a probe found; what happened since the one before is not known. Whether it saw an outage begin."""
        length_h = t_h - self.seen_h[target]
        before, onset = self._state[target], False
        if before == 0:
            self._count_up(target, t_h, length_h, self.length_shares(target))
            if failing:
                onset = True
                self._count_onset(target, t_h)
                self._before_h[target] = max(length_h, _INSTANT_H)
            self._move(target, t_h, failing, age_h=0.5 * min(length_h, LENGTHS_H[1]))
        elif before == 1:
            self._failing_h[target] += min(length_h, USUAL_RELAPSE_UP_H)
            if failing:
                relapsed = self.recovered_within(target, length_h) * -expm1(-self.rate(target, t_h) * length_h / 2)
                self._age_h[target] = (self._age_h[target] + length_h) * (1 - relapsed) + relapsed * length_h / 2
                self.seen_h[target] = t_h
            else:
                seen_h = min(self._age_h[target], self.seen_h[target] - self._since_h[target])
                self._count_length(
                    target, before_h=self._before_h[target], seen_h=seen_h, after_h=max(length_h, _INSTANT_H)
                )
                self._count_up(target, t_h, length_h / 2, self.length_shares(target))
                self._move(target, t_h, failing, age_h=0.0)
        else:
            self._move(target, t_h, failing, age_h=0.0)
        self._share(target)
        return onset

    def rate(self, target: int, t_h: float) -> float:
        """Onsets per hour while up."""
        ago_h = t_h - self._as_of_h[target]
        rate = self._prior[target]
        at = target * _LEVELS
        onsets, exposures = self._onsets, self._exposures
        for level in range(_LEVELS):
            kept = exp(-ago_h * _DECAYS[level])
            shape = SHAPES[level]
            rate = (onsets[at + level] * kept + shape) / (exposures[at + level] * kept + shape / rate)
        return rate

    def all_rates(self, t_h: float) -> Floats:
        """:meth:`rate` of all targets, shape (n,)."""
        ago_h = t_h - np.array(self._as_of_h)
        onsets = np.array(self._onsets, np.float64).reshape(-1, _LEVELS)
        exposures = np.array(self._exposures, np.float64).reshape(-1, _LEVELS)
        rates: Floats = np.array(self._prior, np.float64)
        for level in range(_LEVELS):
            kept, shape = np.exp(-ago_h * _DECAYS[level]), SHAPES[level]
            rates = (onsets[:, level] * kept + shape) / (exposures[:, level] * kept + shape / rates)
        return rates

    def all_length_shares(self) -> Floats:
        """:meth:`length_shares` of all targets, shape (n, kinds)."""
        return np.array(self._shares, np.float64).reshape(-1, _KINDS)

    def all_failing(self) -> npt.NDArray[np.bool_]:
        """:meth:`failing` of all targets, shape (n,)."""
        failing: npt.NDArray[np.bool_] = np.array(self._state) == 1
        return failing

    def relapse_rate(self, target: int) -> float:
        """Outages per hour that follow an up-time too short to be seen, of a target that is thought to be failing."""
        return (self._relapses[target] + RELAPSE_SHAPE) / (self._failing_h[target] + RELAPSE_SHAPE / PRIOR_RELAPSE_RATE)

    def length_shares(self, target: int) -> "array[float]":
        """The share of each kind among the target's outages, those that were missed included."""
        return self._shares[target * _KINDS : (target + 1) * _KINDS]

    def _share(self, target: int) -> None:
        at = target * _KINDS
        seen = self._lengths[at : at + _KINDS]
        rate = (sum(seen) + 0.5) / (self._exposures[target * _LEVELS] + 0.5 / self._prior[target])
        exposures = self._length_exposures
        rates = [
            (seen[kind] + LENGTH_SHAPE * LENGTH_SHARES[kind]) / (exposures[at + kind] + LENGTH_SHAPE / rate)
            for kind in range(_KINDS)
        ]
        total = sum(rates)
        for kind in range(_KINDS):
            self._shares[at + kind] = rates[kind] / total

    def recovered_within(self, target: int, length_h: float) -> float:
        """The probability that a failing target's outage ends within so many hours after the last probe."""
        kept = [exp(-length_h * end) for end in _ENDS]
        return float(1 - sum(map(mul, self.lengths_left(target), kept)))

    def lengths_left(self, target: int) -> list[float]:
        """Shares of the kinds for the outage under way, given its age: its remaining length is of one of them."""
        at, age_h = target * _KINDS, self._age_h[target]
        weights = [
            (self._lengths[at + kind] + LENGTH_SHARES[kind]) * exp(-age_h * _ENDS[kind]) for kind in range(_KINDS)
        ]
        total = sum(weights)
        return [weight / total for weight in weights]

    def _move(self, target: int, t_h: float, failing: bool, *, age_h: float) -> None:
        self.seen_h[target] = t_h
        if self._state[target] != failing:
            self._state[target] = failing
            self._since_h[target] = t_h
            self._age_h[target] = age_h

    def _fade(self, target: int, t_h: float) -> None:
        ago_h = t_h - self._as_of_h[target]
        at = target * _LEVELS
        for level in range(1, _LEVELS):
            kept = exp(-ago_h * _DECAYS[level])
            self._onsets[at + level] *= kept
            self._exposures[at + level] *= kept
        self._as_of_h[target] = t_h

    def _count_up(self, target: int, t_h: float, length_h: float, shares: "array[float] | None") -> None:
        """An up-time that ended at t_h. `shares` of the kinds if outages could be missed in it; None if none was."""
        self._fade(target, t_h)
        at = target * _LEVELS
        for level in range(_LEVELS):
            if shares is None:
                decay = _DECAYS[level]
                gained = -expm1(-length_h * decay) / decay if decay else length_h
            else:
                gained = 0.0
                for share, loss in zip(shares, _LOSSES[level], strict=True):
                    gained -= share * expm1(-length_h * loss) / loss
            self._exposures[at + level] += gained
        at = target * _KINDS
        for kind in range(_KINDS):
            seen_h = length_h if shares is None else -LENGTHS_H[kind] * expm1(-length_h * _ENDS[kind])
            self._length_exposures[at + kind] += seen_h

    def _count_onset(self, target: int, t_h: float) -> None:
        """An outage that was seen to begin; the memories are those of t_h."""
        for level in range(target * _LEVELS, (target + 1) * _LEVELS):
            self._onsets[level] += 1
        if self._onsets[target * _LEVELS] > 1 and t_h - self._since_h[target] < RELAPSE_H:
            self._relapses[target] += 1

    def _count_length(self, target: int, *, before_h: float, seen_h: float, after_h: float) -> None:
        """An outage that ended: to each kind, the probability that it was one of those.

        It was seen for `seen_h`, began at any time in `before_h` before that, and ended at any time in `after_h` after.
        """
        weights = [
            share * length_h * expm1(-before_h * end) * exp(-seen_h * end) * expm1(-after_h * end)
            for share, length_h, end in zip(self.length_shares(target), LENGTHS_H, _ENDS, strict=True)
        ]
        total = sum(weights)
        at = target * _KINDS
        for kind in range(_KINDS):
            self._lengths[at + kind] += weights[kind] / total
