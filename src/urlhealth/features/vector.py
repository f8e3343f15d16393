"""What models see: the features of some URLs at any instant, from their carried state. Pure.

The same function makes the vectors of training (t is the instant of the point-in-time join) and of serving (t is now).
The state that the newest known verdict showed is carried on from then until t, or until it stops being known.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from urlhealth.features.catalog import CLOCK_HALF_LIVES_D, CLOCK_NEAR_H, ONSETS_AGO, VECTOR, WINDOWS
from urlhealth.features.columns import States
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

_TILE_MS: Final = {"hour": HOUR_MS, "day": DAY_MS}
_EVER: Final = len(HALF_LIVES_H) - 1
_NEIGHBOUR_HALF_LIFE: Final = HALF_LIFE_NAMES.index("2h")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Instant:
    """The states, and what several features need of them at t. All of shape (n,) or (n, half-lives)."""

    url: States
    host: States
    group: States
    t: npt.NDArray[np.int64]
    #: Until when the state that `known_ms` saw is held for known: t, or before.
    end: npt.NDArray[np.int64]
    #: Whether the state is still known at t; whether the last one known was up, or failing.
    known: npt.NDArray[np.bool_]
    up: npt.NDArray[np.bool_]
    failing: npt.NDArray[np.bool_]
    #: Decayed sums, carried to t.
    onsets: npt.NDArray[np.float64]
    up_hours: npt.NDArray[np.float64]
    failing_hours: npt.NDArray[np.float64]

    @property
    def state_hours(self) -> Array:
        """Hours in the present state; NaN where it is not known."""
        return np.where(self.known, (self.t - self.url["since_ms"]) / HOUR_MS, np.nan)


def at(states: Mapping[str, States], t_ms: Array, *, known_for_s: float) -> npt.NDArray[np.float32]:
    """The vectors at the instants t.

    Args:
        states: by view name, records of the view's dtype, each of shape (n,), aligned: the states as of t or before.
        t_ms: int64, shape (n,).
        known_for_s: for how long a state is held for known after the verdict that showed it.

    Returns:
        float32, shape (n, len(VECTOR)); NaN where a feature is not known.
    """
    instant = _instant(states, np.asarray(t_ms, np.int64), round(known_for_s * 1000))
    columns: dict[str, Array] = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        columns |= _present(instant)
        columns |= _windows(instant)
        rates = _onset_rates(instant)
        columns |= {f"log_onset_rate_{name}": np.log(rate) for name, rate in rates.items()}
        columns |= _clock(instant, rates["7d"])
        columns |= _onsets_ago(instant)
        columns |= _runs(instant, rates["7d"])
        columns |= _last_verdict(instant)
        columns |= _neighbours(instant)
        columns |= _calendar(instant)
    return np.stack([columns[feature.name] for feature in VECTOR], axis=1, dtype=np.float32, casting="same_kind")


def _instant(states: Mapping[str, States], t: npt.NDArray[np.int64], known_for_ms: int) -> _Instant:
    url = states[URL_STATE.name]
    t = np.maximum(t, url["known_ms"])
    end = np.minimum(t, url["known_ms"] + known_for_ms)
    up, failing = url["failing"] == 0, url["failing"] == 1
    left = decay((t - url["known_ms"]) / HOUR_MS)
    open_hours = accrued((end - url["known_ms"]) / HOUR_MS, (t - end) / HOUR_MS)
    return _Instant(
        url=url,
        host=states[HOST_STATE.name].view(POOL_STATE.dtype),
        group=states[GROUP_STATE.name].view(POOL_STATE.dtype),
        t=t,
        end=end,
        known=(up | failing) & (end == t),
        up=up,
        failing=failing,
        onsets=url["onsets"] * left,
        up_hours=url["up_hours"] * left + np.where(up[:, None], open_hours, 0.0),
        failing_hours=url["failing_hours"] * left + np.where(failing[:, None], open_hours, 0.0),
    )


def _present(i: _Instant) -> dict[str, Array]:
    failing_now = np.where(i.known, i.failing, np.nan)
    hours = np.log1p(i.state_hours)
    return {
        "failing_now": failing_now,
        "state_hours": i.state_hours,
        "log_state_hours": hours,
        "log_state_minutes": np.log(i.state_hours + SHORT_H),
        "failing_log_hours": failing_now * hours,
        "log_consecutive_failures": np.log1p(i.url["consecutive_failures"]),
        "log_probe_age_hours": np.log1p(_hours_since(i.t, i.url["probed_ms"])),
        "log_known_hours": np.log1p(_hours_since(i.t, i.url["first_known_ms"])),
    }


def _hours_since(t: Array, then_ms: Array) -> Array:
    return np.where(then_ms > 0, np.maximum(t - then_ms, 0) / HOUR_MS, np.nan)


def _windows(i: _Instant) -> dict[str, Array]:
    """Sums over the window's tiles, the held state added. Where nothing in it is known yet: the present state."""
    columns = {}
    for name, tile, whole_tiles in WINDOWS:
        now_tile = i.t // _TILE_MS[tile]
        start = (now_tile - whole_tiles) * _TILE_MS[tile]
        # Element k is k tiles before that of known_ms, so it is in the window up to this k:
        newest_k = whole_tiles - (now_tile - i.url["known_ms"] // _TILE_MS[tile])
        held = np.maximum(i.end - np.maximum(i.url["known_ms"], start), 0)
        known = _sum_until(i.url[f"{tile}_known_ms"], newest_k) + np.where(i.up | i.failing, held, 0)
        failing = _sum_until(i.url[f"{tile}_failing_ms"], newest_k) + np.where(i.failing, held, 0)
        columns[f"failing_share_{name}"] = np.where(known > 0, failing / known, np.where(i.known, i.failing, np.nan))
        columns[f"log_flips_{name}"] = np.log1p(_sum_until(i.url[f"{tile}_flips"], newest_k))
    known_hours = i.up_hours[:, _EVER] + i.failing_hours[:, _EVER]
    share = i.failing_hours[:, _EVER] / known_hours
    columns["failing_share_ever"] = np.where(known_hours > 0, share, np.where(i.known, i.failing, np.nan))
    return columns


def _sum_until(tiles: Array, newest_k: Array) -> Array:
    """Sum of elements 0 to `newest_k` (none if negative) of each row."""
    wanted = np.arange(tiles.shape[1]) <= newest_k[:, None]
    return np.asarray(np.sum(tiles, axis=1, where=wanted, dtype=np.int64))


def _onset_rates(i: _Instant) -> dict[str, Array]:
    """Onsets per up-hour, from slow to fast, each the prior of the next (empirical Bayes, gamma-Poisson).

    A rate is (onsets + a) / (up-hours + a / prior): its posterior mean where the prior is a gamma distribution of mean
    `prior` and shape a = PRIOR_ONSETS.
    """

    def posterior(prior: Array | float, onsets: Array, up_hours: Array) -> Array:
        return (onsets + PRIOR_ONSETS) / (up_hours + PRIOR_ONSETS / prior)

    rate = posterior(TYPICAL_ONSETS_PER_H, i.group["onsets"][:, _EVER], i.group["up_hours"][:, _EVER])
    rates = {"group": rate}
    for k in reversed(range(len(HALF_LIVES_H))):
        rate = rates[HALF_LIFE_NAMES[k]] = posterior(rate, i.onsets[:, k], i.up_hours[:, k])
    return rates


def _clock(i: _Instant, rate: Array) -> dict[str, Array]:
    """Of the past spans of the same hours, and of the past days of these weekdays, the share that had an onset."""
    columns: dict[str, Array] = {}
    hour, part = i.t // HOUR_MS, (i.t % HOUR_MS / HOUR_MS)[:, None]
    day = np.arange(1, DAY_TILES - 2)
    known = day <= np.where(i.url["first_known_ms"] > 0, (i.t - i.url["first_known_ms"]) / DAY_MS, 0)[:, None]
    spans = [("", hours, 0) for hours in HORIZONS_H] + [("near_", h, CLOCK_NEAR_H) for h in HORIZONS_H if h < 24]
    # All spans at once, shape (spans, n) or (spans, n, days): for one URL, the number of calls is what takes time.
    near = np.array([[near] for _, _, near in spans])
    width = np.array([[hours] for _, hours, _ in spans]) + 2 * near
    now, after = (_had_onset(i, hour + k - near, width) for k in (0, 1))
    marked = (1 - part) * now + part * after
    prior = PRIOR_DAYS * _within(rate, width)
    for days in CLOCK_HALF_LIVES_D:
        weight = known * np.exp2((1 - day) / days)
        share = (np.sum(weight * marked, axis=-1) + prior) / (np.sum(weight, axis=-1) + PRIOR_DAYS)
        logs = np.log(share)
        columns |= {f"log_clock_{prefix}{hours}h_{days}d": logs[s] for s, (prefix, hours, _) in enumerate(spans)}

    newest_ms = i.url["recent_onset_ms"][:, 0]
    left = np.exp2(np.where(newest_ms > 0, i.t - newest_ms, 0) / (-HOUR_MS * HALF_LIVES_H[WEEKDAY_HALF_LIFE]))
    marked = _between(i.url["weekday_onsets"], weekday(i.t / DAY_MS)) * left
    weeks = (i.up_hours + i.failing_hours)[:, WEEKDAY_HALF_LIFE] / 24 / 7
    share = (marked + PRIOR_WEEKDAYS * _within(rate, 24)) / (weeks + PRIOR_WEEKDAYS)
    columns["weekday_onset_share"] = np.minimum(share, 1.0)
    return columns


def _had_onset(i: _Instant, first_hour: Array, hours: Array) -> Array:
    """Whether an onset fell into spans of hours, some days before.

    Args:
        first_hour: (spans, n), since 1970.
        hours: (spans, 1), their lengths.

    Returns:
        bool (spans, n, DAY_TILES - 3); element k of a row is for k + 1 days before.
    """
    day, hour = first_hour // 24, first_hour % 24
    tiles = np.broadcast_to(i.url["onset_hours"].astype(np.int64), (*day.shape, DAY_TILES))
    # Element d: the hours of the d-th day before the span's own first day.
    moved = shifted(tiles.reshape(-1, DAY_TILES), (day - i.url["known_ms"] // DAY_MS).ravel()).reshape(tiles.shape)
    back, forth = moved[..., 1 : DAY_TILES - 2], moved[..., : DAY_TILES - 3]
    had: Array = ((back | forth << 24) >> hour[..., None]) & ((1 << hours) - 1)[..., None] != 0
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
    columns: dict[str, Array] = {}
    for k in ONSETS_AGO:
        onset_ms = i.url["recent_onset_ms"][:, k - 1]
        then_ms = np.where(onset_ms > 0, onset_ms, first_ms - k * NEVER_DAYS * DAY_MS)
        columns[f"log_onset_ago_{k}"] = np.log((i.t - then_ms) / HOUR_MS + SHORT_H)
    return columns


def _runs(i: _Instant, onset_rate: Array) -> dict[str, Array]:
    """The URL's own hazards: how its recent up-times, outages and cycles went on that were as long as the present one.

    A cycle is the time from one onset to the next.
    """
    end_rate = (i.onsets[:, _EVER] + 1) / (i.failing_hours[:, _EVER] + 1 / TYPICAL_ENDS_PER_H)
    onset_ms = i.url["recent_onset_ms"]
    cycles = np.where(onset_ms[:, 1:] > 0, (onset_ms[:, :-1] - onset_ms[:, 1:]) / HOUR_MS, np.nan)
    since_onset = np.where(onset_ms[:, 0] > 0, (i.t - onset_ms[:, 0]) / HOUR_MS, 0.0)
    # A run of the other kind than the present one would begin now.
    up_age, outage_age = (np.where(going_on & i.known, i.state_hours, 0.0) for going_on in (i.up, i.failing))
    ups, outages = i.url["recent_up_hours"], i.url["recent_outage_hours"]
    columns: dict[str, Array] = {}
    horizons = np.array(HORIZONS_H)[:, None]
    for run, lengths, age, rate in (
        ("up", ups, up_age, onset_rate),
        ("cycle", cycles, since_onset, onset_rate),
        ("outage", outages, outage_age, end_rate),
    ):
        weight = RUN_FADES ** np.arange(lengths.shape[1])
        longer = (lengths > age[:, None]) * weight
        ended = np.sum(np.where(lengths <= (age + horizons)[..., None], longer, 0.0), axis=-1)
        prior = PRIOR_RUNS * _within(rate, horizons)
        logs = np.log((ended + prior) / (np.sum(longer, axis=1) + PRIOR_RUNS))
        columns |= {f"log_{run}_ends_{hours}h": logs[h] for h, hours in enumerate(HORIZONS_H)}
    for run, lengths in (("up", ups), ("outage", outages)):
        count = np.sum(~np.isnan(lengths), axis=1)
        columns[f"log_last_{run}_hours"] = np.log1p(lengths[:, 0])
        columns[f"log_mean_{run}_hours"] = np.log1p(np.nansum(lengths, axis=1) / count)
    newest = np.log(ups[:, :3] + SHORT_H)
    columns["log_typical_up_hours"] = np.nansum(newest, axis=1) / np.sum(~np.isnan(newest), axis=1)
    columns["short_up_share"] = np.sum(ups < 1, axis=1) / np.sum(~np.isnan(ups), axis=1)
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
    columns: dict[str, Array] = {}
    rows: Any = np.arange(POOL_DAYS)
    today = i.t // DAY_MS
    own = (i.up | i.failing) & (today - i.url["known_ms"] // DAY_MS < POOL_DAYS)
    for name, pool in (("host", i.host), ("group", i.group)):
        counted = rows < POOL_DAYS - np.maximum(today - pool["known_ms"] // DAY_MS, 0)[:, None]
        others = np.sum(pool["urls"], axis=1, where=counted) - own
        failing = np.sum(pool["urls_failing"], axis=1, where=counted) - (own & i.failing)
        columns[f"{name}_others_failing"] = np.where(others > 0, np.clip(failing / others, 0, 1), np.nan)
        since_h = np.where(pool["known_ms"] > 0, np.maximum(i.t - pool["known_ms"], 0), 0) / HOUR_MS
        left = np.exp2(-since_h / HALF_LIVES_H[_NEIGHBOUR_HALF_LIFE])
        onsets = pool["onsets"][:, _NEIGHBOUR_HALF_LIFE] * left - i.onsets[:, _NEIGHBOUR_HALF_LIFE]
        columns[f"log_{name}_others_onsets"] = np.log1p(np.maximum(onsets, 0.0))
    return columns


def _calendar(i: _Instant) -> dict[str, Array]:
    angle = 2 * np.pi * (i.t % DAY_MS) / DAY_MS
    return {
        "hour_sin": np.sin(angle),
        "hour_cos": np.cos(angle),
        "weekend": weekday(i.t // DAY_MS) >= 5,
    }
