"""What a request for predictions says about how old the knowledge may be that they rest on."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from urlhealth.errors import TooOld
from urlhealth.vocabulary import Freshness, Prediction

OnStale = Literal["value", "null", "error"]


def judged(predictions: Sequence[Prediction], *, max_age_s: float | None, on_stale: OnStale) -> list[Prediction]:
    """The predictions; those from a probe older than `max_age_s` are `stale`, and treated as `on_stale` says.

    Raises:
        TooOld: `on_stale` is `error` and some are not fresh; names the positions of their URLs.
    """
    aged = _aged(predictions, max_age_s)
    if on_stale == "null":
        return [p if p.status is Freshness.FRESH else _without_probability(p) for p in aged]
    if on_stale == "error":
        of_each_url = aged[:: len({p.horizon for p in aged})]
        problems = {i: _why(p) for i, p in enumerate(of_each_url) if p.status is not Freshness.FRESH}
        if problems:
            raise TooOld(problems)
    return aged


def not_fresh(predictions: Sequence[Prediction], *, max_age_s: float | None) -> list[str]:
    """The URLs, each once, of which too little is known, or what is known is older than `max_age_s`."""
    aged = _aged(predictions, max_age_s)
    return list(dict.fromkeys(p.sent_url for p in aged if p.status is not Freshness.FRESH))


def _aged(predictions: Sequence[Prediction], max_age_s: float | None) -> list[Prediction]:
    return [replace(p, status=Freshness.STALE) if _is_older(p, max_age_s) else p for p in predictions]


def _is_older(prediction: Prediction, max_age_s: float | None) -> bool:
    return max_age_s is not None and prediction.age_s is not None and prediction.age_s > max_age_s


def _without_probability(prediction: Prediction) -> Prediction:
    return replace(prediction, probability=None, probability_at_end=None, reasons=())


def _why(prediction: Prediction) -> str:
    if prediction.age_s is None:
        return "was never probed"
    return f"was last probed {prediction.age_s:.0f} s ago: probe it (POST /api/v1/tasks), or allow it to be older"
