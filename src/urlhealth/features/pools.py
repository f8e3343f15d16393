"""The state of a host or a group: the sums of its URLs' states, kept up from their transitions.

Each known verdict of a URL closes an interval in which the URL's state before was held, and may be an onset: that is
its transition. Every column of a pool is linear in the transitions, so a correction is a transition taken back
(`count` -1) and another one added, whenever it comes.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from urlhealth.features.columns import States, taken
from urlhealth.features.decay import DAY_MS, HALF_LIVES_H, HOUR_MS, Array, accrued, decay
from urlhealth.features.views import POOL_DAYS

#: What one known verdict changed: the instant and verdict before (0 and -1 for the first), its own, and how often.
TRANSITION: Final = np.dtype(
    [("ts_ms", "i8"), ("before_ms", "i8"), ("was_failing", "i1"), ("failing", "i1"), ("count", "i4")]
)

_SUMS: Final = ("onsets", "up_hours", "failing_hours")
#: So many runs of one length are summed faster side by side than by blocks.
_RUNS: Final = 8


def transitions(start: States, events: Array, owner: Array) -> tuple[Array, Array]:
    """The transitions that events make, and their owners: TRANSITION records and ints, shape (known events,).

    `start`, `events` and `owner` as for `fold.fold`.
    """
    known = events["health"] >= 0
    events, owner = taken(events, known), owner[known]
    made = np.empty(len(events), TRANSITION)
    made["ts_ms"], made["failing"], made["count"] = events["ts_ms"], events["health"] == 0, 1
    made["before_ms"][1:], made["was_failing"][1:] = made["ts_ms"][:-1], made["failing"][:-1]
    first = np.diff(owner, prepend=-1) > 0
    made["before_ms"][first] = start["known_ms"][owner[first]]
    made["was_failing"][first] = start["failing"][owner[first]]
    return made, owner


def merged(items: Array, owner: Array) -> tuple[Array, Array]:
    """Equal transitions counted together (0 where they cancel), sorted by (owner, ts_ms)."""
    if not len(items):
        return items, owner
    fields = [items[name] for name in ("failing", "was_failing", "before_ms", "ts_ms")]
    order = np.lexsort((*fields, owner))
    items, owner = taken(items, order), owner[order]
    fields = [owner, *(field[order] for field in fields)]
    starts = np.flatnonzero(np.any([np.diff(field, prepend=field[0] - 1) != 0 for field in fields], axis=0))
    counts = np.add.reduceat(items["count"], starts)
    items, owner = taken(items, starts), owner[starts]
    items["count"] = counts
    return items, owner


def add_late(base: States, items: Array, owner: Array, *, known_for_ms: int) -> None:
    """Add transitions not later than their pool's base to it, in place."""
    age_h = (base["known_ms"][owner] - items["ts_ms"]) / HOUR_MS
    sums = _increments(items, known_for_ms) * decay(age_h)[:, None, :]
    for i, name in enumerate(_SUMS):
        np.add.at(base[name], owner, sums[:, i])
    today = base["known_ms"] // DAY_MS
    at, day, urls, failing = _day_changes(items)
    back = today[owner[at]] - day
    kept = back < POOL_DAYS
    np.add.at(base["urls"], (owner[at[kept]], back[kept]), urls[kept])
    np.add.at(base["urls_failing"], (owner[at[kept]], back[kept]), failing[kept])


def accumulate(base: States, items: Array, owner: Array, *, known_for_ms: int) -> tuple[States, Array]:
    """The pools' states at each distinct instant of their transitions.

    Args:
        base: pool states, shape (n,): before the transitions; not changed.
        items: TRANSITION records, shape (m,), sorted by (owner, ts_ms), each later than its pool's base.
        owner: int, shape (m,): the position in `base` that each belongs to.

    Returns:
        The states, and the position in `items` of the last transition of each state's instant.
    """
    m = len(items)
    ts_ms = items["ts_ms"]
    first = np.diff(owner, prepend=-1) > 0
    before_ms = np.where(first, base["known_ms"][owner], np.concatenate(([0], ts_ms[:-1])) if m else ts_ms)
    # A pool of which nothing is known has sums of 0, which any decay leaves as they are.
    left = decay(np.where(before_ms > 0, ts_ms - before_ms, 0) / HOUR_MS)
    sums = _increments(items, known_for_ms)
    carried = np.stack([base[name][owner[first]] for name in _SUMS], axis=1)
    sums[first] += carried * left[first, None, :]
    decayed_cumsum(sums, left, first)

    last = np.flatnonzero((np.diff(owner, append=-1) != 0) | (np.diff(ts_ms, append=-1) != 0))
    states = np.zeros(len(last), base.dtype)
    states["known_ms"] = ts_ms[last]
    for i, name in enumerate(_SUMS):
        states[name] = sums[last, i]
    _count_days(states, last, base, items, owner)
    return states, last


def _increments(items: Array, known_for_ms: int) -> npt.NDArray[np.float64]:
    """What each transition adds to the decayed sums at its own instant: shape (m, 3, len(HALF_LIVES_H))."""
    known = items["was_failing"] >= 0
    gap = np.where(known, items["ts_ms"] - items["before_ms"], 0)
    held = np.minimum(gap, known_for_ms)
    hours = accrued(held / HOUR_MS, (gap - held) / HOUR_MS)
    added = np.zeros((len(items), len(_SUMS), len(HALF_LIVES_H)))
    added[:, 0] = ((items["was_failing"] == 0) & (items["failing"] == 1) & (gap <= known_for_ms))[:, None]
    added[:, 1] = np.where(items["was_failing"][:, None] == 0, hours, 0.0)
    added[:, 2] = np.where(items["was_failing"][:, None] == 1, hours, 0.0)
    added *= items["count"][:, None, None]
    return added


def decayed_cumsum(values: Array, left: Array, first: Array, *, block: int = 32) -> None:
    """Running sums in place: values[i] += values[i-1] · left[i], except where `first` starts a new run.

    Args:
        values: float64, shape (m, k, h).
        left: float64, shape (m, h): what is left of the sum before. Not read where `first`.
        first: bool, shape (m,).

    Where there are many runs, they are summed side by side. Otherwise blocks of each run are, then the blocks' ends in
    the same way, which are carried in. All terms stay positive weights at most 1, so nothing overflows and no precision
    is lost, however long the history.
    """
    m = len(values)
    starts = np.flatnonzero(first)
    lengths = np.diff(starts, append=m)
    if m >= _RUNS * lengths.max(initial=0):
        _side_by_side(values, left, starts, lengths)
        return
    offset = np.arange(m) - np.repeat(starts, lengths)
    within = offset % block
    through = left.copy()  # what is left, at i, of the sum at the end of the block before
    for k in range(1, min(block, int(offset.max(initial=0)) + 1)):
        at = np.flatnonzero(within == k)
        values[at] += values[at - 1] * left[at, None, :]
        through[at] *= through[at - 1]
    heads = np.flatnonzero(within == 0)
    if len(heads) == len(starts):
        return
    ends = np.append(heads[1:], m) - 1
    totals = values[ends]
    decayed_cumsum(totals, through[ends], first[heads], block=block)
    number = np.cumsum(within == 0) - 1
    later = np.flatnonzero(offset >= block)
    values[later] += totals[number[later] - 1] * through[later, None, :]


def _side_by_side(values: Array, left: Array, starts: Array, lengths: Array) -> None:
    """Running sums of runs that start at these places, one step of all runs after the other."""
    order = np.argsort(-lengths, kind="stable")
    starts, lengths = starts[order], lengths[order]
    sums = values[starts]
    for step in range(1, int(lengths.max(initial=0))):
        going_on = int(np.searchsorted(-lengths, -step))
        at = starts[:going_on] + step
        now = sums[:going_on]
        now *= left[at, None, :]
        now += values[at]
        values[at] = now


def _day_changes(items: Array) -> tuple[Array, Array, Array, Array]:
    """Each URL leaves the day that it was last known on, and joins that of its transition; most stay where they are.

    Returns the position in `items`, the UTC day, the change of the number of URLs and of those failing; where neither
    changes, nothing.
    """
    day, day_before, known = items["ts_ms"] // DAY_MS, items["before_ms"] // DAY_MS, items["was_failing"] >= 0
    stays = known & (day == day_before)
    joining = np.flatnonzero(~stays | (items["was_failing"] != items["failing"]))
    leaving = np.flatnonzero(known & ~stays)
    joined, left = items[joining], items[leaving]
    stayed = stays[joining]
    return (
        np.concatenate((joining, leaving)),
        np.concatenate((day[joining], day_before[leaving])),
        np.concatenate((np.where(stayed, 0, joined["count"]), -left["count"])),
        np.concatenate(
            (
                joined["count"] * (joined["failing"] - np.where(stayed, joined["was_failing"], 0)),
                -left["count"] * left["was_failing"],
            )
        ),
    )


def _count_days(states: States, last: Array, base: States, items: Array, owner: Array) -> None:
    """Fill `urls` and `urls_failing`: how many URLs were last known on each state's day and on the days before.

    Changes are sorted by (pool, day, position), so that the count of a pool's day at some position is the difference of
    two running sums (of integers: exact).
    """
    if not len(items):
        return
    at, day, urls, failing = _day_changes(items)
    pool, back = np.nonzero(base["urls"])
    pools = np.concatenate((owner[at], pool))
    day = np.concatenate((day, base["known_ms"][pool] // DAY_MS - back))
    position = np.concatenate((at + 1, np.zeros(len(pool), np.int64)))
    changes = np.stack(
        (
            np.concatenate((urls, base["urls"][pool, back])),
            np.concatenate((failing, base["urls_failing"][pool, back])),
        ),
        axis=1,
    )
    wanted = states["known_ms"] // DAY_MS
    first_day = int(wanted.min()) - POOL_DAYS
    days = int(wanted.max()) - first_day + 1
    pools, day, position, changes = (values[day > first_day] for values in (pools, day, position, changes))

    def place(pool: Array, day: Array, position: Array | int) -> Array:
        places: Array = (pool * days + (day - first_day)) * (len(items) + 1) + position
        return places

    places = place(pools, day, position)
    order = np.argsort(places)
    places = places[order]
    running = np.concatenate((np.zeros((1, 2), np.int64), np.cumsum(changes[order], axis=0)))
    for back_days in range(POOL_DAYS):
        wanted_day = wanted - back_days
        until = np.searchsorted(places, place(owner[last], wanted_day, last + 1), side="right")
        since = np.searchsorted(places, place(owner[last], wanted_day, 0), side="left")
        counted = running[until] - running[since]
        states["urls"][:, back_days], states["urls_failing"][:, back_days] = counted[:, 0], counted[:, 1]
