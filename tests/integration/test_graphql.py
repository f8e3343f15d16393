"""GraphQL over a real platform in a folder of its own, without background work: nothing is probed here."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from graphql import get_introspection_query
from starlette.testclient import TestClient

from serving.app import create_app
from tests.support import noise_forecaster
from urlhealth.platform import Platform
from urlhealth.prediction.champion import Champion
from urlhealth.probing.urls import parse_target
from urlhealth.settings import ROOT, Settings
from urlhealth.vocabulary import Outcome, ProbeResult

NOW_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
PAGE = (ROOT / "docs/graphql.md").read_text(encoding="utf-8")
URLS = [f"https://{name}.example" for name in "abcde"]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform with three probes of each of five URLs, their features, a model, and a task that waits."""
    settings = Settings(home=tmp_path_factory.mktemp("home"), mlflow_tracking_uri="")
    with Platform(settings, clock=lambda: NOW_MS) as opened:
        found = [
            (
                target := parse_target(url),
                ProbeResult(
                    target=target.key,
                    ts_ms=NOW_MS - 60_000 * (3 - n),
                    outcome=Outcome.TIMEOUT if url == URLS[1] else Outcome.OK,
                    total_ms=12.5,
                ),
            )
            for url in URLS
            for n in range(3)
        ]
        opened.crawl.import_probes(found)
        opened.build_features()
        opened.champion.current = Champion(name="url-health", version="7", forecaster=noise_forecaster())
        opened.crawl.create_task([*URLS, "https://never.example"])
        yield opened


@pytest.fixture
def http(platform: Platform) -> Iterator[TestClient]:
    with TestClient(create_app(platform), raise_server_exceptions=False) as client:
        yield client


def ask(http: TestClient, query: str, **variables: Any) -> Any:
    reply = http.post("/graphql", json={"query": query, "variables": variables})
    return reply.status_code, reply.json()


def test_the_graph_says_what_the_other_calls_say(http: TestClient, platform: Platform) -> None:
    (example,) = re.findall(r"^```graphql\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    status, reply = ask(http, example.replace(", status: DONE", ""), first=3)
    assert status == 200
    assert "errors" not in reply
    (task,) = reply["data"]["tasks"]
    assert task["taskId"] == platform.crawl.tasks(limit=1).items[0].task_id
    items = task["results"]["items"]
    assert [item["url"] for item in items] == [*URLS, "https://never.example"]
    forecasts = http.post(
        "/api/v1/predictions", json={"urls": URLS, "horizons": ["1h", "24h"], "explain": True}
    ).json()["items"]
    said = [made["probability"] for item in items[:-1] for made in item["target"]["predictions"]]
    assert said == [made["probability"] for made in forecasts]
    vectors = http.post("/api/v1/features", json={"urls": URLS}).json()["items"]
    for item, vector in zip(items, vectors, strict=False):
        target = item["target"]
        assert {each["name"]: each["value"] for each in target["features"]}.items() <= vector["features"].items()
        assert len(target["features"]) == 2
        assert [probe["at"][14:19] for probe in target["probes"]] == ["59:00", "58:00", "57:00"]
        assert {probe["outcome"] for probe in target["probes"]} == {"timeout" if item["url"] == URLS[1] else "ok"}
        assert target["predictions"][0]["reasons"]
    never = items[-1]["target"]
    assert (never["probes"], never["features"]) == ([], None)


def test_the_number_of_queries_does_not_grow_with_the_number_of_targets(http: TestClient, platform: Platform) -> None:
    statements: list[str] = []
    engine = platform.crawl._engine
    sa.event.listen(engine, "before_cursor_execute", lambda *event: statements.append(event[2]))
    counts = []
    for some in (URLS[:1], URLS):
        statements.clear()
        query = (
            "query ($u: [String!]!) { targets(urls: $u) { probes { at } features { name } predictions { health } } }"
        )
        status, reply = ask(http, query, u=some)
        assert (status, len(reply["data"]["targets"])) == (200, len(some))
        counts.append(len(statements))
    assert counts[0] == counts[1] > 0


def test_results_come_in_pages(http: TestClient, platform: Platform) -> None:
    task_id = platform.crawl.tasks(limit=1).items[0].task_id
    query = """query ($t: String!, $after: String) {
        task(taskId: $t) { results(first: 4, after: $after) { nextCursor items { position probe { at } } } } }"""
    first = ask(http, query, t=task_id)[1]["data"]["task"]["results"]
    assert [item["position"] for item in first["items"]] == [0, 1, 2, 3]
    assert first["items"][0]["probe"] is None
    rest = ask(http, query, t=task_id, after=first["nextCursor"])[1]["data"]["task"]["results"]
    assert ([item["position"] for item in rest["items"]], rest["nextCursor"]) == ([4, 5], None)
    assert ask(http, query, t="0" * 32) == (200, {"data": {"task": None}})


NESTED = "{ __schema { types { fields { type { fields { type { fields { type { fields { name } } } } } } } } } }"
FRAGMENTS = "{ ...F0 } " + " ".join(f"fragment F{n} on Query {{ ...F{n + 1} ...F{n + 1} }}" for n in range(60))


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("{ tasks {", "Syntax Error"),
        ("{ tasks { colour } }", "Cannot query field 'colour' on type 'Task'"),
        ("mutation { tasks { taskId } }", "a mutation is not taken here"),
        (
            "{ tasks(first: 1000) { results(first: 1000) { items { url } } } }",
            "2,001,000 objects, and 20,000 is the most",
        ),
        ("{ a: tasks(first: 9999) { taskId } b: tasks(first: 9999) { taskId } c: tasks { taskId } }", "20,018 objects"),
        (NESTED, "Maximum introspection depth exceeded"),
        ("{" + " a {" * 20 + " b " + "}" * 20 + "}", "21 fields deep: 15 is the most"),
        ("query ($n: Int = 900) { tasks(first: $n) { results { items { url } } } }", "is the most"),
        ("{ ...F } fragment F on Query { ...F }", "the fragment F has itself in it"),
        (FRAGMENTS + " fragment F60 on Query { tasks(first: 5) { taskId } }", "is the most"),
        (
            f"query ($u: [String!]! = {json.dumps(URLS)}) {{ targets(urls: $u) {{ probes(first: 9000) {{ at }} }} }}",
            "45,005 objects",
        ),
        ("{ tasks { results { items { target { features { name } } } } } }", "is the most"),
        ("{ " + "a " * 2001 + "}", "Document contains more than 2000 tokens"),
        ("query A { tasks { taskId } } query B { tasks { taskId } }", "2 operations: say which"),
    ],
)
def test_a_query_that_is_not_carried_out(http: TestClient, query: str, said: str) -> None:
    status, reply = ask(http, query)
    assert status == 400, reply
    assert said in reply["errors"][0]["message"]
    assert "data" not in reply


@pytest.mark.parametrize("urls", [5, {"a": 1}, [5], None])
def test_a_variable_of_another_type_is_a_fault_of_the_query(http: TestClient, urls: Any) -> None:
    status, reply = ask(http, "query ($u: [String!]!) { targets(urls: $u) { key } }", u=urls)
    assert (status, "data" in reply) == (400, False)
    assert "$u" in reply["errors"][0]["message"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("{ tasks(first: 0) { taskId } }", "first is 0: it must be from 1 to 1000"),
        ('{ targets(urls: ["nowhere"]) { key } }', "scheme"),
        ('{ targets(urls: ["https://a.example"]) { features(names: ["colour"]) { name } } }', "no feature 'colour'"),
    ],
)
def test_an_error_within_a_query_has_its_path(http: TestClient, query: str, said: str) -> None:
    status, reply = ask(http, query)
    assert status == 200
    assert said in reply["errors"][0]["message"]
    assert reply["errors"][0]["path"]


def test_what_was_not_foreseen_is_not_told(
    http: TestClient, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("password of the database")

    monkeypatch.setattr(platform.crawl, "tasks", fail)
    status, reply = ask(http, "{ tasks { taskId } }")
    assert (status, reply["errors"][0]["message"]) == (200, "the server failed")
    assert "password" not in json.dumps(reply)


def test_without_a_model_the_rest_is_there(http: TestClient, platform: Platform) -> None:
    champion, platform.champion.current = platform.champion.current, None
    try:
        query = '{ targets(urls: ["https://a.example"]) { key predictions { probability } } tasks { taskId } }'
        status, reply = ask(http, query)
    finally:
        platform.champion.current = champion
    assert status == 200
    assert "no model" in reply["errors"][0]["message"]
    assert reply["data"]["targets"] == [{"key": "https://a.example/", "predictions": None}]
    assert len(reply["data"]["tasks"]) == 1


def test_tools_may_learn_the_schema(http: TestClient) -> None:
    status, reply = ask(http, get_introspection_query())
    assert status == 200, reply
    assert "Prediction" in {each["name"] for each in reply["data"]["__schema"]["types"]}


def test_the_call_of_the_page_works(http: TestClient) -> None:
    (sent,) = re.findall(r"-d '(.*?)'\n", PAGE, re.DOTALL)
    reply = http.post("/graphql", content=sent.replace("\n", " "), headers={"Content-Type": "application/json"})
    assert reply.json()["data"]["tasks"][0]["total"] == 6
    assert http.get("/graphql").status_code == 405
    assert http.post("/graphql", json={"q": 1}).status_code == 422
