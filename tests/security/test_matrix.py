"""Every route of the OpenAPI document, with every scope, as the owner and as a stranger."""

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import pytest
import sqlalchemy as sa
from starlette.routing import Mount
from starlette.testclient import TestClient

from serving.access import PUBLIC, scope_needed
from serving.app import create_app
from tests.support import noise_forecaster
from urlhealth.alerts.rules import AlertFile
from urlhealth.alerts.store import MessageStatus
from urlhealth.crawl.database import writing
from urlhealth.crawl.keys import Scope
from urlhealth.crawl.schema import alert_messages
from urlhealth.platform import Platform
from urlhealth.prediction.champion import Champion
from urlhealth.probing.urls import parse_target
from urlhealth.settings import Settings
from urlhealth.vocabulary import AdaptiveSchedule, MonitorSpec, Outcome, ProbeResult

NOW_MS: Final = 1_767_225_600_000  # 2026-01-01T00:00:00Z
#: The owner's, and nobody else's.
URL: Final = "https://hidden.example/only-for-ann"
#: Name of her channel, and of her rule.
ALERTS: Final = "anns-alerts"

Call = tuple[str, str]
#: What is not in the document: pages, and what BentoML adds.
UNDESCRIBED: Final[dict[Call, Scope | None]] = {
    ("GET", "/"): Scope.READ,
    ("GET", "/docs"): Scope.READ,
    ("GET", "/openapi.json"): Scope.READ,
    ("GET", "/login"): PUBLIC,
    ("POST", "/login"): PUBLIC,
    ("POST", "/logout"): PUBLIC,
    ("GET", "/static/style.css"): PUBLIC,
    ("GET", "/ui/url"): Scope.READ,
    ("GET", "/ui/tasks"): Scope.READ,
    ("POST", "/ui/tasks"): Scope.CRAWL,
    ("GET", "/ui/tasks/{task_id}"): Scope.READ,
    ("GET", "/ui/tasks/{task_id}/progress"): Scope.READ,
    ("GET", "/ui/monitors"): Scope.READ,
    ("POST", "/ui/monitors/change"): Scope.CRAWL,
    ("POST", "/ui/monitors/{monitor_id}/{what}"): Scope.CRAWL,
    ("GET", "/ui/models"): Scope.READ,
    ("GET", "/ui/models/change"): Scope.READ,
    ("POST", "/ui/models/change"): Scope.ADMIN,
    ("GET", "/ui/features"): Scope.READ,
    ("GET", "/ui/alerts"): Scope.READ,
    ("POST", "/ui/alerts/test"): Scope.ADMIN,
    ("GET", "/status"): Scope.READ,
    ("GET", "/status.rss"): Scope.READ,
    ("GET", "/badge/{target_id}.svg"): Scope.READ,
}
#: Under BentoML only.
BENTO: Final[dict[Call, Scope | None]] = {
    ("GET", "/livez"): PUBLIC,
    ("GET", "/readyz"): PUBLIC,
    ("GET", "/schema.json"): Scope.READ,
    ("POST", "/score"): Scope.PREDICT,
}
#: Calls that tell nothing of any owner's data.
NOBODYS: Final = {
    ("GET", "/health/live"), ("GET", "/health/ready"), ("GET", "/v2"), ("GET", "/v2/health/live"),
    ("GET", "/v2/health/ready"), ("POST", "/api/v1/score"), ("GET", "/docs"), ("GET", "/openapi.json"),
    ("GET", "/login"), ("POST", "/login"), ("POST", "/logout"), ("GET", "/static/style.css"), ("GET", "/ui/models"),
    ("GET", "/status"), ("GET", "/status.rss"),  # There is none here: see the test of it.
}  # fmt: skip
#: Calls that take URLs in a body, and the body.
BY_URL: Final[dict[Call, Any]] = {
    ("POST", "/api/v1/predictions"): {"urls": [URL], "horizons": ["24h"]},
    ("POST", "/api/v1/features"): {"urls": [URL]},
    ("POST", "/v1/models/{model}:predict"): {"instances": [URL]},
    ("POST", "/v1/models/{model}/versions/{version}:predict"): {"instances": [URL]},
    ("POST", "/invocations"): {"instances": [URL]},
    ("POST", "/v2/models/{model}/infer"): {
        "inputs": [{"name": "url", "shape": [1], "datatype": "BYTES", "data": [URL]}]
    },
    ("POST", "/v2/models/{model}/versions/{version}/infer"): {
        "inputs": [{"name": "url", "shape": [1], "datatype": "BYTES", "data": [URL]}]
    },
}
GRAPH: Final = ("POST", "/graphql")
#: All that the graph has of tasks and of a URL.
GRAPH_QUERY: Final = (
    "{ tasks { taskId results { items { url } } } "
    f'targets(urls: ["{URL}"]) {{ probes {{ outcome }} features {{ value }} predictions {{ probability }} }} }}'
)
#: Calls that make something of the caller's own.
MAKES: Final = {
    ("POST", "/api/v1/tasks"),
    ("POST", "/api/v1/monitors"),
    ("POST", "/submit"),
    ("POST", "/ui/tasks"),
    ("PUT", "/api/v1/alerts/rules"),
}
#: Where there is nothing to see for a stranger, the answer is 404.
OF_ONE: Final = ("{task_id}", "{monitor_id}", "{pool_id}", "{target_id}", "{name}", "{message_id}", "/alerts/test")
#: The same, as a form.
TICKED: Final = ("POST", "/ui/monitors/change")
#: Calls of whoever runs the platform: keys and changes of all owners, and the model that all have.
OPERATORS: Final = ("/api/v1/keys", "/api/v1/audit", "/ui/models/change")
#: Calls on all of the caller's that are chosen.
CHOSEN: Final = {("PATCH", "/api/v1/monitors"), ("DELETE", "/api/v1/monitors")}


class Served(NamedTuple):
    platform: Platform
    http: TestClient
    #: By owner and scope: its secret.
    secrets: dict[tuple[str, Scope], str]
    #: Values for path parameters: Ann's.
    anns: dict[str, str]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = Settings(home=tmp_path_factory.mktemp("home"), mlflow_tracking_uri="")
    with Platform(settings, clock=lambda: NOW_MS) as platform:
        platform.champion.current = Champion(name="url-health", version="1", forecaster=noise_forecaster())
        result = ProbeResult(target=URL, ts_ms=NOW_MS - 60_000, outcome=Outcome.TIMEOUT)
        platform.crawl.import_probes([(parse_target(URL), result)], owner="ann")
        platform.build_features()
        platform.lease.acquire()
        while platform.rescorer.step():
            pass
        platform.roll_up()
        task = platform.crawl.create_task([URL], owner="ann")
        platform.crawl.cancel_task(task.task_id, owner="ann")
        monitor = platform.crawl.create_monitor(URL, interval_s=60, owner="ann", tags=("ann",))
        adaptive = MonitorSpec(url=f"{URL}/2", schedule=AdaptiveSchedule(budget_per_url_hour=1.0))
        assert all(isinstance(answer, str) for answer in platform.crawl.create_monitors([adaptive], owner="ann"))
        (pool,) = platform.crawl.pools(limit=1, owner="ann").items
        secrets = {
            (owner, scope): platform.keys.create(f"{owner} {scope}", scopes=[scope], owner=owner)[1]
            for owner in ("ann", "bob")
            for scope in Scope
        }
        key_id = platform.keys.keys()[0].key_id
        hook = {"name": ALERTS, "url": "https://hooks.example/", "secret": "a secret of sixteen"}
        rule = {"name": ALERTS, "kind": "state", "channels": [ALERTS]}
        platform.alerts.apply(AlertFile.model_validate({"channels": [hook], "rules": [rule]}), owner="ann")
        dead = {
            "message_id": "anns-letter",
            "owner": "ann",
            "channel": ALERTS,
            "rule": ALERTS,
            "host": "hidden.example",
        }
        dead |= {"payload": "{}", "status": MessageStatus.DEAD.value, "created_ms": NOW_MS}
        with writing(platform._database) as connection:  # type: ignore[arg-type]
            connection.execute(sa.insert(alert_messages).values(dead))
        anns = {
            "task_id": task.task_id,
            "monitor_id": monitor.monitor_id,
            "key_id": key_id,
            "model": "url-health",
            "version": "1",
            "pool_id": str(pool.number),
            "name": ALERTS,
            "message_id": "anns-letter",
            "target_id": str(platform.overview.target_id(URL, owner="ann")),
            "what": "pause",
        }
        with TestClient(create_app(platform), raise_server_exceptions=False) as http:
            yield Served(platform, http, secrets, anns)


def routes_of(routes: Iterable[Any]) -> Iterator[Call]:
    """All routes, also of routers that are included, of which FastAPI's list has only what stands for them."""
    for route in routes:
        if hasattr(route, "original_router"):
            yield from routes_of(route.original_router.routes)
        elif isinstance(route, Mount):
            assert route.path == "/static", f"{route.path}: what is mounted is not in the matrix"
        else:
            yield from ((method, route.path) for method in route.methods if method != "HEAD")


def calls(http: TestClient) -> list[Call]:
    document = http.app.openapi()  # type: ignore[attr-defined]
    described = [(m.upper(), path) for path, item in document["paths"].items() for m in item if m != "parameters"]
    return [*described, *UNDESCRIBED]


def send(served: Served, call: Call, secret: str | None, values: dict[str, str], body: Any = None) -> Any:
    method, path = call
    headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
    params = {"url": URL} if path.startswith(("/api/v1/url", "/ui/url")) or call in CHOSEN else {}
    if call == GRAPH:
        body = {"query": GRAPH_QUERY}
    if call in CHOSEN and body is None:
        body = {"paused": True} if method == "PATCH" else None
    return served.http.request(
        method, path.format(**values), params=params, headers=headers, json=body, follow_redirects=False
    )


def test_every_route_has_a_rule(served: Served) -> None:
    for method, path in [*calls(served.http), *BENTO]:
        scope_needed(method, path.format(**served.anns))  # raises where there is none
    for (method, path), scope in (UNDESCRIBED | BENTO).items():
        assert scope_needed(method, path.format(**served.anns)) == scope, path
    routes = set(routes_of(served.http.app.routes))  # type: ignore[attr-defined]
    known = set(calls(served.http))
    assert routes - known == set(), "a route that is not in the document belongs in UNDESCRIBED"
    # And none was missed: that of the style sheet is of a mounted application, and `/ui/monitors/...` has three.
    assert known - routes <= {("GET", "/static/style.css")}


def test_without_a_key_nothing_but_health_is_answered(served: Served) -> None:
    for call in calls(served.http):
        public = scope_needed(call[0], call[1].format(**served.anns)) is PUBLIC
        for secret in (None, "uh_000000000000_" + "A" * 43, "nonsense", served.secrets["ann", Scope.READ][:-1] + "!"):
            reply = send(served, call, secret, served.anns)
            assert reply.status_code < 500, (call, reply.text)
            assert (reply.status_code == 401) is (not public or call == ("POST", "/login")), (call, reply.text)
            if not public:
                assert reply.headers["www-authenticate"] == "Bearer"
                assert URL not in reply.text


SPELLINGS: Final = (
    "//api/v1/tasks",
    "/api/v1//tasks",
    "/api/v1/tasks/",
    "/API/v1/tasks",
    "/./api/v1/tasks",
    "/static/../api/v1/tasks",
    "/static/%2e%2e/api/v1/tasks",
    "/static/..%2fapi%2fv1%2ftasks",
    "/api%2fv1%2ftasks",
    "/%61pi/v1/tasks",
    "/login/../tasks",
    "/api/v1/tasks;a=b",
    "/api/v1/tasks%00",
    "/api/v1/tasks%0a",
    "/health/live/../../tasks",
    "/health/live%2f..%2f..%2ftasks",
    "/static//etc/passwd",
    "/static/../../pyproject.toml",
    "/static/%2e%2e/%2e%2e/pyproject.toml",
    "/badge/..%2ftasks",
    "/static/style.css/../../app.py",
    "/graphql/",
    "/metrics/",
    "/docs/",
)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_spelling_of_a_path_gets_past_the_rules(served: Served, spelling: str) -> None:
    for method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "TRACE", "get", "BREW"):
        request = served.http.build_request(method, "http://testserver/")
        path, _, query = spelling.partition("?")
        request.url = request.url.copy_with(raw_path=path.encode() + (b"?" + query.encode() if query else b""))
        reply = served.http.send(request, follow_redirects=False)
        assert reply.status_code in (400, 401, 404, 405), (method, reply.status_code, reply.text)
        assert "hidden.example" not in reply.text
        for header in ("x-http-method-override", "x-original-url", "x-rewrite-url", "x-forwarded-prefix"):
            request.headers[header] = "/health/live"
        assert served.http.send(request, follow_redirects=False).status_code in (400, 401, 404, 405)


def test_a_scope_is_for_its_calls_only(served: Served) -> None:
    nothing = dict.fromkeys(served.anns, "none")
    for call in calls(served.http):
        needed = scope_needed(call[0], call[1].format(**nothing))
        if needed is PUBLIC:
            continue
        for scope in Scope:
            reply = send(served, call, served.secrets["bob", scope], nothing)
            refused = scope not in (needed, Scope.ADMIN)
            assert (reply.status_code == 403) is refused, (call, scope, reply.text)
            assert reply.status_code != 401
            assert reply.status_code < 500, (call, reply.text)


@pytest.mark.parametrize("admin", [False, True])
def test_a_stranger_sees_and_changes_nothing(served: Served, admin: bool) -> None:
    """Nor does one who may do everything, for an owner of their own."""
    for call in calls(served.http):
        method, path = call
        needed = scope_needed(method, path.format(**served.anns))
        if call in NOBODYS or path.startswith(OPERATORS) or (needed is Scope.ADMIN and not admin):
            continue
        scope = Scope.ADMIN if admin else needed or Scope.READ
        body = {"channel": ALERTS} if path.endswith("/alerts/test") else BY_URL.get(call)
        reply = send(served, call, served.secrets["bob", scope], served.anns, body)
        if any(part in path for part in OF_ONE) or path.startswith(("/api/v1/url", "/ui/url")):
            expected = {404, 422} if method == "PATCH" else {404}
            assert reply.status_code in expected, (call, reply.text)
            assert "timeout" not in reply.text
        elif call in BY_URL:
            assert reply.status_code == 200, reply.text
            assert all(number is None for number in _probabilities(reply.json())), (call, reply.text)
        elif call in CHOSEN:
            assert reply.json() == {"monitors": 0}
        elif call == TICKED:
            headers = {"Authorization": f"Bearer {served.secrets['bob', scope]}"}
            for which in ({"which": "all"}, {"id": served.anns["monitor_id"]}):
                form = {"what": "pause", **which}
                reply = served.http.post(path, data=form, headers=headers, follow_redirects=False)
                assert reply.status_code == 422 or reply.headers["location"].endswith("changed=0"), reply.text
        elif call == GRAPH:
            nothing = {"probes": [], "features": None, "predictions": [{"probability": None}]}
            assert reply.json() == {"data": {"tasks": [], "targets": [nothing]}}
        elif call not in MAKES:
            assert method == "GET", f"{call} is not classified: say in this test what a stranger gets"
            assert reply.status_code == 200, (call, reply.text)
            for hers in ("hidden.example", served.anns["task_id"], ALERTS, "anns-letter"):
                assert hers not in reply.text, call
    assert served.platform.crawl.monitor(served.anns["monitor_id"], owner="ann").paused is False
    assert [channel.name for channel in served.platform.alerts.channels(owner="ann")] == [ALERTS]
    assert served.platform.alerts.messages(MessageStatus.DEAD, limit=9, owner="ann").items


def test_the_owner_sees_it_all(served: Served) -> None:
    """So that the test above could fail."""
    seen = set()
    for call in calls(served.http):
        method, path = call
        needed = scope_needed(method, path.format(**served.anns))
        if call in BY_URL:
            reply = send(served, call, served.secrets["ann", Scope.PREDICT], served.anns, BY_URL[call])
            assert any(number is not None for number in _probabilities(reply.json())), (call, reply.text)
            seen.add(call)
        elif call == GRAPH:
            data = send(served, call, served.secrets["ann", Scope.READ], served.anns).json()["data"]
            assert data["tasks"][0]["results"]["items"] == [{"url": URL}]
            (target,) = data["targets"]
            assert target["probes"] == [{"outcome": "timeout"}]
            assert target["features"]
            assert target["predictions"][0]["probability"] is not None
        elif method == "GET" and needed is Scope.READ and call not in NOBODYS:
            reply = send(served, call, served.secrets["ann", Scope.READ], served.anns)
            assert reply.status_code == 200, (call, reply.text)
            if any(hers in reply.text for hers in ("hidden.example", served.anns["task_id"], ALERTS)):
                seen.add(call)
    assert {path for _, path in seen} >= {
        "/", "/api/v1/tasks/{task_id}/results", "/api/v1/monitors", "/api/v1/monitors/{monitor_id}", "/api/v1/url",
        "/api/v1/predictions", "/api/v1/features", "/invocations", "/ui/url", "/ui/tasks", "/ui/monitors",
        "/api/v1/alerts/rules", "/api/v1/alerts/dead-letters", "/ui/alerts",
    }  # fmt: skip


def test_a_status_page_is_public_where_there_is_one_and_shows_those_of_local(served: Served) -> None:
    """Those who may read see their own owner's."""
    mine = "https://shown.example/"
    settings = served.platform.settings.model_copy(update={"status_page": True})
    served.platform.crawl.create_monitor(mine, interval_s=60)
    badge = ("GET", f"/badge/{served.platform.overview.target_id(mine)}.svg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served.platform, "settings", settings)
        for path in ("/status", "/status.rss"):
            for secret in (None, served.secrets["ann", Scope.CRAWL]):
                reply = send(served, ("GET", path), secret, {})
                assert reply.status_code == 200
                assert ("shown.example" in reply.text) is (path == "/status")  # the feed has outages only
                assert "hidden.example" not in reply.text
        reply = send(served, ("GET", "/status"), served.secrets["ann", Scope.READ], {})
        assert "hidden.example" in reply.text
        assert "shown.example" not in reply.text
        assert send(served, badge, None, {}).status_code == 200
        assert send(served, ("GET", f"/badge/{served.anns['target_id']}.svg"), None, {}).status_code == 404
    assert send(served, badge, None, {}).status_code == 401
    assert send(served, ("GET", "/status"), None, {}).status_code == 401


def test_what_stands_behind_health_is_told_to_readers_only(served: Served) -> None:
    told = send(served, ("GET", "/health/ready"), served.secrets["bob", Scope.READ], {}).json()["checks"]
    assert any(check["detail"] for check in told)
    for secret in (None, served.secrets["bob", Scope.CRAWL]):
        checks = send(served, ("GET", "/health/ready"), secret, {}).json()["checks"]
        assert [check["detail"] for check in checks] == [""] * len(told)


def test_a_stranger_with_the_same_url_has_one_of_their_own(served: Served) -> None:
    crawl = {"Authorization": f"Bearer {served.secrets['bob', Scope.CRAWL]}"}
    read = {"X-API-Key": served.secrets["bob", Scope.READ]}
    made = served.http.post("/api/v1/tasks", json={"urls": ["https://bobs.example"]}, headers=crawl).json()
    assert [t["task_id"] for t in served.http.get("/api/v1/tasks", headers=read).json()["items"]] == [made["task_id"]]
    assert served.http.delete(f"/api/v1/tasks/{made['task_id']}", headers=crawl).status_code == 204
    assert served.http.delete(f"/tasks/{served.anns['task_id']}", headers=crawl).status_code == 404


def _probabilities(said: Any) -> list[Any]:
    """All that a reply of any protocol says of probabilities and features."""
    if isinstance(said, dict) and "outputs" in said and isinstance(said["outputs"], list):
        numbers = [value for each in said["outputs"] if each["datatype"] == "FP64" for value in each["data"]]
        return [None if value is None or value != value else value for value in numbers]
    items = said.get("items", said.get("predictions"))
    found: list[Any] = []
    for item in items:
        if isinstance(item, list):
            found += item
        elif "features" in item or "values" in item:
            found.append(item.get("features", item.get("values")))
        else:
            found += [value for name, value in item.items() if name.startswith(("probability", "onset", "failing"))]
    return found
