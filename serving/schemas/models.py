"""How good what was served has been."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from serving.schemas.common import Horizon, Time, rfc3339
from urlhealth.prediction.quality import LiveQuality
from urlhealth.vocabulary import MODEL_NAME


class ReliabilityBin(BaseModel):
    """Predictions between two probabilities."""

    model_config = ConfigDict(from_attributes=True)

    low: float
    high: float
    n: int
    predicted: float = Field(description="Mean probability.")
    observed: float = Field(description="How often it came true.")


class QualityItem(BaseModel):
    """One version's forecasts within one horizon."""

    model_config = ConfigDict(from_attributes=True)

    model_version: str
    horizon: Horizon
    n: int = Field(description="Predictions whose outcome is known.")
    unknown: int = Field(description="Predictions whose outcome is not known, or not yet.")
    base_rate: float | None = Field(description="Share of failures among the outcomes.")
    average_precision: float | None = Field(description="Null while nothing has failed.")
    brier: float | None = Field(description="Mean squared difference of probability and outcome.")
    reliability: list[ReliabilityBin]


class Quality(BaseModel):
    """By version and horizon."""

    model: str
    champion: str | None = Field(description="The version that serves now; others were champions before, or shadows.")
    start: Time = Field(alias="from")
    to: Time
    every: int = Field(description="Of so many predictions one was looked at: all, unless they are very many.")
    items: list[QualityItem]

    @classmethod
    def of(cls, found: LiveQuality, *, champion: str | None) -> Self:
        """The figures as a reply."""
        return cls.model_validate(
            {
                "model": MODEL_NAME,
                "champion": champion,
                "from": rfc3339(found.from_ms),
                "to": rfc3339(found.to_ms),
                "every": found.every,
                "items": [QualityItem.model_validate(figures) for figures in found.figures],
            }
        )
