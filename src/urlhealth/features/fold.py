"""The state of a URL after one more verdict, for many URLs at once.

A state is known for `known_for_s` after the verdict that showed it, and no longer. Verdicts that say neither up nor
down move only the columns of the last verdict.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from urlhealth.features.columns import States, put, taken
from urlhealth.features.decay import DAY_MS, HALF_LIFE_NAMES, HALF_LIVES_H, HOUR_MS, Array, accrued, decay
from urlhealth.features.views import LAST_VERDICT, WEEKDAY_HALF_LIFE

_LATENCY_HALF_LIFE: Final = HALF_LIFE_NAMES.index("7d")
#: A verdict up is degraded if it took at least DEGRADED_MS, at least DEGRADED_TIMES the URL's usual time, and is more
#: than DEGRADED_DEVIATIONS standard deviations above that, in logarithms; and if that is known from enough verdicts.
DEGRADED_MS: Final = 200
DEGRADED_TIMES: Final = 2
DEGRADED_DEVIATIONS: Final = 3
DEGRADED_AFTER: Final = 10


def fold(start: States, events: Array, owner: Array, *, known_for_ms: int) -> States:
    """The state after each event.

    Args:
        start: records of `URL_STATE.dtype`, shape (n,): the states before; not changed.
        events: records of `VERDICT`, shape (m,), sorted by (owner, ts_ms), each later than its owner's state.
        owner: int, shape (m,): the position in `start` that each event belongs to.
        known_for_ms: for how long a verdict's state is held for known.

    Returns:
        Records of `URL_STATE.dtype`, shape (m,).
    """
    counts = np.bincount(owner, minlength=len(start))
    first = np.cumsum(counts) - counts
    busiest = np.argsort(-counts, kind="stable")
    counts, first, states = counts[busiest], first[busiest], taken(start, busiest)
    after = np.empty(len(events), start.dtype)
    # Round r takes the r-th event of every URL that has one: these are the leading ones, as the busiest come first.
    for r in range(counts[0] if len(counts) else 0):
        active = int(np.searchsorted(-counts, -r))
        positions = first[:active] + r
        step(states[:active], taken(events, positions), known_for_ms)
        put(after, positions, states[:active])
    return after


def step(states: States, events: Array, known_for_ms: int) -> None:
    """Fold one event into each state, in place. Both of shape (n,)."""
    states["probed_ms"] = events["ts_ms"]
    for column in LAST_VERDICT:
        states[column.name] = events[column.name]
    telling = events["health"] >= 0
    if telling.all():
        _step_known(states, events, known_for_ms)
    elif telling.any():
        some = taken(states, telling)
        _step_known(some, taken(events, telling), known_for_ms)
        put(states, telling, some)


def _step_known(states: States, events: Array, known_for_ms: int) -> None:
    now, down = events["ts_ms"], events["health"] == 0
    before, was_failing = states["known_ms"].copy(), states["failing"] == 1
    gap = np.where(states["failing"] < 0, 0, now - before)
    held = np.minimum(gap, known_for_ms)
    seen = (states["failing"] >= 0) & (gap <= known_for_ms)
    flip = seen & (was_failing != down)
    onset, recovery = flip & down, flip & ~down

    _add_sums(states, gap_ms=gap, held_ms=held, was_failing=was_failing, onset=onset)
    for tile, tile_ms in (("hour", HOUR_MS), ("day", DAY_MS)):
        _add_tiles(states, tile, tile_ms, begin=now - gap, held=held, was_failing=was_failing, now=now)
        states[f"{tile}_flips"][:, 0] += flip
    run_hours = (now - states["since_ms"]) / HOUR_MS
    _push(states["recent_outage_hours"], run_hours, np.flatnonzero(recovery))
    _mark_days(states, now, now // DAY_MS - (now - gap) // DAY_MS, np.flatnonzero(onset))
    _push(states["recent_up_hours"], run_hours, np.flatnonzero(onset))
    _push(states["recent_onset_ms"], now, np.flatnonzero(onset))
    _add_latency(states, events, gap, ~down)

    states["first_known_ms"] = np.where(states["failing"] < 0, now, states["first_known_ms"])
    states["since_ms"] = np.where(seen & ~flip, states["since_ms"], now)
    states["known_ms"] = now
    states["failing"] = down
    states["checks"] += 1
    states["consecutive_failures"] = np.where(down, states["consecutive_failures"] + 1, 0)


def _add_sums(states: States, *, gap_ms: Array, held_ms: Array, was_failing: Array, onset: Array) -> None:
    """Carry the decayed sums over `gap_ms`, and add the interval held at its beginning, and the onset at its end."""
    left = decay(gap_ms / HOUR_MS)
    hours = accrued(held_ms / HOUR_MS, (gap_ms - held_ms) / HOUR_MS)
    states["onsets"] = states["onsets"] * left + onset[:, None]
    states["up_hours"] = states["up_hours"] * left + np.where(was_failing[:, None], 0.0, hours)
    states["failing_hours"] = states["failing_hours"] * left + np.where(was_failing[:, None], hours, 0.0)


def _add_tiles(
    states: States, tile: str, tile_ms: int, *, begin: Array, held: Array, was_failing: Array, now: Array
) -> None:
    """Move the tiles on to the one of `now`, and spread [begin, begin + held) over them."""
    known, failing, flips = (states[f"{tile}_{what}"] for what in ("known_ms", "failing_ms", "flips"))
    passed = now // tile_ms - begin // tile_ms
    # Most verdicts fall into the tile of the one before; only the others need the general way.
    same = passed == 0
    within = np.where(same, held, 0)
    known[:, 0] += within
    failing[:, 0] += np.where(was_failing, within, 0)
    if same.all():
        return
    moved = np.flatnonzero(~same)
    begin, held, now, passed = (values[moved, None] for values in (begin, held, now, passed))
    starts = (now // tile_ms - np.arange(known.shape[1])) * tile_ms
    overlap = np.maximum(np.minimum(begin + held, starts + tile_ms) - np.maximum(begin, starts), 0)
    for tiles, added in (
        (known, overlap),
        (failing, np.where(was_failing[moved, None], overlap, 0)),
        (flips, 0),
    ):
        tiles[moved] = shifted(tiles[moved], passed[:, 0]) + added


def _push(recent: Array, values: Array, rows: npt.NDArray[np.intp]) -> None:
    """Put the values of some rows in front of their lists; the oldest fall out."""
    if len(rows):
        recent[rows, 1:] = recent[rows, :-1]
        recent[rows, 0] = values[rows]


def _mark_days(states: States, now: Array, passed: Array, rows: npt.NDArray[np.intp]) -> None:
    """Move the onsets by hour on by the days that passed, and count the onsets of some rows there and by weekday."""
    hours = states["onset_hours"]
    moved = np.flatnonzero(passed)
    if len(moved):
        hours[moved] = shifted(hours[moved], passed[moved])
    if not len(rows):
        return
    onset_ms, last_ms = now[rows], states["recent_onset_ms"][rows, 0]
    hours[rows, 0] |= (1 << onset_ms // HOUR_MS % 24).astype(np.int32)
    left = np.exp2(np.where(last_ms > 0, onset_ms - last_ms, 0) / (-HOUR_MS * HALF_LIVES_H[WEEKDAY_HALF_LIFE]))
    days, day = states["weekday_onsets"], onset_ms // DAY_MS
    days[rows] *= left[:, None]
    days[rows, weekday(day)] += day > last_ms // DAY_MS


def shifted(tiles: Array, by: Array) -> Array:
    """Each row of tiles, (n, k), moved on by so many places, shape (n,); what comes in from outside is 0."""
    source = np.arange(tiles.shape[1]) - by[:, None]
    inside = (source >= 0) & (source < tiles.shape[1])
    moved: Array = np.where(inside, np.take_along_axis(tiles, np.where(inside, source, 0), axis=1), 0)
    return moved


def weekday(day: Any) -> Any:
    """Weekday, Monday 0, of days since 1970-01-01 (a Thursday)."""
    return (day + 3) % 7


def _add_latency(states: States, events: Array, gap: Array, up: Array) -> None:
    """Judge the time against the verdicts before, then add it to them."""
    total_ms = events["total_ms"]
    timed = up & (total_ms > 0)
    logs = np.log(np.where(timed, total_ms, 1.0).astype(np.float64))
    left = np.exp2(gap / (-HOUR_MS * HALF_LIVES_H[_LATENCY_HALF_LIFE]))
    weight = states["latency_weight"] * left
    some = np.maximum(states["latency_weight"], 1.0)  # where there are fewer, nothing is judged
    usual = states["latency_log_sum"] / some
    deviation = np.sqrt(np.maximum(states["latency_log_squares"] / some - usual**2, 0))
    degraded = timed & (total_ms >= DEGRADED_MS) & (weight >= DEGRADED_AFTER)
    degraded &= logs - usual > np.maximum(DEGRADED_DEVIATIONS * deviation, np.log(DEGRADED_TIMES))
    states["degraded"] = degraded
    states["degraded_checks"] += degraded
    states["latency_log_sum"] = states["latency_log_sum"] * left + logs
    states["latency_log_squares"] = states["latency_log_squares"] * left + logs**2
    states["latency_weight"] = weight + timed


def slow_from_ms(states: States) -> Array:
    """The least `total_ms` by which the next verdict would be degraded, float64 (n,); infinite: too little is known."""
    some = np.maximum(states["latency_weight"], 1.0)
    usual = states["latency_log_sum"] / some
    deviation = np.sqrt(np.maximum(states["latency_log_squares"] / some - usual**2, 0))
    limit = np.exp(usual + np.maximum(DEGRADED_DEVIATIONS * deviation, np.log(DEGRADED_TIMES)))
    return np.where(states["latency_weight"] >= DEGRADED_AFTER, np.maximum(limit, DEGRADED_MS), np.inf)
