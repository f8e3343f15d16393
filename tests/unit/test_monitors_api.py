"""Monitors over HTTP, on a real platform without background work: nothing is probed here."""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from serving.app import create_app
from serving.schemas import MonitorRequest, Problem, parse_monitor
from urlhealth.platform import Platform
from urlhealth.settings import ROOT, Settings

MONITORS = "/api/v1/monitors"
NOW_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
JSON = {"content-type": "application/json"}
LINES = {"content-type": "application/x-ndjson"}


class HandClock:
    now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def platform(tmp_path: Path, clock: HandClock) -> Iterator[Platform]:
    with Platform(Settings(home=tmp_path, mlflow_tracking_uri=""), clock=clock) as opened:
        yield opened


@pytest.fixture
def http(platform: Platform) -> Iterator[TestClient]:
    with TestClient(create_app(platform), raise_server_exceptions=False) as client:
        yield client


def create(http: TestClient, url: str = "https://M.example", **more: Any) -> dict[str, Any]:
    reply = http.post(MONITORS, json={"url": url, "interval_s": 60, **more})
    assert reply.status_code == 201, reply.text
    assert reply.headers["location"] == f"{MONITORS}/{reply.json()['monitor_id']}"
    return dict(reply.json())


def problem(reply: Any, status: int, name: str = "invalid-request") -> str:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    found = Problem.model_validate(reply.json())
    assert found.type == f"urn:problem-type:urlhealth:{name}"
    return found.detail


def test_one_is_created_read_listed_and_deleted(http: TestClient) -> None:
    window = {"start": "2026-02-01T02:00:00+01:00", "end": "2026-02-01T03:00:00Z", "every": "week"}
    monitor = create(
        http,
        name="login",
        group="me",
        tags=["b", "a", "b"],
        paused=True,
        maintenance=[window],
        options={"timeout_s": 3, "bearer_token": "secret", "headers": {"X-Key": "secret"}},
    )
    assert monitor["target"] == "https://m.example/#login"
    assert (monitor["interval_s"], monitor["group"], monitor["paused"]) == (60, "me", True)
    assert (monitor["name"], monitor["tags"], monitor["skipped"]) == ("login", ["b", "a"], 0)
    assert monitor["maintenance"] == [{**window, "start": "2026-02-01T01:00:00Z"}]
    assert monitor["options"]["timeout_s"] == 3
    assert "secret" not in json.dumps(monitor)
    path = f"{MONITORS}/{monitor['monitor_id']}"
    assert http.get(MONITORS).json() == {"items": [monitor], "next_cursor": None}
    assert http.get(path).json() == monitor
    assert http.delete(path).status_code == 204
    for again in (http.delete(path), http.get(path), http.patch(path, json={})):
        problem(again, 404, "not-found")


def test_what_feeds_no_features_is_said(http: TestClient) -> None:
    assert create(http)["feeds_features"] is True
    assert create(http, name="own", options={"timeout_s": 3})["feeds_features"] is True
    assert create(http, "https://n.example", options={"timeout_s": 3})["feeds_features"] is False


def test_a_second_one_of_a_target_is_a_conflict_that_names_the_first(http: TestClient) -> None:
    monitor = create(http)
    reply = http.post(MONITORS, json={"url": "https://m.example/", "interval_s": 30})
    assert monitor["monitor_id"] in problem(reply, 409, "duplicate")
    create(http, name="another")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"url": "https://m.example", "interval_s": 0}, "interval_s: "),
    ({"url": "https://m.example", "interval_s": 9}, "interval_s: "),
    ({"url": "nonsense", "interval_s": 60}, "'nonsense' has no scheme"),
    ({"url": "https://m.example", "interval_s": 60, "group": ""}, "group: "),
    ({"url": "https://m.example", "interval_s": 60, "group": "a\x00"}, "group: "),
    ({"url": "https://m.example", "interval_s": 60, "group": "\ud800"}, "group: "),
    ({"url": "https://m.example", "interval_s": 60, "name": "a\nb"}, "name: "),
    ({"url": "https://m.example", "interval_s": 60, "tags": [""]}, "tags/0: "),
    ({"url": "https://m.example", "interval_s": 60, "colour": 1}, "colour: "),
    ({"url": "https://m.example", "interval_s": 60, "options": {"body_regex": "("}}, "options.body_regex: "),
    ({"interval_s": 60}, "url: "),
    (
        {"url": "https://m.example", "interval_s": 60, "maintenance": [{"start": "2026-01-01", "end": "x"}]},
        "maintenance/0/start: ",
    ),
    (
        {
            "url": "https://m.example",
            "interval_s": 60,
            "maintenance": [{"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z", "every": "day"}],
        },
        "maintenance/0: ",
    ),
]


@pytest.mark.parametrize(("body", "said"), BAD)
def test_bad_ones(http: TestClient, body: dict[str, Any], said: str) -> None:
    assert problem(http.post(MONITORS, content=json.dumps(body), headers=JSON), 422).startswith(said)


def test_of_many_each_has_its_answer(http: TestClient) -> None:
    first = create(http)
    items = [{"url": "https://m.example/", "interval_s": 60}, {"url": "https://n.example", "interval_s": 60}]
    items += [body for body, _ in BAD] + [7]  # type: ignore[list-item]
    body = http.post(MONITORS, content=json.dumps(items), headers=JSON).json()
    assert {name: body[name] for name in ("created", "exists", "invalid")} == {
        "created": 1, "exists": 1, "invalid": len(BAD) + 1
    }  # fmt: skip
    assert [item["position"] for item in body["items"]] == list(range(len(items)))
    exists, created, *invalid = body["items"]
    assert (exists["result"], exists["monitor_id"]) == ("exists", first["monitor_id"])
    assert (created["result"], created["detail"]) == ("created", None)
    assert http.get(f"{MONITORS}/{created['monitor_id']}").json()["url"] == "https://n.example/"
    for item, (_, said) in zip(invalid, BAD, strict=False):
        assert item["detail"].startswith(said)
    assert http.post(MONITORS, json=[]).json() == {"created": 0, "exists": 0, "invalid": 0, "items": []}


def test_many_come_as_lines_and_are_answered_in_lines(http: TestClient) -> None:
    lines = [json.dumps({"url": f"https://m{i}.example", "interval_s": 60}).encode() for i in range(2_500)]
    lines[1_000:1_000] = [b"not json", b"", b'{"url": "https://m7.example", "interval_s": 60}']
    reply = http.post(MONITORS, content=gzip.compress(b"\n".join(lines)), headers={**LINES, "content-encoding": "gzip"})
    assert reply.headers["content-type"] == "application/x-ndjson"
    answers = [json.loads(line) for line in reply.text.splitlines()]
    assert [answer["position"] for answer in answers] == list(range(2_502))
    assert {answer["result"] for answer in answers[:1_000] + answers[1_002:]} == {"created"}
    assert "line 1001 is not JSON" in answers[1_000]["detail"]
    assert answers[1_001]["monitor_id"] == answers[7]["monitor_id"]
    again = http.post(MONITORS, content=b"\n".join(lines), headers=LINES).text.splitlines()
    assert [json.loads(line)["result"] for line in again].count("exists") == 2_501


@pytest.mark.parametrize(
    ("content", "headers", "status", "name"),
    [
        (b"{", JSON, 422, "invalid-request"),
        (b"", JSON, 422, "invalid-request"),
        (b"https://m.example", {"content-type": "text/plain"}, 415, "http"),
        (b"x" * 70_000, LINES, 422, "invalid-request"),
    ],
)
def test_bodies_that_cannot_be_read(
    http: TestClient, content: bytes, headers: dict[str, str], status: int, name: str
) -> None:
    problem(http.post(MONITORS, content=content, headers=headers), status, name)


def test_one_is_changed(http: TestClient) -> None:
    old = create(http, tags=["x"])
    path = f"{MONITORS}/{old['monitor_id']}"
    new = http.patch(path, json={"interval_s": 3600, "paused": True, "options": {"method": "HEAD"}}).json()
    assert (new["interval_s"], new["paused"], new["options"]["method"]) == (3600, True, "HEAD")
    assert (new["tags"], new["monitor_id"], new["target"]) == (["x"], old["monitor_id"], old["target"])
    assert http.get(path).json() == new
    for body, said in [
        ({"url": "https://other.example"}, "url: "),
        ({"interval_s": 9}, "interval_s: "),
        ({"tags": None}, "value error, tags is null"),
        ({"options": {"proxy": "ftp://x"}}, "options.proxy: "),
    ]:
        assert problem(http.patch(path, json=body), 422).startswith(said)
    assert http.get(path).json() == new


def test_several_are_selected_changed_and_deleted(http: TestClient) -> None:
    made = [create(http, f"https://m{i}.example", tags=["even" if i % 2 == 0 else "odd"]) for i in range(5)]
    ids = [monitor["monitor_id"] for monitor in made]
    assert http.patch(MONITORS, params={"tag": "odd"}, json={"paused": True}).json() == {"monitors": 2}
    listed = http.get(MONITORS, params={"tag": "odd"}).json()["items"]
    assert [(monitor["monitor_id"], monitor["paused"]) for monitor in listed] == [(ids[1], True), (ids[3], True)]
    assert http.get(MONITORS, params={"url": "https://m2.example"}).json()["items"] == [made[2]]
    assert http.delete(MONITORS, params={"id": ids[:2]}).json() == {"monitors": 2}
    assert http.delete(MONITORS, params={"group": "m2.example", "tag": "odd"}).json() == {"monitors": 0}
    assert len(http.get(MONITORS).json()["items"]) == 3
    for reply in (
        http.delete(MONITORS),
        http.patch(MONITORS, json={"paused": True}),
        http.get(MONITORS, params={"name": "x"}),
        http.get(MONITORS, params={"url": "nonsense"}),
    ):
        problem(reply, 422)


def test_lag_and_skipped_slots_are_metrics(http: TestClient, platform: Platform, clock: HandClock) -> None:
    create(http)
    clock.now_ms += 3_600_000
    assert platform.lease.acquire()
    platform.crawl.take_due_monitors(10, lease=platform.lease)
    for lag_ms in (10, 11, 240, 90_000, -5):
        platform.crawl.punctuality.began(lag_ms)
    families = {f.name: f for f in text_string_to_metric_families(http.get("/metrics").text)}
    lag = {s.labels.get("le", s.name): s.value for s in families["urlhealth_monitor_lag_seconds"].samples}
    assert (lag["0.01"], lag["0.025"], lag["0.25"], lag["60.0"], lag["+Inf"]) == (2, 3, 4, 4, 5)
    assert lag["urlhealth_monitor_lag_seconds_sum"] == pytest.approx(90.261)
    (skipped,) = families["urlhealth_monitor_slots_skipped"].samples
    assert skipped.value in (59, 60)


def test_the_page_on_monitors_keeps_up(http: TestClient) -> None:
    page = (ROOT / "docs" / "monitors.md").read_text()
    named = set(re.findall(r"^\| `([A-Z]+) (/[^`]*)` \|", page, re.MULTILINE))
    paths = http.get("/openapi.json").json()["paths"]
    assert named == {(m.upper(), path) for path in paths if path.startswith(MONITORS) for m in paths[path]}
    fields = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert fields == list(MonitorRequest.model_fields)
    body, patch = re.findall(r"-d '(\{.*?\})'", page, re.DOTALL)
    assert parse_monitor({"url": "https://m.example"} | json.loads(patch)).schedule is not None
    (file,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert parse_monitor(json.loads(body)).name == "login"
    assert [parse_monitor(item).interval_s for item in yaml.safe_load(file)["monitors"]] == [300, 60]


ADAPTIVE = {"mode": "adaptive", "budget_per_url_hour": 20, "min_interval_s": 60, "max_interval_s": 1800}


def test_an_adaptive_schedule_is_kept_shown_and_exchanged(http: TestClient) -> None:
    reply = http.post(MONITORS, json={"url": "https://m.example", "schedule": ADAPTIVE, "weight": 2.5})
    assert reply.status_code == 201
    monitor = reply.json()
    assert monitor["schedule"] == ADAPTIVE | {"objective": "both", "pool": None}
    assert (monitor["weight"], monitor["interval_s"]) == (2.5, 180)
    path = f"{MONITORS}/{monitor['monitor_id']}"
    fixed = http.patch(path, json={"interval_s": 60}).json()
    assert (fixed["schedule"], fixed["interval_s"], fixed["weight"]) == (None, 60, 2.5)
    named = ADAPTIVE | {"objective": "delay", "pool": "shop"}
    assert http.patch(MONITORS, params={"url": "https://m.example"}, json={"schedule": named}).json()["monitors"] == 1
    assert http.get(path).json()["schedule"] == named


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "not both"),
        ({"interval_s": 60, "schedule": ADAPTIVE}, "not both"),
        ({"schedule": ADAPTIVE | {"budget_per_url_hour": 100}}, "choose one between 2 and 60"),
        ({"schedule": ADAPTIVE | {"min_interval_s": 5}}, "min_interval_s"),
        ({"schedule": ADAPTIVE | {"mode": "fixed"}}, "mode"),
        ({"interval_s": 60, "weight": 0}, "weight"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(http: TestClient, given: dict[str, Any], words: str) -> None:
    reply = http.post(MONITORS, json={"url": "https://m.example"} | given)
    assert reply.status_code == 422
    assert words in reply.text
    (answer,) = http.post(MONITORS, json=[{"url": "https://m.example"} | given]).json()["items"]
    assert answer["result"] == "invalid"
    assert words in answer["detail"]


def test_pools_say_where_their_budget_went(http: TestClient, platform: Platform, clock: HandClock) -> None:
    items = [{"url": f"https://m{i}.example", "schedule": ADAPTIVE} for i in range(3)]
    assert http.post(MONITORS, json=items).json()["created"] == 3
    (pool,) = http.get("/api/v1/polling").json()["items"]
    assert (pool["monitors"], pool["budget_per_hour"], pool["report"]) == (3, 60, None)
    platform.lease.acquire()
    assert len(platform.crawl.take_due_monitors(10, lease=platform.lease, ahead_ms=180_000)) == 3
    clock.now_ms += 501
    platform.crawl.take_due_monitors(10, lease=platform.lease)
    (pool,) = http.get("/api/v1/polling").json()["items"]
    assert pool["schedule"]["mode"] == "adaptive"
    assert pool["report"]["intervals_s"]["least"] >= 60
    assert pool["report"]["realised"]["caught_ratio"] is None
    assert pool["report"]["estimated"]["caught_ratio"] > 0
    polled = http.get(f"/api/v1/polling/{pool['pool_id']}/monitors", params={"limit": 2}).json()["items"]
    assert [item["probes"] for item in polled] == [1, 1]
    problem(http.get("/api/v1/polling/999/monitors"), 404, "not-found")
