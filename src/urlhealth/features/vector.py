"""What models see: the features of some URLs at any instant, from their carried state. Pure.

The same function makes the vectors of training (t is the instant of the point-in-time join) and of serving (t is now).
The state that the newest known verdict showed is carried on from then until t, or until it stops being known.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from urlhealth.features.catalog import CLOCK_HALF_LIVES_D, CLOCK_NEAR_H, ONSETS_AGO, VECTOR, WINDOWS
from urlhealth.features.columns import States, names, whole_records
from urlhealth.features.decay import DAY_MS, HALF_LIFE_NAMES, HALF_LIVES_H, HOUR_MS, Array, accrued, decay
from urlhealth.features.fold import shifted, weekday
from urlhealth.features.views import (
    DAY_TILES,
    GROUP_STATE,
    HOST_STATE,
    POOL_DAYS,
    POOL_STATE,
    URL_STATE,
    WEEKDAY_HALF_LIFE,
)
from urlhealth.vocabulary import HORIZONS_H

#: Onsets per up-hour of a URL of which nothing is known, and ends per hour of an outage.
TYPICAL_ONSETS_PER_H: Final = 0.004
TYPICAL_ENDS_PER_H: Final = 0.2
#: How many onsets a slower rate weighs, as the prior of the next faster one; how many past days or runs a rate weighs
#: beside those counted.
PRIOR_ONSETS: Final = 1.0
PRIOR_DAYS: Final = 2.0
PRIOR_WEEKDAYS: Final = 3.0
PRIOR_RUNS: Final = 1.0
#: By how much each run (up-time, outage, cycle) weighs less than the newer one after it.
RUN_FADES: Final = 0.9
#: Where a URL had fewer onsets than are asked for: for each, so long before it was first known.
NEVER_DAYS: Final = 7
#: Below this, lengths of up-times are much alike.
SHORT_H: Final = 0.1

_NAMES: Final = names(VECTOR)
_TILE_MS: Final = {"hour": HOUR_MS, "day": DAY_MS}
_EVER: Final = len(HALF_LIVES_H) - 1
#: The rates of onsets, from slow to fast, and which of them is the one of a week.
_RATES: Final = tuple(f"log_onset_rate_{name}" for name in ("group", *reversed(HALF_LIFE_NAMES)))
_WEEK: Final = _RATES.index("log_onset_rate_7d")
_NEIGHBOUR_HALF_LIFE: Final = HALF_LIFE_NAMES.index("2h")

#: Spans of hours that are looked for an onset, the same on each of the past days: prefix of the name, hours, how many
#: more of them on either side. Widths and those, in columns.
_SPANS: Final = (
    *(("", hours, 0) for hours in HORIZONS_H),
    *(("near_", hours, CLOCK_NEAR_H) for hours in HORIZONS_H if hours < 24),
)
_WIDTH: Final = np.array([[hours + 2 * near] for _, hours, near in _SPANS])
_NEAR: Final = np.array([[near] for _, _, near in _SPANS])
#: How many days: a span may begin on the day before, and end on the one after.
_CLOCK_DAYS: Final = DAY_TILES - 3
#: By half-life, what each of these days weighs; the sums of the first 0, 1, ... of them; and, (bytes, half-lives, 256),
#: the sum of those whose bit is set in each byte of a row of days (as `np.packbits` has them).
_DAY_WEIGHT: Final = np.exp2(-np.arange(_CLOCK_DAYS) / np.array(CLOCK_HALF_LIVES_D)[:, None])
_FADED_DAYS: Final = np.pad(np.cumsum(_DAY_WEIGHT, axis=1), ((0, 0), (1, 0)))
_FADED: Final = (
    np.pad(_DAY_WEIGHT, ((0, 0), (0, -_CLOCK_DAYS % 8))).reshape(len(CLOCK_HALF_LIVES_D), -1, 8).swapaxes(0, 1)
) @ np.unpackbits(np.arange(256, dtype=np.uint8)[None], axis=0)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Instant:
    """The states, and what several features need of them at t. All of shape (n,) or (n, half-lives)."""

    url: States
    #: Of the hosts and of the groups: records of POOL_STATE, (2, n).
    pools: States
    t: npt.NDArray[np.int64]
    #: Until when the state that `known_ms` saw is held for known: t, or before.
    end: npt.NDArray[np.int64]
    #: Whether the state is still known at t; whether the last one known was up, or failing.
    known: npt.NDArray[np.bool_]
    up: npt.NDArray[np.bool_]
    failing: npt.NDArray[np.bool_]
    #: 1 where it is failing now, 0 where it is up; NaN where that is not known.
    failing_now: npt.NDArray[np.float64]
    #: Hours in the present state; NaN where it is not known.
    state_hours: npt.NDArray[np.float64]
    #: Decayed sums, carried to t.
    onsets: npt.NDArray[np.float64]
    up_hours: npt.NDArray[np.float64]
    failing_hours: npt.NDArray[np.float64]


def at(states: Mapping[str, States], t_ms: Array, *, known_for_s: float) -> npt.NDArray[np.float32]:
    """The vectors at the instants t.

    Here and below the number of calls is what takes the time of one URL, and the length of the longest axis that of a
    thousand: so what is alike is computed at once, along a first axis of its own.

    Args:
        states: by view name, records of the view's dtype, each of shape (n,), aligned: the states as of t or before.
        t_ms: int64, shape (n,).
        known_for_s: for how long a state is held for known after the verdict that showed it.

    Returns:
        float32, shape (n, len(VECTOR)); NaN where a feature is not known.
    """
    instant = _instant(states, np.asarray(t_ms, np.int64), round(known_for_s * 1000))
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = _onset_rates(instant)
        columns = {
            **_present(instant),
            **_windows(instant),
            **dict(zip(_RATES, np.log(rates), strict=True)),
            **_clock(instant, rates[_WEEK]),
            **_onsets_ago(instant),
            **_runs(instant, rates[_WEEK]),
            **_last_verdict(instant),
            **_neighbours(instant),
            **_calendar(instant),
        }
    return np.array([columns[name] for name in _NAMES]).T.astype(np.float32, order="C")


def _instant(states: Mapping[str, States], t: npt.NDArray[np.int64], known_for_ms: int) -> _Instant:
    url = states[URL_STATE.name]
    records = whole_records(POOL_STATE.dtype)
    pools = np.stack([states[view.name].view(records) for view in (HOST_STATE, GROUP_STATE)])
    known_ms = url["known_ms"]
    t = np.maximum(t, known_ms)
    end = np.minimum(t, known_ms + known_for_ms)
    up, failing = url["failing"] == 0, url["failing"] == 1
    known = (up | failing) & (end == t)
    left = decay((t - known_ms) / HOUR_MS)
    open_hours = accrued((end - known_ms) / HOUR_MS, (t - end) / HOUR_MS)
    return _Instant(
        url=url,
        pools=pools.view(POOL_STATE.dtype),
        t=t,
        end=end,
        known=known,
        up=up,
        failing=failing,
        failing_now=np.where(known, failing, np.nan),
        state_hours=np.where(known, (t - url["since_ms"]) / HOUR_MS, np.nan),
        onsets=url["onsets"] * left,
        up_hours=url["up_hours"] * left + np.where(up[:, None], open_hours, 0.0),
        failing_hours=url["failing_hours"] * left + np.where(failing[:, None], open_hours, 0.0),
    )


def _present(i: _Instant) -> dict[str, Array]:
    hours = np.log1p(i.state_hours)
    return {
        "failing_now": i.failing_now,
        "state_hours": i.state_hours,
        "log_state_hours": hours,
        "log_state_minutes": np.log(i.state_hours + SHORT_H),
        "failing_log_hours": i.failing_now * hours,
        "log_consecutive_failures": np.log1p(i.url["consecutive_failures"]),
        "log_probe_age_hours": np.log1p(_hours_since(i.t, i.url["probed_ms"])),
        "log_known_hours": np.log1p(_hours_since(i.t, i.url["first_known_ms"])),
    }


def _hours_since(t: Array, then_ms: Array) -> Array:
    return np.where(then_ms > 0, np.maximum(t - then_ms, 0) / HOUR_MS, np.nan)


def _windows(i: _Instant) -> dict[str, Array]:
    """Sums over the window's tiles, the held state added. Where nothing in it is known yet: the present state."""
    columns: dict[str, Array] = {}
    rows, known_ms = np.arange(len(i.t)), i.url["known_ms"]
    either = i.up | i.failing
    for tile, tile_ms in _TILE_MS.items():
        named = [name for name, of, _ in WINDOWS if of == tile]
        whole_tiles = np.array([[whole] for _, of, whole in WINDOWS if of == tile])
        now_tile = i.t // tile_ms
        # Element k is k tiles before that of known_ms, so it is in the window up to this k; (windows, n).
        newest_k = whole_tiles - (now_tile - known_ms // tile_ms)
        held = np.maximum(i.end - np.maximum(known_ms, (now_tile - whole_tiles) * tile_ms), 0)
        sums = _sums(i.url[f"{tile}_known_ms"], i.url[f"{tile}_failing_ms"], i.url[f"{tile}_flips"])
        known, failing, flips = sums[:, rows, np.clip(newest_k + 1, 0, sums.shape[2] - 1)]
        known = known + either * held
        share = np.where(known > 0, (failing + i.failing * held) / known, i.failing_now)
        logs = np.log1p(flips)
        for k, name in enumerate(named):
            columns[f"failing_share_{name}"] = share[k]
            columns[f"log_flips_{name}"] = logs[k]
    known_hours = i.up_hours[:, _EVER] + i.failing_hours[:, _EVER]
    columns["failing_share_ever"] = np.where(known_hours > 0, i.failing_hours[:, _EVER] / known_hours, i.failing_now)
    return columns


def _sums(*tiles: Array) -> npt.NDArray[np.int64]:
    """Of each kind of tiles, (n, k), the sums of the first 0, 1, ... k elements of each row: (kinds, n, k + 1)."""
    summed = np.zeros((len(tiles), len(tiles[0]), tiles[0].shape[1] + 1), np.int64)
    for kind, values in enumerate(tiles):
        np.cumsum(values, axis=1, out=summed[kind, :, 1:])
    return summed


def _onset_rates(i: _Instant) -> Array:
    """Onsets per up-hour, from slow to fast, each the prior of the next (empirical Bayes, gamma-Poisson).

    A rate is (onsets + a) / (up-hours + a / prior): its posterior mean where the prior is a gamma distribution of mean
    `prior` and shape a = PRIOR_ONSETS.

    Returns:
        (len(_RATES), n)
    """

    def posterior(prior: Array | float, onsets: Array, up_hours: Array) -> Array:
        return (onsets + PRIOR_ONSETS) / (up_hours + PRIOR_ONSETS / prior)

    group = i.pools[1]
    rates = [posterior(TYPICAL_ONSETS_PER_H, group["onsets"][:, _EVER], group["up_hours"][:, _EVER])]
    for k in reversed(range(len(HALF_LIVES_H))):
        rates.append(posterior(rates[-1], i.onsets[:, k], i.up_hours[:, k]))
    return np.array(rates)


def _clock(i: _Instant, rate: Array) -> dict[str, Array]:
    """Of the past spans of the same hours, and of the past days of these weekdays, the share that had an onset."""
    columns: dict[str, Array] = {}
    known_days = np.where(i.url["first_known_ms"] > 0, (i.t - i.url["first_known_ms"]) / DAY_MS, 0)
    days = np.minimum(known_days, _CLOCK_DAYS).astype(np.int64)
    had = _had_onset(i) & (np.arange(_CLOCK_DAYS) < days[:, None])
    # For each half-life, whether the span begins at this or at the next hour, and each span: (half-lives, 2, spans, n).
    by_byte = np.packbits(had, axis=-1)
    sums = sum(faded.take(by_byte[..., byte], axis=1) for byte, faded in enumerate(_FADED))
    part = i.t % HOUR_MS / HOUR_MS
    prior = PRIOR_DAYS * _within(rate, _WIDTH)
    marked = (1 - part) * sums[:, 0] + part * sums[:, 1]
    logs = np.log((marked + prior) / (_FADED_DAYS[:, days] + PRIOR_DAYS)[:, None])
    for h, half_life in enumerate(CLOCK_HALF_LIVES_D):
        for k, (prefix, hours, _) in enumerate(_SPANS):
            columns[f"log_clock_{prefix}{hours}h_{half_life}d"] = logs[h, k]

    newest_ms = i.url["recent_onset_ms"][:, 0]
    left = np.exp2(np.where(newest_ms > 0, i.t - newest_ms, 0) / (-HOUR_MS * HALF_LIVES_H[WEEKDAY_HALF_LIFE]))
    marked = _between(i.url["weekday_onsets"], weekday(i.t / DAY_MS)) * left
    weeks = (i.up_hours[:, WEEKDAY_HALF_LIFE] + i.failing_hours[:, WEEKDAY_HALF_LIFE]) / 24 / 7
    share = (marked + PRIOR_WEEKDAYS * _within(rate, 24)) / (weeks + PRIOR_WEEKDAYS)
    columns["weekday_onset_share"] = np.minimum(share, 1.0)
    return columns


def _had_onset(i: _Instant) -> npt.NDArray[np.bool_]:
    """Whether an onset fell into the spans, some days before.

    Returns:
        (2, spans, n, _CLOCK_DAYS): for spans that begin at the hour of t, and for those of the next hour; element
        k of a row is for k + 1 days before.
    """
    near = CLOCK_NEAR_H
    tiles = shifted(i.url["onset_hours"].astype(np.int64), i.t // DAY_MS - i.url["known_ms"] // DAY_MS)
    # Of each of these days the bits of one word: the last hours of the day before, its own, those of the day after.
    before, day, after = (tiles[:, k : k + _CLOCK_DAYS] for k in (2, 1, 0))
    word = before >> (24 - near) | day << near | after << (24 + near)
    first_hour = i.t // HOUR_MS % 24 + near - _NEAR
    moved = word >> np.array([first_hour, first_hour + 1])[..., None]
    had: npt.NDArray[np.bool_] = moved & ((1 << _WIDTH) - 1)[..., None] != 0
    return had


def _between(histogram: Array, position: Array) -> Array:
    """A circular histogram, (n, k), at a position between two of its elements: linear in between."""
    k = histogram.shape[1]
    below = np.floor(position)
    index, part = below.astype(np.int64) % k, position - below
    rows = np.arange(len(histogram))
    between: Array = (1 - part) * histogram[rows, index] + part * histogram[rows, (index + 1) % k]
    return between


def _within(rate: Array, hours: Array | float) -> Array:
    """Probability of at least one event in so many hours."""
    probability: Array = -np.expm1(-hours * rate)
    return probability


def _onsets_ago(i: _Instant) -> dict[str, Array]:
    """How long ago the newest onsets were: the shape of a burst, which decayed rates cannot tell."""
    first_ms = np.where(i.url["first_known_ms"] > 0, i.url["first_known_ms"], i.t)
    ks = np.array(ONSETS_AGO)[:, None]
    onset_ms = i.url["recent_onset_ms"].T[ks[:, 0] - 1]
    then_ms = np.where(onset_ms > 0, onset_ms, first_ms - ks * (NEVER_DAYS * DAY_MS))
    logs = np.log((i.t - then_ms) / HOUR_MS + SHORT_H)
    return {f"log_onset_ago_{k}": logs[j] for j, k in enumerate(ONSETS_AGO)}


def _runs(i: _Instant, onset_rate: Array) -> dict[str, Array]:
    """The URL's own hazards: how its recent up-times, outages and cycles went on that were as long as the present one.

    A cycle is the time from one onset to the next.
    """
    end_rate = (i.onsets[:, _EVER] + 1) / (i.failing_hours[:, _EVER] + 1 / TYPICAL_ENDS_PER_H)
    onset_ms, ups, outages = (i.url[f"recent_{name}"] for name in ("onset_ms", "up_hours", "outage_hours"))
    lengths = np.full((3, *ups.shape), np.nan)
    lengths[0] = ups
    lengths[1, :, :-1] = np.where(onset_ms[:, 1:] > 0, (onset_ms[:, :-1] - onset_ms[:, 1:]) / HOUR_MS, np.nan)
    lengths[2, :, : outages.shape[1]] = outages
    # A run of the other kind than the present one would begin now.
    hours = np.where(i.known, i.state_hours, 0.0)
    since_onset = np.where(onset_ms[:, 0] > 0, (i.t - onset_ms[:, 0]) / HOUR_MS, 0.0)
    age = np.array([i.up * hours, since_onset, i.failing * hours])
    rate = np.array([onset_rate, onset_rate, end_rate])[:, None]
    horizons = np.array(HORIZONS_H)[:, None]
    longer = (lengths > age[..., None]) * RUN_FADES ** np.arange(lengths.shape[2])
    by_then = lengths[:, None] <= (age[:, None] + horizons)[..., None]
    ended = np.sum(by_then * longer[:, None], axis=-1)
    prior = PRIOR_RUNS * _within(rate, horizons)
    logs = np.log((ended + prior) / (np.sum(longer, axis=-1) + PRIOR_RUNS)[:, None])
    columns: dict[str, Array] = {
        f"log_{run}_ends_{hours}h": logs[r, h]
        for r, run in enumerate(("up", "cycle", "outage"))
        for h, hours in enumerate(HORIZONS_H)
    }
    there = ~np.isnan(lengths)
    count = np.sum(there, axis=-1)
    last = np.log1p(lengths[..., 0])
    mean = np.log1p(np.sum(np.where(there, lengths, 0.0), axis=-1) / count)
    for r, run in ((0, "up"), (2, "outage")):
        columns[f"log_last_{run}_hours"], columns[f"log_mean_{run}_hours"] = last[r], mean[r]
    newest = np.where(there[0, :, :3], np.log(ups[:, :3] + SHORT_H), 0.0)
    columns["log_typical_up_hours"] = np.sum(newest, axis=1) / np.sum(there[0, :, :3], axis=1)
    columns["short_up_share"] = np.sum(ups < 1, axis=1) / count[0]
    return columns


def _last_verdict(i: _Instant) -> dict[str, Array]:
    total_ms = i.url["total_ms"].astype(np.float64)
    expires_ms = i.url["cert_expires_ms"]
    usual = i.url["latency_log_sum"] / i.url["latency_weight"]
    return {
        "status_code": np.where(i.url["probed_ms"] > 0, i.url["status_code"], np.nan),
        "log_total_ms": np.log1p(total_ms),
        "log_first_byte_ms": np.log1p(i.url["first_byte_ms"]),
        "log_latency_ratio": np.log(np.where(total_ms > 0, total_ms, np.nan)) - usual,
        "cert_days_left": np.where(expires_ms > 0, np.clip((expires_ms - i.t) / DAY_MS, -30, 400), np.nan),
    }


def _neighbours(i: _Instant) -> dict[str, Array]:
    """What the other URLs of the host and of the group do: the pool without this URL."""
    today, pool_ms = i.t // DAY_MS, i.pools["known_ms"]
    own = (i.up | i.failing) & (today - i.url["known_ms"] // DAY_MS < POOL_DAYS)
    counted = np.arange(POOL_DAYS) < POOL_DAYS - np.maximum(today - pool_ms // DAY_MS, 0)[..., None]
    others = np.sum(i.pools["urls"] * counted, axis=-1) - own
    failing = np.sum(i.pools["urls_failing"] * counted, axis=-1) - (own & i.failing)
    share = np.where(others > 0, np.clip(failing / others, 0, 1), np.nan)
    since_h = np.where(pool_ms > 0, np.maximum(i.t - pool_ms, 0), 0) / HOUR_MS
    left = np.exp2(-since_h / HALF_LIVES_H[_NEIGHBOUR_HALF_LIFE])
    onsets = i.pools["onsets"][..., _NEIGHBOUR_HALF_LIFE] * left - i.onsets[:, _NEIGHBOUR_HALF_LIFE]
    logs = np.log1p(np.maximum(onsets, 0.0))
    return {
        "host_others_failing": share[0],
        "group_others_failing": share[1],
        "log_host_others_onsets": logs[0],
        "log_group_others_onsets": logs[1],
    }


def _calendar(i: _Instant) -> dict[str, Array]:
    angle = 2 * np.pi * (i.t % DAY_MS) / DAY_MS
    return {
        "hour_sin": np.sin(angle),
        "hour_cos": np.cos(angle),
        "weekend": weekday(i.t // DAY_MS) >= 5,
    }
