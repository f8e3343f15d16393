"""Pages for people beside the first one: a URL, tasks, features, alerts, status, badges."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import parse_qs

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import RedirectResponse

from serving.dependencies import Body, CallerDep, Cursor, Owner, PlatformDep, Shown, check_count
from serving.rendering import apology, percent, render
from urlhealth.alerts.store import MessageStatus
from urlhealth.crawl.overview import MonitorRow, Outage, upcoming
from urlhealth.crawl.reading import DAY_MS, HOUR_MS, Incident
from urlhealth.errors import InvalidRequest, InvalidUrls, NotFound, UrlHealthError
from urlhealth.feast_stores import consistency
from urlhealth.features.catalog import VECTOR, describe
from urlhealth.features.drift import LARGE_PSI
from urlhealth.platform import Platform
from urlhealth.prediction.drift import load as load_drift
from urlhealth.prediction.served import PastPrediction
from urlhealth.vocabulary import HORIZONS, Health, Prediction, ProbeResult

router = APIRouter(include_in_schema=False)

#: Rows of a list.
ROWS: Final = 50
#: URLs that the form takes; more go by the API, which reads them as they come.
MAX_PASTED: Final = 10_000
_POINTS: Final = 500
_STATUS_DAYS: Final = 7
_FORECAST: Final = "24h"

Text = Annotated[str | None, Query(max_length=2_100)]
Url = Annotated[str, Query(max_length=2_100)]
Short = Annotated[str | None, Query(max_length=200)]


# A URL


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A reason, and the bar that shows by how much it moves the log-odds. Percent of the whole width."""

    text: str
    feature: str
    contribution: float
    left: float
    width: float


@router.get("/ui/url")
def url_page(
    request: Request,
    platform: PlatformDep,
    owner: Owner,
    url: Annotated[str, Query(max_length=2_100)],
    name: Short = None,
) -> Response:
    """What one URL is, has been, and may become."""
    try:
        state = platform.crawl.url_state(url, known_for_s=platform.settings.known_for_s, name=name, owner=owner)
    except UrlHealthError as error:
        return apology(request, error, 404 if isinstance(error, NotFound) else 422)
    target_id = platform.overview.target_id(url, name=name, owner=owner)
    key = state.target.key
    now_ms = platform.clock()
    recent = platform.overview.recent(target_id, limit=_POINTS)
    incidents = platform.crawl.url_incidents(url, limit=ROWS, name=name, owner=owner).items
    past = platform.served.past(key, horizon=_FORECAST, limit=_POINTS, owner=owner)
    predictions, problem = _forecasts(platform, url, name, owner)
    context = {
        "state": state,
        "target_id": target_id,
        "predictions": predictions,
        "problem": problem,
        "bars": _bars(predictions[-1]) if predictions else [],
        "chart": _chart(recent, incidents, past, now_ms),
        "incidents": incidents,
        "past": _judged(past, incidents, now_ms)[-20:][::-1],
        "failure": platform.overview.last_failure(target_id),
        "features": _features(platform, url, owner) if name is None else [],
        "now_ms": now_ms,
    }
    return render(request, "url.html", context)


def _forecasts(platform: Platform, url: str, name: str | None, owner: str) -> tuple[list[Prediction], str | None]:
    """One for each horizon; or why there is none."""
    if name is not None:
        return [], "a named target's forecast is in the list by risk"
    try:
        return list(platform.predictor.predict([url], horizons=tuple(HORIZONS), explain=True, owner=owner)), None
    except UrlHealthError as error:
        return [], str(error)


def _bars(prediction: Prediction) -> list[Bar]:
    most = max((abs(reason.contribution) for reason in prediction.reasons), default=0) or 1
    bars = []
    for reason in prediction.reasons:
        width = 50 * abs(reason.contribution) / most
        left = 50 if reason.contribution > 0 else 50 - width
        bars.append(
            Bar(text=reason.text, feature=reason.feature, contribution=reason.contribution, left=left, width=width)
        )
    return bars


def _features(platform: Platform, url: str, owner: str) -> list[tuple[str, str, float | None, str]]:
    """Name, value in words, percentile among all, and what it is, of each."""
    values = platform.predictor.features([url], owner=owner)[0].values
    if values is None:
        return []
    percentiles = platform.ranks.percentiles(values, owner=owner)
    return [
        (
            feature.name,
            "unknown" if math.isnan(values[feature.name]) else describe(i, values[feature.name]),
            percentiles[feature.name],
            feature.about,
        )
        for i, feature in enumerate(VECTOR)
    ]


def _chart(
    recent: Sequence[ProbeResult], incidents: Sequence[Incident], past: Sequence[PastPrediction], now_ms: int
) -> dict[str, Any]:
    """What `charts.js` draws: phases of each probe (ms), forecasts that were served, outages (s since 1970)."""
    phases = {
        name: [getattr(result, f"{name}_ms") for result in recent] for name in ("dns", "connect", "tls", "first_byte")
    }
    rest = [
        None if result.total_ms is None else max(0.0, result.total_ms - sum(phases[name][i] or 0 for name in phases))
        for i, result in enumerate(recent)
    ]
    return {
        "probes": [result.ts_ms / 1000 for result in recent],
        "up": [{Health.UP: 1, Health.DOWN: 0}.get(result.outcome.health) for result in recent],
        # Pairs: JSON objects in templates are sorted by name.
        "phases": [*phases.items(), ("body and redirects", rest)],
        "risk": [[one.ts_ms / 1000 for one in past], [one.probability for one in past]],
        "outages": [[i.start_ms / 1000, (now_ms if i.end_ms is None else i.end_ms) / 1000] for i in incidents],
        "now": now_ms / 1000,
    }


def _judged(
    past: Sequence[PastPrediction], incidents: Sequence[Incident], now_ms: int
) -> list[tuple[PastPrediction, str]]:
    """Each forecast, and what happened within its horizon."""
    judged = []
    for one in past:
        end_ms = one.ts_ms + HORIZONS[one.horizon] * HOUR_MS
        failed = any(i.start_ms <= end_ms and (i.end_ms is None or i.end_ms > one.ts_ms) for i in incidents)
        judged.append((one, "failed" if failed else "not over yet" if end_ms > now_ms else "did not fail"))
    return judged


# Tasks


@router.get("/ui/tasks")
def tasks_page(request: Request, platform: PlatformDep, owner: Owner, cursor: Cursor = None) -> Response:
    """A form for URLs, and the tasks."""
    page = platform.crawl.tasks(limit=ROWS, cursor=cursor, owner=owner)
    return render(request, "tasks.html", {"page": page, "sent": "", "problem": None})


@router.post("/ui/tasks")
def submit(request: Request, platform: PlatformDep, caller: CallerDep, body: Body) -> Response:
    """Store a task of the URLs in the form, a line each."""
    sent = parse_qs(body.decode("utf-8", "replace")).get("urls", [""])[0]
    urls = [line.strip() for line in sent.splitlines() if line.strip()]
    try:
        if not urls:
            raise InvalidRequest("write a URL a line, or drop a file")
        check_count(urls, min(MAX_PASTED, platform.settings.max_urls_per_task))
        task = platform.crawl.create_task(platform.keys.metered(caller, urls), owner=caller.owner)
    except InvalidRequest as error:
        problem = str(error)
        if isinstance(error, InvalidUrls):
            position, reason = next(iter(error.problems.items()))
            problem = f"line {position + 1}: {reason}"
        page = platform.crawl.tasks(limit=ROWS, owner=caller.owner)
        answer = render(request, "tasks.html", {"page": page, "sent": sent, "problem": problem})
        answer.status_code = 422
        return answer
    return RedirectResponse(f"{request.scope.get('root_path', '')}/ui/tasks/{task.task_id}", 303)


@router.get("/ui/tasks/{task_id}")
def task_page(
    request: Request, platform: PlatformDep, owner: Owner, task_id: str, outcome: Short = None, cursor: Cursor = None
) -> Response:
    """Its progress, and its results."""
    try:
        task = platform.crawl.task(task_id, owner=owner)
    except NotFound as error:
        return apology(request, error, 404)
    page = platform.overview.results(task_id, outcome=outcome, limit=ROWS, cursor=cursor, owner=owner)
    return render(request, "task.html", {"task": task, "page": page, "outcome": outcome})


@router.get("/ui/tasks/{task_id}/progress")
def task_progress(request: Request, platform: PlatformDep, owner: Owner, task_id: str) -> Response:
    """The part of the page that changes; when the task is done, the page is loaded anew."""
    task = platform.crawl.task(task_id, owner=owner)
    answer = render(request, "progress.html", {"task": task})
    if task.finished_ms is not None:
        answer.headers["HX-Refresh"] = "true"
    return answer


# Features


@router.get("/ui/features")
def features_page(request: Request, platform: PlatformDep, owner: Owner) -> Response:
    """The features: how fresh they are, how far they have moved since training, and whether both stores agree."""
    drift = load_drift(platform.settings.drift_file)
    context = {
        "features": VECTOR,
        "counts": platform.overview.counts(owner=owner),
        "lag": platform.pipeline_lag(),
        "drift": drift,
        "moved": {} if drift is None else {each.feature: each for each in drift.features},
        "large": LARGE_PSI,
        "check": consistency.load(platform.settings.consistency_file),
        "feast": platform.settings.feast_ui.rstrip("/"),
    }
    return render(request, "features.html", context)


# Alerts


@router.get("/ui/alerts")
def alerts_page(request: Request, platform: PlatformDep, owner: Owner, cursor: Cursor = None) -> Response:
    """Alerts, rules, channels, dead letters."""
    context = {
        "page": platform.alerts.alerts(limit=ROWS, cursor=cursor, owner=owner),
        "rules": [stored.rule for stored in platform.alerts.rules(owner=owner)],
        "channels": platform.alerts.channels(owner=owner),
        "dead": platform.alerts.messages(MessageStatus.DEAD, limit=ROWS, owner=owner).items,
    }
    return render(request, "alerts.html", context)


@router.post("/ui/alerts/test")
def try_channel(request: Request, platform: PlatformDep, owner: Owner, body: Body) -> Response:
    """Send a test message; what came of it."""
    name = parse_qs(body.decode("utf-8", "replace")).get("channel", [""])[0]
    problem = platform.alert_sender.try_out(platform.alerts.channel(name, owner=owner))
    return render(request, "tried.html", {"problem": problem})


# Status and badges


@router.get("/status")
def status_page(
    request: Request, platform: PlatformDep, owner: Shown, tag: Short = None, cursor: Cursor = None
) -> Response:
    """How the monitored targets are, for everybody."""
    context = _status(platform, owner, tag, cursor)
    return render(request, "status.html", context)


@router.get("/status.rss")
def status_feed(request: Request, platform: PlatformDep, owner: Shown, tag: Short = None) -> Response:
    """The outages of the status page as RSS 2.0."""
    context = _status(platform, owner, tag, None)
    return render(
        request, "status.rss", {**context, "base": str(request.base_url).rstrip("/")}, media_type="application/rss+xml"
    )


def _status(platform: Platform, owner: str, tag: str | None, cursor: str | None) -> dict[str, Any]:
    if not platform.settings.status_page:
        raise NotFound("there is no status page: URLHEALTH_STATUS_PAGE=1 switches it on")
    now_ms = platform.clock()
    page = platform.overview.monitors(tag=tag or None, limit=ROWS, cursor=cursor, owner=owner)
    names = {row.target_id: row.monitor.target.key for row in page.items}
    outages = platform.overview.outages(list(names), since_ms=now_ms - _STATUS_DAYS * DAY_MS, limit=ROWS)
    return {
        "page": page,
        "tag": tag or "",
        "outages": outages,
        "planned": _planned(page.items, now_ms),
        "bad": _failing(page.items, outages),
        "days": _STATUS_DAYS,
        "now_ms": now_ms,
    }


def _failing(rows: Sequence[MonitorRow], outages: Sequence[Outage]) -> int:
    lasting = {outage.target_id for outage in outages if outage.end_ms is None}
    return sum(row.health is Health.DOWN or row.target_id in lasting for row in rows)


def _planned(rows: Sequence[MonitorRow], now_ms: int) -> list[tuple[str, int, int]]:
    """Maintenance of the coming days: target, start, end."""
    found = [
        (row.monitor.target.key, *time)
        for row in rows
        for window in row.monitor.maintenance
        if (time := upcoming(window, now_ms, within_ms=_STATUS_DAYS * DAY_MS)) is not None
    ]
    return sorted(found, key=lambda one: one[1])


@router.get("/badge/{target_id}.svg")
def badge(request: Request, platform: PlatformDep, owner: Shown, target_id: int, show: Short = "state") -> Response:
    """A target's state, uptime or risk, as a small picture."""
    target = platform.overview.target(target_id, owner=owner)
    state = platform.crawl.url_state(
        target.url, known_for_s=platform.settings.known_for_s, name=target.name, owner=owner
    )
    colour = {Health.UP: "#1a7f37", Health.DOWN: "#c4232e"}.get(state.health, "#59636e")
    match show:
        case "uptime":
            label, value = "uptime 30 d", percent(state.uptime["30d"], 2)
        case "risk":
            label, value = "risk 24 h", percent(_risk(platform, target.url, owner) if target.name is None else None)
        case "state":
            label, value = "state", str(state.health)
        case _:
            raise InvalidRequest("show is one of state, uptime, risk")
    context = {
        "label": label,
        "value": value,
        "colour": colour,
        "wide": 7 * len(label) + 12,
        "more": 7 * len(value) + 12,
    }
    answer = render(request, "badge.svg", context, media_type="image/svg+xml")
    answer.headers["Cache-Control"] = "max-age=60"
    return answer


def _risk(platform: Platform, url: str, owner: str) -> float | None:
    try:
        return platform.predictor.predict([url], horizons=[_FORECAST], owner=owner)[0].probability
    except UrlHealthError:
        return None
