"""The first page: what will fail next, and why; and Swagger UI. All that they load comes from this server."""

import math
from dataclasses import dataclass
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from serving.dependencies import Cursor, PlatformDep
from serving.rendering import render
from urlhealth.crawl.current import CurrentPrediction
from urlhealth.features.wording import duration
from urlhealth.platform import Platform
from urlhealth.vocabulary import LOCAL_OWNER, FeatureVector, Freshness, Health

router = APIRouter(include_in_schema=False)

HORIZON: Final = "24h"
MAX_ROWS: Final = 50


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the list."""

    target: str
    url: str
    #: Of a target with options of its own.
    name: str | None = None
    health: Health
    freshness: Freshness
    #: Age of the newest probe.
    age_s: float | None
    probability: float | None = None
    reason: str = ""
    simulated: bool

    @property
    def age(self) -> str:
        """The newest probe's age, in words."""
        return "never" if self.age_s is None else f"{duration(self.age_s / 3600)} ago"


@router.get("/")
def overview(request: Request, platform: PlatformDep, cursor: Cursor = None) -> Response:
    """URLs by risk, riskiest first; where nothing is predicted yet, URLs with their state."""
    return render(request, "overview.html", _context(platform, cursor))


@router.get("/docs")
def docs(request: Request) -> Response:
    """Swagger UI."""
    return render(request, "docs.html")


def _context(platform: Platform, cursor: str | None) -> dict[str, Any]:
    page = platform.current.riskiest(horizon=HORIZON, limit=MAX_ROWS, cursor=cursor, owner=LOCAL_OWNER)
    rows = [_row(item) for item in page.items]
    champion = platform.champion.current
    first = page.items[0].prediction if page.items else None
    return {
        "rows": rows or _without_model(platform),
        "model": None if first is None else f"{first.model} version {first.model_version}",
        "horizon": HORIZON,
        "counts": platform.overview.counts(owner=LOCAL_OWNER),
        "pace": platform.overview.probes_per_s(),
        "lag": platform.pipeline_lag(),
        "champion": None if champion is None else champion.version,
        "next_cursor": page.next_cursor,
    }


def _row(item: CurrentPrediction) -> Row:
    prediction = item.prediction
    return Row(
        target=prediction.target,
        url=prediction.sent_url,
        name=prediction.target[len(prediction.sent_url) + 1 :] or None,
        health=prediction.health,
        freshness=prediction.status,
        age_s=prediction.age_s,
        probability=prediction.probability,
        reason=prediction.reasons[0].text if prediction.reasons else "",
        simulated=item.simulated,
    )


def _without_model(platform: Platform) -> list[Row]:
    targets = platform.crawl.targets(limit=MAX_ROWS, owner=LOCAL_OWNER).items
    vectors = platform.predictor.features([target.url for target in targets])
    simulated = platform.crawl.simulated_targets([target.key for target in targets], owner=LOCAL_OWNER)
    return [
        Row(
            target=vector.target,
            url=vector.sent_url,
            health=_health(vector),
            freshness=vector.status,
            age_s=vector.age_s,
            simulated=vector.target in simulated,
        )
        for vector in vectors
    ]


def _health(vector: FeatureVector) -> Health:
    if vector.values is None or math.isnan(vector.values["failing_now"]):
        return Health.UNKNOWN
    return Health.DOWN if vector.values["failing_now"] else Health.UP
