"""The columns of carried state, each written once: what Feast stores of a URL, a host and a group."""

import math
from dataclasses import replace
from typing import Final

from urlhealth.features.columns import Column, StateView
from urlhealth.features.decay import HALF_LIFE_NAMES, HALF_LIVES_H

#: Tiles are whole UTC hours and days. Element 0 is the tile of `known_ms` so far, element k the k-th tile before it.
HOUR_TILES: Final = 1 + 24
DAY_TILES: Final = 1 + 30
#: How many onsets, up-times that ended in one, and outages that ended are kept.
RECENT_ONSETS: Final = 16
RECENT_OUTAGES: Final = 8
#: A pool counts a URL for the UTC day of its last known verdict and this many days in all.
POOL_DAYS: Final = 3
#: Half-life of the histogram by weekday, out of HALF_LIVES_H.
WEEKDAY_HALF_LIFE: Final = HALF_LIFE_NAMES.index("90d")


def _sums(whose: str) -> tuple[Column, ...]:
    """The decayed sums, as of `known_ms`, one element per half-life of HALF_LIVES_H (the last: never decayed)."""
    n = len(HALF_LIVES_H)
    return (
        Column(name="onsets", dtype="float64", length=n, about=f"Onsets {whose}, decayed: up to down while known."),
        Column(name="up_hours", dtype="float64", length=n, about=f"Hours up {whose}, decayed."),
        Column(name="failing_hours", dtype="float64", length=n, about=f"Hours failing {whose}, decayed."),
    )


def _tiles(tile: str, n: int) -> tuple[Column, ...]:
    return (
        Column(name=f"{tile}_known_ms", dtype="int32", length=n, about=f"Time known up or failing, by {tile} tile."),
        Column(name=f"{tile}_failing_ms", dtype="int32", length=n, about=f"Time failing, by {tile} tile."),
        Column(name=f"{tile}_flips", dtype="int32", length=n, about=f"Changes between up and failing, by {tile} tile."),
    )


#: Columns that every verdict overwrites with its own fields of the same name.
LAST_VERDICT: Final = (
    Column(name="outcome", dtype="int32", initial=-1, about="Outcome.code of the newest verdict; -1 before any."),
    Column(name="status_code", dtype="int32", about="HTTP status of the newest verdict, 0 without one."),
    Column(name="dns_ms", dtype="float32", initial=math.nan, about="Time for the name in the newest verdict."),
    Column(name="connect_ms", dtype="float32", initial=math.nan, about="Time for TCP in the newest verdict."),
    Column(name="tls_ms", dtype="float32", initial=math.nan, about="Time for TLS in the newest verdict."),
    Column(name="first_byte_ms", dtype="float32", initial=math.nan, about="Time to first byte in the newest verdict."),
    Column(name="total_ms", dtype="float32", initial=math.nan, about="Time for everything in the newest verdict."),
    Column(name="size_bytes", dtype="int64", about="Body bytes read in the newest verdict."),
    Column(
        name="http_version",
        dtype="int32",
        about="HTTP version of the newest verdict's answer: 10, 11, 20 or 30 (1.0 to 3), 0 without one.",
    ),
    Column(name="redirects", dtype="int32", about="Redirects followed in the newest verdict."),
    Column(
        name="cert_expires_ms", dtype="int64", about="When the certificate of the newest verdict expires, 0 without."
    ),
)

URL_STATE: Final = StateView(
    name="url_state",
    entity="url",
    columns=(
        Column(name="probed_ms", dtype="int64", about="When the newest verdict's probe began; 0 before any."),
        *LAST_VERDICT,
        Column(name="first_known_ms", dtype="int64", about="The first verdict that said up or down; 0 before any."),
        Column(name="known_ms", dtype="int64", about="The newest verdict that said up or down; 0 before any."),
        Column(name="failing", dtype="int32", initial=-1, about="What that one said: 1 down, 0 up, -1 before any."),
        Column(name="since_ms", dtype="int64", about="Start of the present state, as seen: a gap starts it anew."),
        Column(name="checks", dtype="int64", about="Verdicts that said up or down."),
        Column(name="consecutive_failures", dtype="int32", about="Verdicts down in a row, up to the newest."),
        *_sums("of this URL"),
        *_tiles("hour", HOUR_TILES),
        *_tiles("day", DAY_TILES),
        Column(
            name="recent_onset_ms",
            dtype="int64",
            length=RECENT_ONSETS,
            about="The newest onsets, newest first; 0 for those that there were not.",
        ),
        Column(
            name="recent_up_hours",
            dtype="float64",
            length=RECENT_ONSETS,
            initial=math.nan,
            about="Lengths in hours of the newest up-times that ended in an onset, newest first.",
        ),
        Column(
            name="recent_outage_hours",
            dtype="float64",
            length=RECENT_OUTAGES,
            initial=math.nan,
            about="Lengths in hours of the newest outages that were seen to end, newest first.",
        ),
        Column(
            name="onset_hours",
            dtype="int32",
            length=DAY_TILES,
            about="By day tile: bit h is set if an onset fell into the UTC hour h of the day.",
        ),
        Column(
            name="weekday_onsets",
            dtype="float32",
            length=7,
            about="By UTC weekday, Monday first: past days that had an onset, decayed (90 d) as of the newest onset.",
        ),
        Column(name="latency_log_sum", dtype="float64", about="Sum of ln(total ms) of verdicts up, decayed (7 d)."),
        Column(name="latency_log_squares", dtype="float64", about="Sum of ln(total ms) squared, of the same, alike."),
        Column(name="latency_weight", dtype="float64", about="How many such verdicts, decayed alike."),
        Column(
            name="degraded",
            dtype="int32",
            about="1 if the newest verdict that said up or down said up, and slow for this URL; else 0.",
        ),
        Column(name="degraded_checks", dtype="int64", about="Those of `checks` that were so."),
    ),
)


#: The state of all URLs of one host or group together, from what their verdicts have confirmed.
POOL_STATE: Final = StateView(
    name="pool_state",
    entity="pool",
    columns=(
        Column(name="known_ms", dtype="int64", about="The newest known verdict of any of its URLs."),
        Column(
            name="urls",
            dtype="int32",
            length=POOL_DAYS,
            about="URLs whose last known verdict is of the UTC day of `known_ms`, of the day before, and so on.",
        ),
        Column(name="urls_failing", dtype="int32", length=POOL_DAYS, about="Those of `urls` that were failing."),
        *_sums("of all its URLs"),
    ),
)


def _pooled(entity: str) -> StateView:
    """POOL_STATE of one kind of entity. Its columns have names of their own, as Feast wants it within a service."""
    columns = tuple(replace(column, name=f"{entity}_{column.name}") for column in POOL_STATE.columns)
    return StateView(name=f"{entity}_state", entity=entity, columns=columns)


HOST_STATE: Final = _pooled("host")
GROUP_STATE: Final = _pooled("group")
STATE_VIEWS: Final = (URL_STATE, HOST_STATE, GROUP_STATE)
