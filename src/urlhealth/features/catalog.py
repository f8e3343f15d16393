"""The features, each written once: the views of carried state, and the vector that models see.

Feast's schema, the Parquet and packed layouts, the training frame, the model's signature and the sentences of an
explanation all derive from these tables.
"""

import math
from typing import Final

from urlhealth.features.columns import Feature
from urlhealth.features.decay import HALF_LIFE_NAMES
from urlhealth.features.views import GROUP_STATE, HOST_STATE, STATE_VIEWS, URL_STATE
from urlhealth.features.wording import formatted
from urlhealth.vocabulary import HORIZONS_H

__all__ = ["GROUP_STATE", "HOST_STATE", "STATE_VIEWS", "URL_STATE", "VECTOR", "WINDOWS", "describe"]

#: Windows of failure shares: name, tile, whole tiles before the present one.
WINDOWS: Final = (("1h", "hour", 1), ("24h", "hour", 24), ("7d", "day", 7), ("30d", "day", 30))
_LONG: Final = {"1h": "hour", "24h": "24 hours", "7d": "7 days", "30d": "30 days"}
#: Half-lives, in days, of the shares of past days with an onset in the coming hours of the day; by how many hours such
#: a span is widened on either side to be a near one.
CLOCK_HALF_LIVES_D: Final = (4, 14)
CLOCK_NEAR_H: Final = 1
#: The newest onset, the second newest and so on, of which models see how long ago each was.
ONSETS_AGO: Final = (1, 2, 3, 5, 8, 16)
_RATE_SPANS: Final = {
    "30m": "half hour",
    "2h": "2 hours",
    "12h": "12 hours",
    "2d": "2 days",
    "7d": "week",
    "30d": "month",
    "90d": "3 months",
}

_STATE: Final = (
    Feature(name="failing_now", form="state", about="1 failing, 0 up, NaN not known now.", reason="it is {value} now"),
    Feature(
        name="state_hours",
        form="hours",
        about="Hours in the present state.",
        reason="in its present state for {value}",
    ),
    Feature(
        name="log_state_hours",
        form="log_hours",
        about="ln(1 + hours in the present state).",
        reason="in its present state for {value}",
    ),
    Feature(
        name="log_state_minutes",
        form="log_short_hours",
        about="ln(0.1 + hours in the present state).",
        reason="in its present state for {value}",
    ),
    Feature(
        name="failing_log_hours",
        form="log_hours",
        about="ln(1 + hours in the present outage), 0 while up.",
        reason="failing now, for {value}",
        zero="not failing now",
    ),
    Feature(
        name="log_consecutive_failures",
        form="log_count",
        about="ln(1 + failing verdicts in a row).",
        reason="its last {value} checks in a row failed",
        zero="its last check did not fail",
    ),
    Feature(
        name="log_probe_age_hours",
        form="log_hours",
        about="ln(1 + hours since the newest probe).",
        reason="last probed {value} ago",
    ),
    Feature(
        name="log_known_hours",
        form="log_hours",
        about="ln(1 + hours since the first known verdict).",
        reason="watched for {value}",
    ),
)

_WINDOWED: Final = (
    *(
        Feature(
            name=f"failing_share_{window}",
            form="share",
            about=f"Share of the known time of the last {_LONG[window]} that it was failing (whole UTC {tile}s and the "
            "present one so far).",
            reason=f"failing {{value}} of the last {_LONG[window]}",
            zero=f"never failing in the last {_LONG[window]}",
        )
        for window, tile, _ in WINDOWS
    ),
    Feature(
        name="failing_share_ever",
        form="share",
        about="Share of all its known time that it was failing.",
        reason="failing {value} of all the time that it was watched",
        zero="never seen failing",
    ),
    *(
        Feature(
            name=f"log_flips_{window}",
            form="log_count",
            about=f"ln(1 + changes between up and failing in the last {_LONG[window]}).",
            reason=f"changed between up and failing {{value}} times in the last {_LONG[window]}",
            zero=f"no change between up and failing in the last {_LONG[window]}",
        )
        for window in ("24h", "7d")
    ),
)

_RATES: Final = (
    Feature(
        name="log_onset_rate_group",
        form="log_rate",
        about="ln of onsets per up-hour of the whole group, ever.",
        reason="its group as a whole has an outage every {value} of up-time",
    ),
    Feature(
        name="log_onset_rate_ever",
        form="log_rate",
        about="ln of onsets per up-hour of this URL, ever, drawn towards its group's.",
        reason="an outage every {value} of up-time, over all its history",
    ),
    *(
        Feature(
            name=f"log_onset_rate_{span}",
            form="log_rate",
            about=f"ln of onsets per up-hour with a half-life of {span}, drawn towards the next slower rate.",
            reason=f"an outage every {{value}} of up-time, over about the last {_RATE_SPANS[span]}",
        )
        for span in reversed(HALF_LIFE_NAMES[:-1])
    ),
)

_CLOCK: Final = (
    *(
        Feature(
            name=f"log_clock_{prefix}{hours}h_{days}d",
            form="log_share",
            about=f"ln of the share of past days with an onset in the hours of the day {span}, decayed ({days} d), "
            "drawn towards its rate.",
            reason=f"an outage began {near}in the coming {f'{hours} hours' if hours > 1 else 'hour'} of the day on "
            f"{{value}} of the {'last few days' if days < 7 else 'days of the last weeks'}",
        )
        for hours in HORIZONS_H
        for prefix, near, span in (
            ("", "", f"(t, t + {hours} h]"),
            ("near_", "about ", f"(t - {CLOCK_NEAR_H} h, t + {hours + CLOCK_NEAR_H} h]"),
        )[: 2 if hours < 24 else 1]
        for days in CLOCK_HALF_LIVES_D
    ),
    Feature(
        name="weekday_onset_share",
        form="share",
        about="Share of past days with an onset, of the weekdays that the next 24 h fall on, decayed (90 d).",
        reason="an outage began on {value} of past days of this weekday",
    ),
)

_RUNS: Final = (
    *(
        Feature(
            name=f"log_onset_ago_{k}",
            form="log_short_hours",
            about=f"ln(0.1 + hours since onset {k}, counted from the newest).",
            reason=f"{'its last outage' if k == 1 else f'its last {k} outages'} began within {{value}}",
        )
        for k in ONSETS_AGO
    ),
    *(
        Feature(
            name=f"log_{run}_ends_{hours}h",
            form="log_share",
            about=f"ln of the share of its recent {text} longer than the present one that ended within {hours} h more; "
            "newer ones weigh more.",
            reason=f"{{value}} of its {text} as long as this one ended within {hours} h more",
        )
        for run, text in (("up", "up-times"), ("cycle", "times between outages"), ("outage", "outages"))
        for hours in HORIZONS_H
    ),
    Feature(
        name="log_typical_up_hours",
        form="log_short_hours",
        about="Mean of ln(0.1 + hours) of its last three complete up-times.",
        reason="its last up-times took about {value}",
    ),
    Feature(
        name="short_up_share",
        form="share",
        about="Of its recent up-times, the share below one hour.",
        reason="{value} of its recent up-times took less than an hour",
    ),
    *(
        Feature(
            name=f"log_{which}_{run}_hours",
            form="log_hours",
            about=f"ln(1 + hours of its {text}).",
            reason=f"its {text} took {{value}}",
        )
        for run, word in (("up", "up-time"), ("outage", "outage"))
        for which, text in (("last", f"last complete {word}"), ("mean", f"mean recent {word}"))
    ),
)

_LAST: Final = (
    Feature(
        name="status_code",
        form="number",
        about="HTTP status of the newest verdict, 0 without an answer.",
        reason="its last answer had status {value}",
        zero="its last probe got no answer",
    ),
    Feature(name="log_total_ms", form="log_ms", about="ln(1 + ms of the newest probe).", reason="answered in {value}"),
    Feature(
        name="log_first_byte_ms",
        form="log_ms",
        about="ln(1 + ms to the first byte of the newest probe).",
        reason="first byte after {value}",
    ),
    Feature(
        name="log_latency_ratio",
        form="log_ratio",
        about="ln of the newest probe's time over its usual time (geometric mean of the last days).",
        reason="took {value} its usual time",
    ),
    Feature(
        name="cert_days_left",
        form="days",
        about="Days until its certificate expires, between -30 and 400; NaN without one.",
        reason="its certificate has {value} left",
    ),
)

_NEIGHBOURS: Final = (
    *(
        Feature(
            name=f"{pool}_others_failing",
            form="share",
            about=f"Share of the other known URLs of its {pool} that are failing; NaN without others.",
            reason=f"{{value}} of the other URLs of its {pool} are failing",
            zero=f"no other URL of its {pool} is failing",
        )
        for pool in ("host", "group")
    ),
    *(
        Feature(
            name=f"log_{pool}_others_onsets",
            form="log_count",
            about=f"ln(1 + onsets of the other URLs of its {pool}, decayed with a half-life of 2 h).",
            reason=f"about {{value}} outages of other URLs of its {pool} in the last hours",
            zero=f"no outage of other URLs of its {pool} in the last hours",
        )
        for pool in ("host", "group")
    ),
)

_CALENDAR: Final = (
    Feature(name="hour_sin", form="number", about="Sine of the UTC time of day.", reason="the time of day"),
    Feature(name="hour_cos", form="number", about="Cosine of the UTC time of day.", reason="the time of day"),
    Feature(
        name="weekend",
        form="number",
        about="1 on Saturday and Sunday (UTC), otherwise 0.",
        reason="it is the weekend",
        zero="it is a working day",
    ),
)

#: What models see, in this order.
VECTOR: Final[tuple[Feature, ...]] = (
    *_STATE,
    *_WINDOWED,
    *_RATES,
    *_CLOCK,
    *_RUNS,
    *_LAST,
    *_NEIGHBOURS,
    *_CALENDAR,
)


def describe(feature_index: int, value: float) -> str:
    """The value of one entry of VECTOR as a sentence without a full stop: "failing now, for 3.2 hours"."""
    feature = VECTOR[feature_index]
    if math.isnan(value):
        return f"not known: {feature.name.removeprefix('log_').replace('_', ' ')}"
    if value == 0 and feature.zero is not None:
        return feature.zero
    return feature.reason.replace("{value}", formatted(feature, value))
