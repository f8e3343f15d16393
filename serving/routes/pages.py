"""The first page: what will fail next, and why; logging in; Swagger UI. All that they load comes from this server."""

import math
import re
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from starlette.responses import RedirectResponse

from serving.access import COOKIE
from serving.dependencies import Body, Cursor, Owner, PlatformDep
from serving.rendering import percent, render
from urlhealth.crawl.current import CurrentPrediction
from urlhealth.crawl.keys import SESSION_S
from urlhealth.errors import Unauthenticated
from urlhealth.features.wording import duration
from urlhealth.platform import Platform
from urlhealth.vocabulary import LOCAL_OWNER, FeatureVector, Freshness, Health

router = APIRouter(include_in_schema=False)

HORIZON: Final = "24h"
MAX_ROWS: Final = 50
#: Changes of the risk that are none to speak of.
_STEADY: Final = 0.02


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
    #: Forecasts of the last hours, see `CurrentPrediction`.
    trail: tuple[float | None, ...] = ()
    simulated: bool

    @property
    def points(self) -> str:
        """The trail as the points of an SVG line: an hour is 4 wide, certain failure 20 high."""
        return " ".join(f"{4 * i},{20 - 20 * p:.1f}" for i, p in enumerate(self.trail) if p is not None)

    @property
    def trend(self) -> str:
        """The trail in words; empty where there is none yet."""
        known = [p for p in self.trail if p is not None]
        if len(known) < 2:
            return ""
        change = known[-1] - known[0]
        word = "steady" if abs(change) < _STEADY else "rising" if change > 0 else "falling"
        return f"{word}, from {percent(known[0])}"

    @property
    def age(self) -> str:
        """The newest probe's age, in words."""
        return "never" if self.age_s is None else f"{duration(self.age_s / 3600)} ago"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Mean probability that was said, and how often it came, in the last days."""

    said: float
    came: float
    outcomes: int


@router.get("/")
def overview(
    request: Request, platform: PlatformDep, owner: Owner, now: Health | None = None, cursor: Cursor = None
) -> Response:
    """URLs by risk, riskiest first, all or those that are so `now`; where nothing is predicted yet, their state."""
    return render(request, "overview.html", _context(platform, now, cursor, owner))


@router.get("/login")
def login_page(request: Request, next: str = "/") -> Response:
    """Where a browser shows its API key."""
    return render(request, "login.html", {"next": _inner(next), "problem": ""})


@router.post("/login")
def login(request: Request, body: Body, platform: PlatformDep) -> Response:
    """Take a key, and give the browser a session for it."""
    form: dict[str, str] = {}
    try:
        form = {name: values[0] for name, values in parse_qs(body.decode("latin-1"), max_num_fields=4).items()}
        caller = platform.keys.caller(form.get("key", "").strip())
    except (Unauthenticated, ValueError) as error:
        problem = str(error) if isinstance(error, Unauthenticated) else "the form cannot be read"
        answer = render(request, "login.html", {"next": _inner(form.get("next", "/")), "problem": problem})
        answer.status_code = 401
        return answer
    response = RedirectResponse(_root(request) + _inner(form.get("next", "/")), 303)
    response.set_cookie(
        COOKIE,
        platform.keys.open_session(caller),
        max_age=SESSION_S,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


@router.post("/logout")
def logout(request: Request, platform: PlatformDep) -> Response:
    """End the browser's session."""
    platform.keys.close_session(request.cookies.get(COOKIE, ""))
    response = RedirectResponse(f"{_root(request)}/login", 303)
    response.delete_cookie(COOKIE)
    return response


def _inner(path: str) -> str:
    """The path, if it is a page of this server."""
    return path if re.fullmatch(r"/(docs|ui/[a-z]+(/[A-Za-z0-9_-]+)?)?", path) else "/"


def _root(request: Request) -> str:
    """The path that the application is mounted at."""
    root: str = request.scope.get("root_path", "")
    return root.rstrip("/")


@router.get("/docs")
def docs(request: Request) -> Response:
    """Swagger UI."""
    return render(request, "docs.html")


def _context(platform: Platform, now: Health | None, cursor: str | None, owner: str) -> dict[str, Any]:
    page = platform.current.riskiest(horizon=HORIZON, limit=MAX_ROWS, cursor=cursor, health=now, owner=owner)
    rows = [_row(item) for item in page.items]
    champion = platform.champion.current
    first = page.items[0].prediction if page.items else None
    return {
        "rows": rows or ([] if now else _without_model(platform, owner)),
        "now": now,
        "model": None if first is None else f"{first.model} version {first.model_version}",
        "horizon": HORIZON,
        "counts": platform.overview.counts(owner=owner),
        "pace": platform.overview.probes_per_s(),
        "lag": platform.pipeline_lag(),
        "champion": champion,
        "calibration": _calibration(platform, owner),
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
        trail=item.trail,
    )


def _calibration(platform: Platform, owner: str) -> Calibration | None:
    """Of what the champion said of all, for the first horizon of the list; None where too little is known here."""
    champion, quality = platform.champion.current, platform.live_quality
    if champion is None or quality is None or owner != LOCAL_OWNER:
        return None
    for figures in quality.figures:
        if (figures.model_version, figures.horizon) == (champion.version, HORIZON) and figures.base_rate is not None:
            said = sum(bin.n * bin.predicted for bin in figures.reliability) / figures.n
            return Calibration(said=said, came=figures.base_rate, outcomes=figures.n)
    return None


def _without_model(platform: Platform, owner: str) -> list[Row]:
    targets = platform.crawl.targets(limit=MAX_ROWS, owner=owner).items
    vectors = platform.predictor.features([target.url for target in targets], owner=owner)
    simulated = platform.crawl.simulated_targets([target.key for target in targets], owner=owner)
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
