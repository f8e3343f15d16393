"""Features and predictions by URL."""

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, field_validator

from serving.freshness import OnStale
from serving.schemas.common import (
    FewUrls,
    Horizon,
    RequestBody,
    Target,
    Time,
    Url,
    rfc3339,
    rfc3339_or_none,
)
from urlhealth import vocabulary as words
from urlhealth.crawl.current import CurrentPrediction
from urlhealth.vocabulary import Freshness, Health


class FeaturesRequest(RequestBody):
    """URLs whose features are wanted."""

    urls: FewUrls


class Known(BaseModel):
    """What every item says about the knowledge that it rests on."""

    url: Url
    target: Target
    status: Freshness = Field(
        description="`fresh`; `stale` if the newest verdict is too old to say how it is now; `missing` if never probed."
    )
    age_s: float | None = Field(description="Age of the newest probe.")
    observed_at: Time | None = Field(description="When the newest probe was made.")


class FeaturesItem(Known):
    """The features of one URL, now."""

    features: dict[str, float | None] | None = Field(
        description="By name, null where unknown; null as a whole for a URL never seen."
    )

    @classmethod
    def of(cls, vector: words.FeatureVector) -> Self:
        """The vector as a reply."""
        return cls(
            url=vector.sent_url,
            target=vector.target,
            status=vector.status,
            age_s=vector.age_s,
            observed_at=rfc3339_or_none(vector.observed_ms),
            # NaN is "unknown" in a vector, and null in JSON.
            features=None
            if vector.values is None
            else {name: value if value == value else None for name, value in vector.values.items()},
        )


class Features(BaseModel):
    """One item a URL, in the order in which they were sent."""

    items: list[FeaturesItem]


class PredictionsRequest(RequestBody):
    """URLs whose forecast is wanted."""

    urls: FewUrls
    horizons: list[Horizon] = Field(["24h"], min_length=1, max_length=3, json_schema_extra={"uniqueItems": True})
    explain: bool = Field(False, description="Whether to give reasons.")
    max_age_s: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Age of the newest probe above which it is `stale` here."
    )
    on_stale: OnStale = Field(
        "value", description="Where it is not `fresh`: answer all the same, without probabilities, or not at all (409)."
    )

    probe: Literal["never", "if_stale"] = Field(
        "never", description="`if_stale`: URLs that are not `fresh` are probed first, and waited for."
    )
    probe_wait_s: float = Field(5.0, gt=0, le=30, description="How long to wait for them at most.")

    @field_validator("horizons")
    @classmethod
    def _each_once(cls, horizons: list[Horizon]) -> list[Horizon]:
        return list(dict.fromkeys(horizons))


class Reason(BaseModel):
    """A feature that moved a prediction."""

    feature: str
    value: float | None = Field(description="Null where unknown.")
    contribution: float = Field(description="By how much it moved the log-odds.")
    text: str


class PredictionsItem(Known):
    """The forecast for one URL and one horizon."""

    horizon: Horizon
    probability: float | None = Field(
        description="Of being seen failing at any time within the horizon; null for a URL never seen."
    )
    probability_at_end: float | None = Field(description="Of failing at the horizon's end.")
    health: Health = Field(description="What the newest verdict said; `unknown` if that is too old.")
    model: str
    model_version: str
    reasons: list[Reason] = Field(description="Most moving first; empty unless asked for.")

    @classmethod
    def of(cls, prediction: words.Prediction) -> Self:
        """The prediction as a reply."""
        return cls(
            url=prediction.sent_url,
            target=prediction.target,
            status=prediction.status,
            age_s=prediction.age_s,
            observed_at=rfc3339_or_none(prediction.observed_ms),
            horizon=prediction.horizon,
            probability=prediction.probability,
            probability_at_end=prediction.probability_at_end,
            health=prediction.health,
            model=prediction.model,
            model_version=prediction.model_version,
            reasons=[Reason(**reason) for reason in _reasons(prediction.reasons)],
        )


def predictions_items(forecasts: words.Forecasts) -> list[dict[str, Any]]:
    """The fields of a :class:`PredictionsItem` for each URL and horizon.

    Hundreds of them are quicker written as they are than as models.
    """
    observed_at = [*map(rfc3339_or_none, forecasts.observed_ms)]
    each, model, version, reasons = len(forecasts.horizons), forecasts.model, forecasts.model_version, forecasts.reasons
    return [
        {
            "url": url,
            "target": target,
            "status": status,
            "age_s": age_s,
            "observed_at": observed_at[i // each],
            "horizon": horizon,
            "probability": probability,
            "probability_at_end": at_end,
            "health": health,
            "model": model,
            "model_version": version,
            "reasons": _reasons(reasons[horizon][i // each]) if reasons else (),
        }
        for i, (url, target, horizon, probability, at_end, status, health, age_s, *_) in enumerate(forecasts.rows())
    ]


def _reasons(reasons: Sequence[words.Reason]) -> list[dict[str, Any]]:
    return [
        {
            "feature": reason.feature,
            "value": reason.value if reason.value == reason.value else None,
            "contribution": reason.contribution,
            "text": reason.text,
        }
        for reason in reasons
    ]


class Predictions(BaseModel):
    """One item a URL and horizon, URLs outermost, in the order in which they were sent."""

    request_id: str = Field(description="Under which the predictions are logged; also the header X-Request-ID.")
    items: list[PredictionsItem]


class CurrentItem(PredictionsItem):
    """The forecast that is kept of one target, with its reasons."""

    scored_at: Time = Field(description="When the forecast was made; `status` and `health` are of then.")

    @classmethod
    def of_current(cls, current: CurrentPrediction) -> Self:
        """The forecast as a reply."""
        item = PredictionsItem.of(current.prediction)
        return cls(**dict(item), scored_at=rfc3339(current.scored_ms))
