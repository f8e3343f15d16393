"""What a request for predictions says about how old the knowledge may be that they rest on."""

import math
from dataclasses import replace
from typing import Literal

from urlhealth.errors import TooOld
from urlhealth.vocabulary import Forecasts, Freshness

OnStale = Literal["value", "null", "error"]


def judged(forecasts: Forecasts, *, max_age_s: float | None, on_stale: OnStale) -> Forecasts:
    """The forecasts; those from a probe older than `max_age_s` are `stale`, and treated as `on_stale` says.

    Raises:
        TooOld: `on_stale` is `error` and some are not fresh; names the positions of their URLs.
    """
    if max_age_s is None and on_stale == "value":
        return forecasts
    status = _aged(forecasts, max_age_s)
    old = [i for i, each in enumerate(status) if each is not Freshness.FRESH]
    if old and on_stale == "error":
        raise TooOld({i: _why(forecasts.age_s[i]) for i in old})
    forecasts = replace(forecasts, status=status)
    if not old or on_stale == "value":
        return forecasts
    probabilities = forecasts.probabilities.copy()
    probabilities[old] = math.nan
    reasons = {
        horizon: [of_it if each is Freshness.FRESH else () for of_it, each in zip(found, status, strict=True)]
        for horizon, found in forecasts.reasons.items()
    }
    return replace(forecasts, probabilities=probabilities, reasons=reasons)


def not_fresh(forecasts: Forecasts, *, max_age_s: float | None) -> list[str]:
    """The URLs, each once, of which too little is known, or what is known is older than `max_age_s`."""
    status = _aged(forecasts, max_age_s)
    return list(
        dict.fromkeys(url for url, each in zip(forecasts.sent_urls, status, strict=True) if each is not Freshness.FRESH)
    )


def _aged(forecasts: Forecasts, max_age_s: float | None) -> list[Freshness]:
    """Of each URL whether it is fresh, where what is older than `max_age_s` is stale."""
    return [
        Freshness.STALE if max_age_s is not None and age_s is not None and age_s > max_age_s else status
        for status, age_s in zip(forecasts.status, forecasts.age_s, strict=True)
    ]


def _why(age_s: float | None) -> str:
    if age_s is None:
        return "was never probed"
    return f"was last probed {age_s:.0f} s ago: probe it (POST /api/v1/tasks), or allow it to be older"
