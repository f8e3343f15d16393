"""Pages for people: URLs by risk, and Swagger UI. Everything that they load comes from this server."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from starlette.templating import Jinja2Templates

from serving.dependencies import PlatformDep
from urlhealth.crawl.current import CurrentPrediction
from urlhealth.features.wording import duration
from urlhealth.platform import Platform
from urlhealth.vocabulary import LOCAL_OWNER, FeatureVector, Freshness, Health

router = APIRouter(include_in_schema=False)

HORIZON: Final = "24h"
MAX_ROWS: Final = 200

_templates = Jinja2Templates(Path(__file__).parents[1] / "templates")
_HEADERS: Final = {
    # Swagger UI sets styles and images of its own; scripts come from files only.
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "Referrer-Policy": "same-origin",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the list."""

    target: str
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
def overview(request: Request, platform: PlatformDep) -> Response:
    """URLs by risk, riskiest first; where nothing is predicted yet, URLs with their state."""
    return _templates.TemplateResponse(request, "overview.html", _context(platform), headers=_HEADERS)


@router.get("/docs")
def docs(request: Request) -> Response:
    """Swagger UI."""
    return _templates.TemplateResponse(request, "docs.html", headers=_HEADERS)


def _context(platform: Platform) -> dict[str, Any]:
    riskiest = platform.current.riskiest(horizon=HORIZON, limit=MAX_ROWS, owner=LOCAL_OWNER).items
    return {
        "rows": [_row(item) for item in riskiest] or _without_model(platform),
        "model": f"{riskiest[0].prediction.model} version {riskiest[0].prediction.model_version}" if riskiest else None,
        "horizon": HORIZON,
        "total": platform.crawl.counts()["targets"],
    }


def _row(item: CurrentPrediction) -> Row:
    prediction = item.prediction
    return Row(
        target=prediction.target,
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
