"""Pages of the models: versions, how good they were when they were trained and are now, and which one serves."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Final
from urllib.parse import parse_qs

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import RedirectResponse

from serving.dependencies import Body, Owner, PlatformDep
from serving.rendering import apology, render
from urlhealth.errors import InvalidRequest, NotFound, StoreUnavailable, one_line
from urlhealth.platform import Platform
from urlhealth.prediction.listing import Registered, change_champion, registered
from urlhealth.prediction.promotion import CHALLENGER
from urlhealth.vocabulary import CHAMPION, HORIZONS

router = APIRouter(include_in_schema=False)

_MODELS: Final = 50
_FIGURES: Final = tuple(f"onset_{horizon}/{name}" for horizon in HORIZONS for name in ("average_precision", "brier"))
#: Forecasts of this horizon are drawn.
_DRAWN: Final = "24h"
_COLOURS: Final = ("#0b5fd0", "#bf8700", "#8250df", "#1a7f37")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A line of the comparison on what was held out: a version, or a plain rule beside it."""

    name: str
    #: As in `_FIGURES`; None where there is none.
    figures: Sequence[float | None]


@router.get("/ui/models")
def models_page(request: Request, platform: PlatformDep, owner: Owner) -> Response:
    """The registered versions, beside each other and plain rules, and what came of their forecasts."""
    versions, live, problems = _versions(platform), [], []
    if isinstance(versions, str):
        problems, versions = [versions], []
    try:
        live = [figures for figures in platform.quality(owner=owner).figures if figures.n]
    except StoreUnavailable as error:
        problems.append(str(error))
    if platform.champion.problem:
        problems.append(platform.champion.problem)
    champion = platform.champion.current
    context = {
        "versions": versions,
        "problems": problems,
        "champion": None if champion is None else champion.version,
        "back": next((each.version.replaced for each in versions if CHAMPION in each.version.aliases), None),
        "judged": list(_judged(versions)),
        "figures": _FIGURES,
        "live": live,
        "drawn": [
            (figures, colour)
            for figures, colour in zip((each for each in live if each.horizon == _DRAWN), _COLOURS, strict=False)
        ],
        "horizon": _DRAWN,
        "mlflow": platform.settings.mlflow_pages,
    }
    return render(request, "models.html", context)


def _versions(platform: Platform) -> list[Registered] | str:
    try:
        return registered(platform.settings, limit=_MODELS)
    except StoreUnavailable as error:
        return one_line(error)


def _judged(versions: Sequence[Registered]) -> Iterator[Judged]:
    """Champion and challenger, each by its own run; then the plain rules of the newest run that has some."""
    for alias in (CHAMPION, CHALLENGER):
        for each in versions:
            if alias in each.version.aliases and _FIGURES[0] in each.metrics:
                yield Judged(name=f"{alias}, version {each.version.version}", figures=_of(each, ""))
    for each in versions:
        rules = sorted(
            {name.removesuffix(f"/{_FIGURES[0]}") for name in each.metrics if name.endswith(f"/{_FIGURES[0]}")}
        )
        if rules:
            where = f"(version {each.version.version}'s run)"
            yield from (
                Judged(name=f"{rule.replace('_', ' ')} {where}", figures=_of(each, f"{rule}/")) for rule in rules
            )
            return


def _of(version: Registered, prefix: str) -> list[float | None]:
    return [version.metrics.get(prefix + name) for name in _FIGURES]


@router.get("/ui/models/change")
def ask(request: Request, platform: PlatformDep, to: Annotated[str, Query(max_length=20)] = "") -> Response:
    """Ask whether another version shall serve: `to`, or without it the one that the champion replaced."""
    champion = platform.champion.current
    return render(request, "promote.html", {"to": to, "now": "" if champion is None else champion.version})


@router.post("/ui/models/change")
def change(request: Request, platform: PlatformDep, body: Body) -> Response:
    """Make another version the champion, if the one that was shown is it still."""
    form = parse_qs(body.decode("latin-1"), keep_blank_values=True)
    to, now = (form.get(name, [""])[0] for name in ("to", "now"))
    platform.champion.refresh()
    champion = platform.champion.current
    if now != ("" if champion is None else champion.version):
        return apology(request, InvalidRequest("another version serves meanwhile: look again, and then decide"), 409)
    try:
        change_champion(platform.settings, to=to or None)
    except NotFound as error:
        return apology(request, error, 404)
    platform.champion.refresh()
    return RedirectResponse(f"{request.scope.get('root_path', '')}/ui/models", 303)
