"""Pages for people: URLs by risk, and Swagger UI. Everything that they load comes from this server."""

import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from fastapi import APIRouter, Request, Response
from starlette.templating import Jinja2Templates

from serving.dependencies import PlatformDep
from urlhealth.errors import NoModel
from urlhealth.features.wording import duration
from urlhealth.platform import Platform
from urlhealth.vocabulary import LOCAL_OWNER, FeatureVector, Freshness, Health

router = APIRouter(include_in_schema=False)

HORIZON: Final = "24h"
MAX_ROWS: Final = 200
#: Time for which the list is shown again as it is: making it scores every target.
KEPT_S: Final = 5

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


class Overview:
    """What the list shows, made by one request at a time and kept for a few seconds. Many threads may use one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made_ms: int | None = None
        self._context: dict[str, Any] = {}

    def context(self, platform: Platform) -> dict[str, Any]:
        """The template's variables."""
        with self._lock:
            now_ms = platform.clock()
            if self._made_ms is None or not 0 <= now_ms - self._made_ms < KEPT_S * 1000:
                self._context = _context(platform)
                self._made_ms = now_ms
            return self._context


@router.get("/")
def overview(request: Request, platform: PlatformDep) -> Response:
    """URLs by risk, riskiest first; without a model, URLs with their state."""
    context = cast(Overview, request.app.state.overview).context(platform)
    return _templates.TemplateResponse(request, "overview.html", context, headers=_HEADERS)


@router.get("/docs")
def docs(request: Request) -> Response:
    """Swagger UI."""
    return _templates.TemplateResponse(request, "docs.html", headers=_HEADERS)


def _context(platform: Platform) -> dict[str, Any]:
    try:
        rows, model = _by_risk(platform)
    except NoModel:
        rows, model = _without_model(platform), None
    return {"rows": rows, "model": model, "horizon": HORIZON, "total": platform.crawl.counts()["targets"]}


def _by_risk(platform: Platform) -> tuple[list[Row], str]:
    champion = platform.predictor.champion()
    predictions = platform.predictor.ranked(horizon=HORIZON, limit=MAX_ROWS, explain=True)
    simulated = platform.crawl.simulated_targets([p.target for p in predictions], owner=LOCAL_OWNER)
    rows = [
        Row(
            target=p.target,
            health=p.health,
            freshness=p.status,
            age_s=p.age_s,
            probability=p.probability,
            reason=p.reasons[0].text if p.reasons else "",
            simulated=p.target in simulated,
        )
        for p in predictions
    ]
    return rows, f"{champion.name} version {champion.version}"


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
