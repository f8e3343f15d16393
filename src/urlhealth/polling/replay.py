"""A policy replayed on a history: what it would have found, had it chosen when to probe.

Between two rows of a history the state is that of the earlier one. Each series is replayed from its start to its last
row; the policy knows all rows up to the start, and afterwards only the state at the instants that it probes.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from urlhealth.errors import NotEnoughHistory
from urlhealth.polling.policy import HOUR_MS, AdaptivePolicy

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

#: Uniform polling is judged by its mean over so many phases, evenly spread over the interval.
UNIFORM_PHASES: Final = 20
_GOLDEN: Final = 0.6180339887498949


class Policies(StrEnum):
    """What can be replayed."""

    UNIFORM = "uniform"
    ADAPTIVE = "adaptive"


class VerdictRows(Protocol):
    """n rows of a history, ordered by time: strings (object), ms since 1970 UTC, 0 where failing (as in `Verdicts`)."""

    @property
    def target(self) -> npt.NDArray[np.object_]: ...
    @property
    def group(self) -> npt.NDArray[np.object_]: ...
    @property
    def ts_ms(self) -> Ints: ...
    @property
    def health(self) -> npt.NDArray[np.int8]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Series:
    """The true states of one URL, and the part of them that is replayed."""

    url: str
    group: str
    #: Rows in order of time, one an instant.
    ts_ms: Ints
    failing: Bools
    start_ms: int

    @property
    def end_ms(self) -> int:
        """The last row, where the replay ends."""
        return int(self.ts_ms[-1])

    @property
    def past(self) -> int:
        """How many rows the policy knows."""
        return int(np.searchsorted(self.ts_ms, self.start_ms, side="right"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Outages:
    """m outages that began after the start of their series, ordered by series and time."""

    #: Number of the series, first instant failing, first instant not failing (or the last row), shape (m,).
    series: Ints
    begin_ms: Ints
    end_ms: Ints

    @property
    def length_h(self) -> Floats:
        return (self.end_ms - self.begin_ms) / HOUR_MS


@dataclass(frozen=True, kw_only=True, eq=False)
class Probes:
    """p probes in order of time: number of the series, ms since 1970 UTC, and what was found."""

    series: Ints
    ts_ms: Ints
    failing: Bools

    def __len__(self) -> int:
        return len(self.ts_ms)


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What became of each outage, shape (m,): the probability that it was caught, and its mean delay in hours.

    One that was missed counts its whole length as delay.
    """

    caught: Floats
    delay_h: Floats


def series_of(rows: VerdictRows, *, start_ms: int | None) -> list[Series]:
    """The series that are replayed, in the order of their URLs.

    Args:
        start_ms: where the replay starts; a younger series starts at its first row. None: the middle of each series.

    Raises:
        NotEnoughHistory: no series goes on after its start.
    """
    urls, numbers = np.unique(rows.target, return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    bounds = np.searchsorted(numbers[order], np.arange(len(urls) + 1))
    found = []
    for number, url in enumerate(urls):
        at = order[bounds[number] : bounds[number + 1]]
        ts_ms = rows.ts_ms[at]
        first, last = int(ts_ms[0]), int(ts_ms[-1])
        start = (first + last) // 2 if start_ms is None else max(start_ms, first)
        if start < last:
            failing = rows.health[at] == 0
            found.append(
                Series(url=str(url), group=str(rows.group[at[-1]]), ts_ms=ts_ms, failing=failing, start_ms=start)
            )
    if not found:
        raise NotEnoughHistory(
            "nothing to replay: no URL has rows after the start. Choose an earlier --start, or a longer history"
        )
    return found


def outages_of(series: Sequence[Series]) -> Outages:
    """The outages that are to be found: all that begin after the start."""
    columns: list[tuple[Ints, Ints, Ints]] = []
    for number, one in enumerate(series):
        changes = np.flatnonzero(np.diff(one.failing, prepend=not one.failing[0]))
        begins = changes[one.failing[changes] & (one.ts_ms[changes] > one.start_ms)]
        ends = np.append(changes, len(one.ts_ms) - 1)[np.searchsorted(changes, begins) + 1]
        begin_ms, end_ms = one.ts_ms[begins], one.ts_ms[ends]
        lasting = end_ms > begin_ms
        columns.append((np.full(lasting.sum(), number), begin_ms[lasting], end_ms[lasting]))
    series_numbers, begin_ms, end_ms = (np.concatenate(column) for column in zip(*columns, strict=True))
    return Outages(series=series_numbers, begin_ms=begin_ms, end_ms=end_ms)


def budget_of(series: Sequence[Series], budget_per_url_hour: float) -> float:
    """Probes that the replay may use: at each instant the budget is that of the URLs active then."""
    return budget_per_url_hour * sum(one.end_ms - one.start_ms for one in series) / HOUR_MS


def replay_adaptive(series: Sequence[Series], policy: AdaptivePolicy) -> Probes:
    """The probes of a fresh policy."""
    boundaries: list[tuple[int, int, int]] = []
    for number, one in enumerate(series):
        boundaries += [(one.start_ms, 1, number), (one.end_ms, 0, number)]
    boundaries.sort(reverse=True)
    times = [one.ts_ms.tolist() for one in series]
    states = [one.failing.tolist() for one in series]
    number_of: dict[int, int] = {}
    target_of: dict[int, int] = {}
    found: list[tuple[int, int, bool]] = []
    while boundaries:
        boundary_ms, starts, number = boundaries[-1]
        next_ms = policy.next_ms()
        if next_ms is not None and next_ms < boundary_ms:
            for target in policy.due(next_ms):
                probed = number_of[target]
                failing = states[probed][bisect_right(times[probed], next_ms) - 1]
                policy.observe(target, next_ms, failing)
                found.append((probed, next_ms, failing))
            continue
        boundaries.pop()
        if starts:
            one = series[number]
            target = policy.add(int(one.ts_ms[0]), group=one.group)
            number_of[target], target_of[number] = number, target
            past = one.past
            hours = [ms / HOUR_MS for ms in times[number][:past]]
            policy.hazards.learn(target, hours, states[number][:past], boundary_ms / HOUR_MS)
            policy.start(target, boundary_ms)
        else:
            policy.stop(target_of[number], boundary_ms)
    columns = np.array(found, dtype=np.int64).reshape(-1, 3)
    return Probes(series=columns[:, 0], ts_ms=columns[:, 1], failing=columns[:, 2] == 1)


def replay_uniform(series: Sequence[Series], budget_per_url_hour: float) -> Probes:
    """Probes at equal intervals, the phases spread over the URLs."""
    interval_ms = HOUR_MS / budget_per_url_hour
    columns = []
    for number, one in enumerate(series):
        first = one.start_ms + interval_ms * (0.5 + number * _GOLDEN) % interval_ms
        ts_ms = np.arange(first, one.end_ms, interval_ms).astype(np.int64)
        failing = one.failing[np.searchsorted(one.ts_ms, ts_ms, side="right") - 1]
        columns.append((np.full(len(ts_ms), number), ts_ms, failing))
    numbers, ts_ms, failing = (np.concatenate(column) for column in zip(*columns, strict=True))
    order = np.argsort(ts_ms, kind="stable")
    return Probes(series=numbers[order], ts_ms=ts_ms[order], failing=failing[order])


def judge(outages: Outages, probes: Probes) -> Found:
    """What the probes found of the outages."""
    order = np.lexsort((probes.ts_ms, probes.series))
    by_series, ts_ms = probes.series[order], probes.ts_ms[order]
    # One axis for all series, so that one search serves them all.
    offset = max(int(outages.end_ms.max(initial=0)), int(ts_ms.max(initial=0))) + 1
    at = np.searchsorted(by_series * offset + ts_ms, outages.series * offset + outages.begin_ms)
    there = np.minimum(at, max(len(ts_ms) - 1, 0))
    if len(ts_ms):
        caught = (at < len(ts_ms)) & (by_series[there] == outages.series) & (ts_ms[there] < outages.end_ms)
        delay_h = np.where(caught, (ts_ms[there] - outages.begin_ms) / HOUR_MS, outages.length_h)
    else:
        caught, delay_h = np.zeros(len(outages.series), bool), outages.length_h
    return Found(caught=caught.astype(np.float64), delay_h=delay_h)


def judge_uniform(series: Sequence[Series], outages: Outages, budget_per_url_hour: float) -> Found:
    """What equal intervals find, the mean of `UNIFORM_PHASES` phases from the start of each series on."""
    interval_h = 1 / budget_per_url_hour
    starts = np.array([one.start_ms for one in series])[outages.series]
    into_h = (outages.begin_ms - starts) / HOUR_MS
    phases = (np.arange(UNIFORM_PHASES)[:, None] + 0.5) / UNIFORM_PHASES * interval_h
    wait_h = (phases - into_h) % interval_h
    caught = wait_h < outages.length_h
    return Found(caught=caught.mean(axis=0), delay_h=np.where(caught, wait_h, outages.length_h).mean(axis=0))


def judge_oracle(outages: Outages, *, min_interval_s: float) -> Found:
    """What somebody finds who knows when each outage begins, and keeps the minimal interval: nobody finds more."""
    caught = np.zeros(len(outages.series))
    delay_h = outages.length_h.copy()
    previous, free_ms = -1, 0.0
    for i, (number, begin_ms, end_ms) in enumerate(
        zip(outages.series.tolist(), outages.begin_ms.tolist(), outages.end_ms.tolist(), strict=True)
    ):
        at_ms = begin_ms if number != previous else max(begin_ms, free_ms)
        if at_ms < end_ms:
            caught[i], delay_h[i] = 1.0, (at_ms - begin_ms) / HOUR_MS
            previous, free_ms = number, at_ms + 1000 * min_interval_s
    return Found(caught=caught, delay_h=delay_h)
