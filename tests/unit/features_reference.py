"""The vector straight from its definitions: one URL at a time, from the raw history cut at t. Slow on purpose."""

import itertools
import math
from dataclasses import dataclass

from tests.unit.strategies import Probe
from urlhealth.features.vector import (
    NEVER_DAYS,
    PRIOR_DAYS,
    PRIOR_ONSETS,
    PRIOR_RUNS,
    PRIOR_WEEKDAYS,
    RUN_FADES,
    SHORT_H,
    TYPICAL_ENDS_PER_H,
    TYPICAL_ONSETS_PER_H,
)

HOUR, DAY = 3_600_000, 86_400_000
HALF_LIVES = {"ever": math.inf, "90d": 2160, "30d": 720, "7d": 168, "2d": 48, "12h": 12, "2h": 2, "30m": 0.5}


@dataclass
class Series:
    """What is known of one URL from its probes up to t."""

    #: (begin, end, failing): when which state was held for known, the present one up to t.
    pieces: list[tuple[int, int, bool]]
    #: Those that a later verdict has confirmed.
    closed: list[tuple[int, int, bool]]
    onsets: list[int]
    flips: list[int]
    #: Lengths in hours, oldest first.
    ups: list[float]
    outages: list[float]
    since: int = 0


def series(probes: list[Probe], t: int, known_for_ms: int) -> Series:
    known = sorted((p for p in probes if p.health >= 0 and p.ts_ms <= t), key=lambda p: p.ts_ms)
    s = Series([], [], [], [], [], [])
    for before, now in zip([None, *known], known, strict=False):
        if before is None or now.ts_ms - before.ts_ms > known_for_ms:
            s.since = now.ts_ms
        elif before.health != now.health:
            s.flips.append(now.ts_ms)
            hours = (now.ts_ms - s.since) / HOUR
            if now.health == 0:
                s.onsets.append(now.ts_ms)
                s.ups.append(hours)
            else:
                s.outages.append(hours)
            s.since = now.ts_ms
    for now, after in zip(known, [*known[1:], None], strict=False):
        end = min(now.ts_ms + known_for_ms, after.ts_ms if after else t)
        s.pieces.append((now.ts_ms, end, now.health == 0))
        if after:
            s.closed.append(s.pieces[-1])
    return s


def decayed_hours(pieces: list[tuple[int, int, bool]], failing: bool, t: int, half_life: float) -> float:
    total = 0.0
    for begin, end, was_failing in pieces:
        if was_failing == failing:
            if math.isinf(half_life):
                total += (end - begin) / HOUR
            else:
                total += half_life / math.log(2) * (fade(t - end, half_life) - fade(t - begin, half_life))
    return total


def fade(age_ms: float, half_life: float) -> float:
    return 0.5 ** (age_ms / HOUR / half_life)


def within(rate: float, hours: float) -> float:
    return 1 - math.exp(-hours * rate)


def vector(history: list[Probe], url: str, t: int, known_for_ms: int) -> dict[str, float]:
    """Every feature of the URL at t by name. The URL has at least one probe not after t."""
    history = [p for p in history if p.ts_ms <= t]
    own = sorted((p for p in history if p.target == url), key=lambda p: p.ts_ms)
    last, known = own[-1], [p for p in own if p.health >= 0]
    s = series(own, t, known_for_ms)
    f: dict[str, float] = {}

    is_known = bool(known) and t - known[-1].ts_ms <= known_for_ms
    failing = float(known[-1].health == 0) if is_known else math.nan
    age = (t - s.since) / HOUR if is_known else math.nan
    f["failing_now"], f["state_hours"], f["log_state_hours"] = failing, age, math.log1p(age)
    f["failing_log_hours"] = failing * math.log1p(age)
    f["log_state_minutes"] = math.log(age + SHORT_H)
    in_a_row = 0
    while in_a_row < len(known) and known[-1 - in_a_row].health == 0:
        in_a_row += 1
    f["log_consecutive_failures"] = math.log1p(in_a_row)
    f["log_probe_age_hours"] = math.log1p((t - last.ts_ms) / HOUR)
    f["log_known_hours"] = math.log1p((t - known[0].ts_ms) / HOUR) if known else math.nan

    for name, tile, tiles in (("1h", HOUR, 1), ("24h", HOUR, 24), ("7d", DAY, 7), ("30d", DAY, 30)):
        start = (t // tile - tiles) * tile
        parts = [(max(end - max(begin, start), 0), was_failing) for begin, end, was_failing in s.pieces]
        total = sum(length for length, _ in parts)
        f[f"failing_share_{name}"] = sum(n for n, was_failing in parts if was_failing) / total if total else failing
        f[f"log_flips_{name}"] = math.log1p(sum(flip >= start for flip in s.flips))
    up, down = (decayed_hours(s.pieces, which, t, math.inf) for which in (False, True))
    f["failing_share_ever"] = down / (up + down) if up + down else failing

    members = {p.target for p in history if p.group == last.group}
    pool = {u: series([p for p in history if p.target == u], t, known_for_ms) for u in members}
    onsets = sum(len(x.onsets) for x in pool.values())
    up_hours = sum(decayed_hours(x.closed, False, t, math.inf) for x in pool.values())
    rate = (onsets + PRIOR_ONSETS) / (up_hours + PRIOR_ONSETS / TYPICAL_ONSETS_PER_H)
    f["log_onset_rate_group"] = math.log(rate)
    for name, half_life in HALF_LIVES.items():
        onsets = sum(fade(t - onset, half_life) for onset in s.onsets)
        rate = (onsets + PRIOR_ONSETS) / (decayed_hours(s.pieces, False, t, half_life) + PRIOR_ONSETS / rate)
        f[f"log_onset_rate_{name}"] = math.log(rate)

    week_rate = math.exp(f["log_onset_rate_7d"])
    with_onset = {onset // HOUR for onset in s.onsets}
    hour, part = t // HOUR, t % HOUR / HOUR
    watched_days = (t - known[0].ts_ms) / DAY if known else 0

    def seen(first_hour: int, hours: int) -> bool:
        return any(first_hour + k in with_onset for k in range(hours))

    for hours in (1, 6, 24):
        for prefix, near in (("", 0), ("near_", 1)) if hours < 24 else (("", 0),):
            for half_life in (4, 14):
                marked = weight = 0.0
                for back in range(1, 29):
                    if back <= watched_days:
                        w = 0.5 ** ((back - 1) / half_life)
                        start, length = hour - 24 * back - near, hours + 2 * near
                        marked += w * ((1 - part) * seen(start, length) + part * seen(start + 1, length))
                        weight += w
                prior = PRIOR_DAYS * within(week_rate, hours + 2 * near)
                f[f"log_clock_{prefix}{hours}h_{half_life}d"] = math.log((marked + prior) / (weight + PRIOR_DAYS))
    first_of_day: dict[int, int] = {}
    for onset in s.onsets:
        first_of_day.setdefault(onset // DAY, onset)

    def weekdays_with(day: int) -> float:
        return sum(fade(t - onset, 2160) for other, onset in first_of_day.items() if (other - day) % 7 == 0)

    day, part = divmod(t, DAY)
    marked = (1 - part / DAY) * weekdays_with(day) + part / DAY * weekdays_with(day + 1)
    weeks = sum(decayed_hours(s.pieces, which, t, 2160) for which in (False, True)) / 24 / 7
    f["weekday_onset_share"] = min((marked + PRIOR_WEEKDAYS * within(week_rate, 24)) / (weeks + PRIOR_WEEKDAYS), 1)

    for k in (1, 2, 3, 5, 8, 16):
        first = known[0].ts_ms if known else t
        then = s.onsets[-k] if len(s.onsets) >= k else first - k * NEVER_DAYS * DAY
        f[f"log_onset_ago_{k}"] = math.log((t - then) / HOUR + SHORT_H)

    end_rate = (len(s.onsets) + 1) / (down + 1 / TYPICAL_ENDS_PER_H)
    recent_onsets = s.onsets[-16:]
    cycles = [(b - a) / HOUR for a, b in itertools.pairwise(recent_onsets)]
    since_onset = (t - s.onsets[-1]) / HOUR if s.onsets else 0.0
    for run, recent, present, rate in (
        ("up", s.ups[-16:], age if failing == 0 else 0.0, week_rate),
        ("cycle", cycles, since_onset, week_rate),
        ("outage", s.outages[-8:], age if failing == 1 else 0.0, end_rate),
    ):
        weighted = [(x, RUN_FADES**k) for k, x in enumerate(reversed(recent)) if x > present]
        for hours in (1, 6, 24):
            ended = sum(w for x, w in weighted if x <= present + hours)
            share = (ended + PRIOR_RUNS * within(rate, hours)) / (sum(w for _, w in weighted) + PRIOR_RUNS)
            f[f"log_{run}_ends_{hours}h"] = math.log(share)
        if run != "cycle":
            f[f"log_last_{run}_hours"] = math.log1p(recent[-1]) if recent else math.nan
            f[f"log_mean_{run}_hours"] = math.log1p(sum(recent) / len(recent)) if recent else math.nan
    newest = [math.log(x + SHORT_H) for x in s.ups[-3:]]
    f["log_typical_up_hours"] = sum(newest) / len(newest) if newest else math.nan
    recent = s.ups[-16:]
    f["short_up_share"] = sum(x < 1 for x in recent) / len(recent) if recent else math.nan

    f["status_code"] = last.status_code
    f["log_total_ms"], f["log_first_byte_ms"] = math.log1p(last.total_ms), math.log1p(last.first_byte_ms)
    timed = [(p.total_ms, fade(t - p.ts_ms, 168)) for p in known if p.health == 1 and p.total_ms > 0]
    weight = sum(w for _, w in timed)
    usual = sum(w * math.log(x) for x, w in timed) / weight if timed else math.nan
    f["log_latency_ratio"] = math.log(last.total_ms) - usual
    left = (last.cert_expires_ms - t) / DAY
    f["cert_days_left"] = min(max(left, -30), 400) if last.cert_expires_ms else math.nan

    for name in ("host", "group"):
        mates = {p.target for p in history if getattr(p, name) == getattr(last, name)} - {url}
        states = []
        onsets = 0.0
        for mate in mates:
            told = [p for p in history if p.target == mate and p.health >= 0]
            if told and t // DAY - told[-1].ts_ms // DAY < 3:
                states.append(told[-1].health == 0)
            mate_series = series([p for p in history if p.target == mate], t, known_for_ms)
            onsets += sum(fade(t - onset, 2) for onset in mate_series.onsets)
        f[f"{name}_others_failing"] = sum(states) / len(states) if states else math.nan
        f[f"log_{name}_others_onsets"] = math.log1p(onsets)

    angle = 2 * math.pi * (t % DAY) / DAY
    f["hour_sin"], f["hour_cos"] = math.sin(angle), math.cos(angle)
    f["weekend"] = float((t // DAY + 3) % 7 >= 5)
    return f
