"""The application over a real platform in a folder of its own, without background work: nothing is probed here."""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from serving.app import create_app
from serving.exports import NDJSON, as_csv, ndjson
from serving.intake import MAX_LINE_BYTES, limited, unpacked
from serving.middleware import MAX_BODY_BYTES
from serving.schemas import Features, Options, Predictions, Problem
from tests.support import noise_forecaster
from urlhealth.platform import Platform
from urlhealth.prediction.champion import Champion
from urlhealth.prediction.estimators import HealthForecaster
from urlhealth.probing.urls import parse_target
from urlhealth.settings import Settings
from urlhealth.vocabulary import Outcome, Probed, ProbeRequest, ProbeResult, ProbeSource, TaskStatus

NOW_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
TASKS = "/api/v1/tasks"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    settings = Settings(home=tmp_path_factory.mktemp("home"), max_urls_per_task=5, mlflow_tracking_uri="")
    with Platform(settings, clock=lambda: NOW_MS) as opened:
        yield opened


@pytest.fixture(scope="module")
def http(platform: Platform) -> Iterator[TestClient]:
    with TestClient(create_app(platform), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def forecaster() -> HealthForecaster:
    return noise_forecaster()


@pytest.fixture
def champion(platform: Platform, forecaster: HealthForecaster) -> Iterator[Champion]:
    platform.champion.current = Champion(name="url-health", version="7", forecaster=forecaster)
    yield platform.champion.current
    platform.champion.current = None


def assert_problem(reply: Any, status: int, name: str) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    body = reply.json()
    Problem.model_validate(body, strict=True)
    assert body["status"] == status
    assert body["type"] == f"urn:problem-type:urlhealth:{name}"
    assert body["instance"] == reply.request.url.path
    assert body["detail"]
    return dict(body)


class TestTasks:
    def test_creating_one_stores_it_before_the_reply(self, http: TestClient, platform: Platform) -> None:
        reply = http.post(TASKS, json={"urls": ["https://a.example", "https://a.example"], "options": {"timeout_s": 3}})
        assert reply.status_code == 202
        body = reply.json()
        assert body == {"task_id": body["task_id"], "status": "queued", "total": 2}
        assert reply.headers["location"] == f"{TASKS}/{body['task_id']}"
        stored = platform.crawl.task(body["task_id"])
        assert (stored.total, stored.options.timeout_s) == (2, 3.0)

    def test_reading_one(self, http: TestClient) -> None:
        location = http.post(TASKS, json={"urls": ["https://a.example"]}).headers["location"]
        task = http.get(location).json()
        assert task == {
            "task_id": location.rpartition("/")[2],
            "status": "queued",
            "total": 1,
            "done": 0,
            "outcomes": {},
            "workers": [],
            "options": Options().model_dump(mode="json"),
            "created_at": "2026-01-01T00:00:00.000Z",
            "started_at": None,
            "finished_at": None,
        }

    def test_results_that_are_waited_for_are_null(self, http: TestClient) -> None:
        location = http.post(TASKS, json={"urls": ["https://a.example", "https://B.example"]}).headers["location"]
        page = http.get(f"{location}/results", params={"limit": 1}).json()
        (item,) = page["items"]
        assert (item["position"], item["url"], item["outcome"]) == (0, "https://a.example", None)
        rest = http.get(f"{location}/results", params={"cursor": page["next_cursor"]}).json()
        assert [item["url"] for item in rest["items"]] == ["https://B.example"]
        assert rest["next_cursor"] is None

    def test_listing_is_newest_first_and_goes_on_by_cursor(self, http: TestClient) -> None:
        ids = [http.post(TASKS, json={"urls": ["https://a.example"]}).json()["task_id"] for _ in range(3)]
        first = http.get(TASKS, params={"limit": 2}).json()
        second = http.get(TASKS, params={"limit": 1, "cursor": first["next_cursor"]}).json()
        assert [task["task_id"] for task in first["items"] + second["items"]] == ids[::-1]
        assert http.get(TASKS, params={"status": "done"}).json() == {"items": [], "next_cursor": None}
        assert http.get(TASKS, params={"status": "queued"}).json()["items"]

    def test_deleting_one(self, http: TestClient) -> None:
        location = http.post(TASKS, json={"urls": ["https://a.example"]}).headers["location"]
        reply = http.delete(location)
        assert (reply.status_code, reply.content) == (204, b"")
        for again in (http.delete(location), http.get(location), http.get(f"{location}/results")):
            assert_problem(again, 404, "not-found")


LINES = {
    "text/plain": b"# shops\r\nhttps://a.example\r\n\r\n https://b.example \nhttps://a.example",
    "application/x-ndjson": b'"https://a.example"\n\n{"url": "https://b.example"}\n"https://a.example"\n',
}


class TestTasksInLines:
    @pytest.mark.parametrize("content_type", LINES)
    @pytest.mark.parametrize("packed", [False, True])
    def test_urls_line_by_line(self, http: TestClient, content_type: str, packed: bool) -> None:
        body = gzip.compress(LINES[content_type]) if packed else LINES[content_type]
        coding = {"content-encoding": "gzip"} if packed else {}
        # However the body is cut on its way.
        pieces = iter([body[i : i + 7] for i in range(0, len(body), 7)])
        reply = http.post(TASKS, content=pieces, headers={"content-type": f"{content_type}; charset=utf-8", **coding})
        assert reply.status_code == 202, reply.text
        assert reply.json()["total"] == 3
        items = http.get(f"{reply.headers['location']}/results").json()["items"]
        assert [item["url"] for item in items] == ["https://a.example", "https://b.example", "https://a.example"]

    def test_options_come_first(self, http: TestClient) -> None:
        body = b'{"options": {"timeout_s": 3}}\n"https://a.example"\n'
        reply = http.post(TASKS, content=body, headers={"content-type": "application/x-ndjson"})
        task = http.get(reply.headers["location"]).json()
        assert (task["total"], task["options"]["timeout_s"]) == (1, 3)

    def test_json_may_be_packed_too(self, http: TestClient) -> None:
        body = gzip.compress(b'{"urls": ["https://a.example"]}')
        assert http.post(TASKS, content=body, headers={**JSON, "content-encoding": "gzip"}).status_code == 202

    @pytest.mark.parametrize(
        ("content_type", "body", "name", "pointers"),
        [
            ("text/plain", b"https://a.example\nnope\n#\nftp://x/y", "invalid-urls", ["/urls/1", "/urls/2"]),
            ("text/plain", b"# nothing\n\n", "invalid-request", []),
            ("text/plain", b"\xff", "invalid-request", []),
            ("text/plain", b"https://a.example/" + b"x" * MAX_LINE_BYTES, "invalid-request", []),
            (NDJSON, b'"https://a.example"\n5\n{"uri": 1}\nnull', "invalid-urls", [f"/urls/{i}" for i in (1, 2, 3)]),
            (NDJSON, b'"https://a.example"\nhttps://b.example', "invalid-request", []),
            (NDJSON, b'{"options": {"nope": 3}}\n"https://a.example"', "invalid-request", ["/options/nope"]),
            (NDJSON, b'"https://a.example"\n' * 6, "invalid-urls", ["/urls/5"]),
        ],
    )  # fmt: skip
    def test_bad_ones(self, http: TestClient, content_type: str, body: bytes, name: str, pointers: list[str]) -> None:
        before = http.get(TASKS).json()
        reply = http.post(TASKS, content=body, headers={"content-type": content_type})
        problem = assert_problem(reply, 422, name)
        assert [item["pointer"] for item in problem.get("errors", [])] == pointers
        assert http.get(TASKS).json() == before

    @pytest.mark.parametrize(
        ("body", "coding", "status", "name"),
        [
            (b"https://a.example", "gzip", 422, "invalid-request"),
            (gzip.compress(b"https://a.example", mtime=0)[:-9], "gzip", 422, "invalid-request"),
            (b"https://a.example", "br", 415, "http"),
        ],
    )
    def test_bad_packing(self, http: TestClient, body: bytes, coding: str, status: int, name: str) -> None:
        headers = {"content-type": "text/plain", "content-encoding": coding}
        assert_problem(http.post(TASKS, content=body, headers=headers), status, name)

    def test_a_bomb_is_not_unpacked_as_a_whole(self) -> None:
        bomb = zlib.compressobj(wbits=31)
        packed = b"".join(bomb.compress(b"\n" * (1 << 20)) for _ in range(64)) + bomb.flush()
        parts = unpacked([packed])
        assert max(map(len, parts)) <= 1 << 20
        with pytest.raises(HTTPException, match="longer than 1000 bytes"):
            list(limited(unpacked([packed]), 1000))

    def test_gzip_files_joined_to_one(self) -> None:
        joined = gzip.compress(b"a" * (1 << 20)) + gzip.compress(b"b")
        assert b"".join(unpacked([joined[:40], joined[40:]])) == b"a" * (1 << 20) + b"b"


class TestIdempotency:
    def test_the_same_request_again_is_the_same_task(self, http: TestClient) -> None:
        headers = {"idempotency-key": "nightly-1"}
        body = {"urls": ["https://a.example"]}
        first = http.post(TASKS, json=body, headers=headers)
        again = http.post(TASKS, json=body, headers=headers)
        assert (again.status_code, again.json()) == (202, first.json())
        assert again.headers["location"] == first.headers["location"]
        other = http.post(TASKS, json={"urls": ["https://b.example"]}, headers=headers)
        assert_problem(other, 409, "key-reused")
        assert http.post(TASKS, json=body).json()["task_id"] != first.json()["task_id"]

    def test_a_key_that_is_too_long(self, http: TestClient) -> None:
        reply = http.post(TASKS, json={"urls": ["https://a.example"]}, headers={"idempotency-key": "x" * 256})
        assert_problem(reply, 422, "invalid-request")


class TestOptions:
    def test_secrets_are_taken_and_not_shown(self, http: TestClient, platform: Platform) -> None:
        options = {"headers": {"X-Api-Key": "hush"}, "basic_auth": "me:hush", "proxy": "http://me:hush@proxy.example"}
        reply = http.post(TASKS, json={"urls": ["https://a.example"], "options": options})
        stored = platform.crawl.task(reply.json()["task_id"]).options
        assert (stored.headers, stored.basic_auth) == ((("X-Api-Key", "hush"),), "me:hush")
        shown = http.get(reply.headers["location"])
        assert "hush" not in shown.text
        assert shown.json()["options"]["headers"] == {"X-Api-Key": "***"}
        assert shown.json()["options"]["bearer_token"] is None

    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"body_regex": "("}, "body_regex"),
            ({"method": "HEAD", "body_contains": "x"}, "body_contains"),
            ({"headers": {"User-Agent": "x"}}, "headers"),
            ({"retries": 11}, "retries"),
            ({"timeout_s": "Infinity"}, "timeout_s"),
        ],
    )
    def test_what_cannot_work(self, http: TestClient, options: dict[str, Any], word: str) -> None:
        reply = http.post(TASKS, json={"urls": ["https://a.example"], "options": options})
        assert word in assert_problem(reply, 422, "invalid-request")["detail"]


@pytest.fixture
def finished(platform: Platform) -> str:
    """A task of two URLs that both have their result; the id."""
    task = platform.crawl.create_task(["http://a.example/?q=1", "http://b.example"])
    (number,) = (t.number for t in platform.crawl.open_tasks(limit=1_000) if t.task_id == task.task_id)
    formula = '=HYPERLINK("http://evil.example"), "x"'
    found = [
        Probed(
            request=ProbeRequest(target=target, target_id=target_id, task_id=task.task_id),
            result=ProbeResult(target=target.key, ts_ms=NOW_MS, outcome=outcome, error=error, total_ms=1.5),
        )
        for (target_id, target), outcome, error in zip(
            platform.crawl.waiting_targets(number, after=0, limit=2),
            (Outcome.OK, Outcome.PROTOCOL),
            (None, formula),
            strict=True,
        )
    ]
    platform.lease.acquire()
    platform.crawl.file_results(found, worker="w", lease=platform.lease)
    platform.lease.release()
    return task.task_id


class TestWholeResults:
    @pytest.mark.parametrize(
        ("query", "accept", "content_type"),
        [
            ("", "*/*", "application/json"),
            ("", "text/html, application/json, text/csv;q=0.5", "application/json"),
            ("", "application/json;q=0.5, text/csv", "text/csv; charset=utf-8"),
            ("", "application/x-ndjson", "application/x-ndjson"),
            ("?format=csv", "application/json", "text/csv; charset=utf-8"),
            ("?format=json", "text/csv", "application/json"),
        ],
    )
    def test_the_format_is_chosen(
        self, http: TestClient, finished: str, query: str, accept: str, content_type: str
    ) -> None:
        reply = http.get(f"{TASKS}/{finished}/results{query}", headers={"accept": accept})
        assert (reply.status_code, reply.headers["content-type"]) == (200, content_type)

    def test_all_forms_say_the_same(self, http: TestClient, finished: str) -> None:
        path = f"{TASKS}/{finished}/results"
        items = http.get(path).json()["items"]
        lines = http.get(path, params={"format": "ndjson"}).text.splitlines()
        assert [json.loads(line) for line in lines] == items
        rows = list(csv.DictReader(io.StringIO(http.get(path, params={"format": "csv"}).text)))
        assert list(rows[0]) == list(items[0])
        assert [(row["url"], row["outcome"], row["total_ms"]) for row in rows] == [
            (item["url"], item["outcome"], "1.5") for item in items
        ]
        # A spreadsheet would take the error for a formula; elsewhere it is as it is.
        assert items[1]["error"].startswith("=")
        assert rows[1]["error"] == f"'{items[1]['error']}"

    def test_bad_ones(self, http: TestClient, finished: str) -> None:
        assert_problem(http.get(f"{TASKS}/{finished}/results?format=xml"), 422, "invalid-request")
        assert_problem(http.get(f"{TASKS}/none/results?format=csv"), 404, "not-found")

    @pytest.mark.parametrize("rows_of", [ndjson, as_csv])
    def test_a_slow_reader_holds_nothing_of_the_database(
        self, platform: Platform, finished: str, rows_of: Callable[..., Iterator[bytes]]
    ) -> None:
        rows = rows_of(platform.crawl.iter_results(finished))
        assert next(rows)
        assert platform.crawl._engine.pool.checkedout() == 0


class TestEvents:
    def test_a_finished_task_is_said_once(self, http: TestClient, finished: str) -> None:
        path = f"{TASKS}/{finished}/events"
        reply = http.get(path)
        assert reply.headers["content-type"].startswith("text/event-stream")
        number, name, data = reply.text.strip().splitlines()
        assert name == "event: done"
        assert json.loads(data.removeprefix("data: ")) == http.get(f"{TASKS}/{finished}").json()
        last = {"last-event-id": number.removeprefix("id: ")}
        again = http.get(path, headers=last)
        assert (again.status_code, again.content) == (204, b"")
        assert http.get(path, headers={"last-event-id": "0-queued"}).text == reply.text
        assert_problem(http.get(f"{TASKS}/none/events"), 404, "not-found")

    def test_cancelling_ends_it(self, http: TestClient) -> None:
        location = http.post(TASKS, json={"urls": ["https://a.example"]}).headers["location"]
        task = http.post(f"{location}/cancel").json()
        assert task["status"] == "cancelled"
        assert http.get(f"{location}/events").text.splitlines()[1] == "event: cancelled"
        assert http.get(location).json() == task
        assert_problem(http.post(f"{TASKS}/none/cancel"), 404, "not-found")


class TestSmallCrawler:
    def test_shapes_while_nothing_is_finished(self, http: TestClient) -> None:
        reply = http.post("/submit", json={"urls": ["https://a.example"], "unknown": 1})
        assert reply.status_code == 200
        task_id = reply.json()["task_id"]
        assert reply.json() == {"task_id": task_id}
        assert http.get(f"/tasks/{task_id}").json() == {"status": "running", "result": {}}
        listing = http.get("/tasks")
        assert listing.json()[task_id] == {"status": "running", "result": {}}
        assert listing.headers["x-limit"] == "tasks=100, results=10000"
        assert http.delete(f"/tasks/{task_id}").status_code == 204
        assert_problem(http.delete(f"/tasks/{task_id}"), 404, "not-found")
        assert_problem(http.get(f"/tasks/{task_id}"), 404, "not-found")


class TestPredictions:
    def test_without_a_model(self, http: TestClient) -> None:
        problem = assert_problem(
            http.post("/api/v1/predictions", json={"urls": ["https://a.example"]}), 503, "no-model"
        )
        assert "urlhealth train" in problem["detail"]

    def test_a_url_never_seen_is_missing_and_no_error(self, http: TestClient, champion: Champion) -> None:
        urls = ["https://never.example/b", "https://never.example/a"]
        reply = http.post("/api/v1/predictions", json={"urls": urls, "horizons": ["6h", "1h"], "explain": True})
        assert reply.status_code == 200
        Predictions.model_validate(reply.json(), strict=False)
        items = reply.json()["items"]
        assert [(item["url"], item["horizon"]) for item in items] == [(u, h) for u in urls for h in ("6h", "1h")]
        for item in items:
            assert item | {"target": "", "url": "", "horizon": ""} == {
                "url": "",
                "target": "",
                "horizon": "",
                "status": "missing",
                "health": "unknown",
                "probability": None,
                "probability_at_end": None,
                "age_s": None,
                "observed_at": None,
                "model": champion.name,
                "model_version": champion.version,
                "reasons": [],
            }
        assert reply.json()["request_id"] == reply.headers["x-request-id"]

    @pytest.mark.usefixtures("champion")
    def test_a_request_may_refuse_what_is_old(self, http: TestClient) -> None:
        body = {"urls": ["https://never.example"], "max_age_s": 60, "on_stale": "error", "horizons": ["1h", "1h"]}
        problem = assert_problem(http.post("/api/v1/predictions", json=body), 409, "too-old")
        assert [item["pointer"] for item in problem["errors"]] == ["/urls/0"]
        reply = http.post("/api/v1/predictions", json=body | {"on_stale": "null"})
        assert [item["probability"] for item in reply.json()["items"]] == [None]

    def test_features_of_a_url_never_seen(self, http: TestClient) -> None:
        reply = http.post("/api/v1/features", json={"urls": ["https://never.example"]})
        Features.model_validate(reply.json(), strict=False)
        assert reply.json() == {
            "items": [
                {
                    "url": "https://never.example",
                    "target": "https://never.example/",
                    "status": "missing",
                    "age_s": None,
                    "observed_at": None,
                    "features": None,
                }
            ]
        }


@pytest.mark.usefixtures("champion")
class TestBadInput:
    @pytest.mark.parametrize("path", [TASKS, "/submit", "/api/v1/features", "/api/v1/predictions"])
    @pytest.mark.parametrize(
        ("body", "name", "pointers"),
        [
            ({}, "invalid-request", ["/urls"]),
            ([], "invalid-request", [""]),
            ({"urls": "https://a.example"}, "invalid-request", ["/urls"]),
            ({"urls": []}, "invalid-request", ["/urls"]),
            ({"urls": ["https://a.example", 7, None]}, "invalid-urls", ["/urls/1", "/urls/2"]),
            (
                {"urls": ["http://", "nope", "ftp://x/y", 5, ""]},
                "invalid-urls",
                [f"/urls/{i}" for i in range(5)],
            ),
            ({"urls": ["nonsense", "https://a.example", "ftp://a.example"]}, "invalid-urls", ["/urls/0", "/urls/2"]),
            ({"urls": ["https://a.example/" + "x" * 100_000]}, "invalid-urls", ["/urls/0"]),
            ({"urls": ["https://a.example", "\ud800"]}, "invalid-urls", ["/urls/1"]),
        ],
    )
    def test_positions_are_named(self, http: TestClient, path: str, body: Any, name: str, pointers: list[str]) -> None:
        problem = assert_problem(http.post(path, content=json.dumps(body), headers=JSON), 422, name)
        assert [item["pointer"] for item in problem["errors"]] == pointers
        assert len(problem["detail"]) < 300

    @pytest.mark.parametrize(("path", "most"), [(TASKS, 5), ("/submit", 5), ("/api/v1/features", 1000)])
    def test_too_many_urls(self, http: TestClient, path: str, most: int) -> None:
        reply = http.post(path, json={"urls": ["https://a.example"] * (most + 2)})
        assert reply.status_code == 422
        assert [item["pointer"] for item in reply.json()["errors"]] == [f"/urls/{most}"]
        assert f"at most {most}" in reply.json()["detail"]

    @pytest.mark.parametrize(
        ("content", "content_type"),
        [
            (b"{", "application/json"),
            (b"", "application/json"),
            (b"[" * 100_000, "application/json"),
            (b'{"urls": ["\xff"]}', "application/json"),
            (b'{"urls": ["https://a.example"], "\\ud800": 1}', "application/json"),
            (b'{"urls": ' + b"9" * 5_000 + b"}", "application/json"),
        ],
    )
    def test_what_is_not_json(self, http: TestClient, content: bytes, content_type: str) -> None:
        reply = http.post(TASKS, content=content, headers={"content-type": content_type})
        assert_problem(reply, 422, "invalid-request")

    @pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "application/xml", ""])
    def test_what_a_task_cannot_be_sent_as(self, http: TestClient, content_type: str) -> None:
        reply = http.post(TASKS, content=b"https://a.example", headers={"content-type": content_type})
        assert "text/plain" in assert_problem(reply, 415, "http")["detail"]

    def test_a_body_beyond_the_limit(self, http: TestClient) -> None:
        body = b" " * (MAX_BODY_BYTES + 1)
        for content in (body, iter([body])):  # The second is sent in chunks, without its length in front.
            assert_problem(http.post(TASKS, content=content, headers=JSON), 413, "too-long")

    @pytest.mark.parametrize(
        "body",
        [
            {"urls": ["https://a.example"], "horizons": ["2h"]},
            {"urls": ["https://a.example"], "horizons": []},
            {"urls": ["https://a.example"], "explian": True},
        ],
    )
    def test_bad_predictions(self, http: TestClient, body: dict[str, Any]) -> None:
        assert_problem(http.post("/api/v1/predictions", json=body), 422, "invalid-request")

    def test_bad_requests_for_predictions(self, http: TestClient) -> None:
        body = {"urls": ["https://a.example"]}
        long = http.post("/api/v1/predictions", params={"model": "9" * 201}, json=body)
        assert assert_problem(long, 422, "invalid-request")["errors"][0]["parameter"] == "model"
        empty = http.post("/api/v1/predictions", content=b"", headers=JSON)
        assert "missing" in assert_problem(empty, 422, "invalid-request")["detail"]
        kind = {"content-type": "application/merge-patch+json"}
        assert http.post("/api/v1/predictions", content=json.dumps(body), headers=kind).status_code == 200
        form = http.post("/api/v1/predictions", data={"urls": "https://a.example"})
        assert "application/json" in assert_problem(form, 422, "invalid-request")["detail"]

    def test_bad_options(self, http: TestClient) -> None:
        body = {"urls": ["https://a.example"], "options": {"timeout_s": -1, "verify": False}}
        problem = assert_problem(http.post(TASKS, json=body), 422, "invalid-request")
        assert [item["pointer"] for item in problem["errors"]] == ["/options/timeout_s", "/options/verify"]

    @pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=1001", "status=lost"])
    def test_bad_parameters(self, http: TestClient, query: str) -> None:
        problem = assert_problem(http.get(f"{TASKS}?{query}"), 422, "invalid-request")
        assert problem["errors"][0]["parameter"] == query.partition("=")[0]

    def test_a_cursor_of_another_list(self, http: TestClient) -> None:
        assert_problem(http.get(f"{TASKS}?cursor=abc"), 422, "invalid-cursor")


class TestOtherErrors:
    @pytest.mark.parametrize(
        "path", ["/nope", "/api/v1/tasks/none/nope", "/static/nope.css", f"{TASKS}/%00", "/tasks/x"]
    )
    def test_not_found(self, http: TestClient, path: str) -> None:
        assert_problem(http.get(path), 404, "not-found")

    def test_a_method_that_is_not_allowed(self, http: TestClient) -> None:
        reply = http.put("/submit", json={})
        assert_problem(reply, 405, "method-not-allowed")
        assert reply.headers["allow"] == "POST"

    def test_a_fault_of_ours_shows_nothing_of_the_inside(self) -> None:
        broken = create_app(None)  # Its lifespan never runs: there is no platform behind it.
        reply = TestClient(broken, raise_server_exceptions=False).get(TASKS)
        assert_problem(reply, 500, "internal")
        assert "NoneType" not in reply.text
        assert reply.headers["x-request-id"]

    @pytest.mark.parametrize(("sent", "kept"), [("abc-1.2_3", True), ("a b", False), ("x" * 65, False), ("<", False)])
    def test_request_ids(self, http: TestClient, sent: str, kept: bool) -> None:
        got = http.get("/health/live", headers={"x-request-id": sent}).headers["x-request-id"]
        assert (got == sent) is kept
        assert got


class TestWhoIsServed:
    @pytest.mark.parametrize(
        ("server", "status"),
        [
            (("127.0.0.1", 8000), 200),
            (("::1", 8000), 200),
            (("::ffff:127.0.0.1", 8000), 200),
            (("/run/urlhealth.sock", None), 200),
            (("192.168.1.2", 8000), 403),
            (("fe80::1%eth0", 8000), 403),
        ],
    )
    def test_a_connection_to_an_address_that_others_reach_is_refused(
        self, platform: Platform, server: tuple[str, int | None], status: int
    ) -> None:
        app = create_app(platform)

        async def at_server(scope: Scope, receive: Receive, send: Send) -> None:
            await app(scope | {"server": server}, receive, send)

        reply = TestClient(at_server, base_url="http://127.0.0.1").get("/health/live")
        assert reply.status_code == status
        if status == 403:
            assert "authentication" in assert_problem(reply, 403, "not-local")["detail"]
            assert reply.headers["x-request-id"]

    def test_a_name_that_was_made_to_mean_this_machine_is_refused(self, platform: Platform) -> None:
        app = create_app(platform)

        async def at_server(scope: Scope, receive: Receive, send: Send) -> None:
            await app(scope | {"server": ("127.0.0.1", 8000)}, receive, send)

        client = TestClient(at_server)
        for host, status in [("evil.example", 403), ("localhost:8000", 200), ("a.localhost", 200), ("[::1]:8000", 200)]:
            assert client.get("/health/live", headers={"host": host}).status_code == status

    def test_a_page_of_another_site_cannot_change_anything(self, http: TestClient) -> None:
        foreign = {"sec-fetch-site": "cross-site"}
        assert_problem(http.post(TASKS, json={"urls": ["https://a.example"]}, headers=foreign), 403, "not-local")
        assert http.get(TASKS, headers=foreign).status_code == 200
        for foreign in ({"sec-fetch-site": "same-site"}, {"origin": "https://evil.example"}, {"origin": "null"}):
            assert_problem(http.post(TASKS, json={"urls": ["https://a.example"]}, headers=foreign), 403, "not-local")


class TestOperations:
    def test_live(self, http: TestClient) -> None:
        assert http.get("/health/live").json() == {"status": "live"}

    @pytest.mark.parametrize("path", ["/health/live", "/", "/docs", "/api/v1/tasks"])
    def test_head_is_get_without_a_body(self, http: TestClient, path: str) -> None:
        reply = http.head(path)
        assert (reply.status_code, reply.content) == (200, b"")
        assert reply.headers["content-type"] == http.get(path).headers["content-type"]

    def test_it_is_not_ready_before_it_looked_for_a_model(self, http: TestClient) -> None:
        reply = http.get("/health/ready")
        assert reply.status_code == 503
        bad = [check for check in reply.json()["checks"] if not check["ok"]]
        assert [check["name"] for check in bad] == ["model"]
        assert "wait" in bad[0]["advice"]

    @pytest.mark.usefixtures("champion")
    def test_ready_with_a_model(self, http: TestClient) -> None:
        assert http.get("/health/ready").status_code == 200

    @pytest.mark.usefixtures("champion")
    def test_metrics(self, http: TestClient) -> None:
        http.get(f"{TASKS}/none")
        http.get("/nowhere/1")
        http.request("BREW", "/health/live")
        families = {f.name: f for f in text_string_to_metric_families(http.get("/metrics").text)}
        requests = families["urlhealth_http_request_duration_seconds"].samples
        routes = {(s.labels["method"], s.labels["route"], s.labels["status"]) for s in requests}
        assert ("GET", f"{TASKS}/{{task_id}}", "404") in routes
        assert ("GET", "other", "404") in routes
        assert "BREW" not in {method for method, _, _ in routes}
        tasks = {s.labels["status"]: s.value for s in families["urlhealth_tasks"].samples}
        assert set(tasks) == set(TaskStatus)
        assert families["urlhealth_model_info"].samples[0].labels == {"name": "url-health", "version": "7"}
        assert {"urlhealth_pipeline_lag_verdicts", "urlhealth_writer", "urlhealth_targets"} <= set(families)

    def test_two_applications_share_nothing(self, platform: Platform) -> None:
        first, second = TestClient(create_app(platform)), TestClient(create_app(platform))
        first.get("/health/live")
        assert 'route="/health/live"' in first.get("/metrics").text
        assert 'route="/health/live"' not in second.get("/metrics").text


class TestDocuments:
    def test_openapi_has_every_route_described(self, http: TestClient) -> None:
        document = http.get("/openapi.json").json()
        operations = {(m.upper(), p): op for p, item in document["paths"].items() for m, op in item.items()}
        assert set(operations) == {
            ("GET", "/api/v1/audit"),
            ("GET", "/api/v1/keys"),
            ("POST", "/api/v1/keys"),
            ("GET", "/api/v1/keys/{key_id}"),
            ("DELETE", "/api/v1/keys/{key_id}"),
            ("POST", "/api/v1/keys/{key_id}/rotate"),
            ("POST", "/submit"),
            ("GET", "/tasks"),
            ("GET", "/tasks/{task_id}"),
            ("DELETE", "/tasks/{task_id}"),
            ("POST", TASKS),
            ("GET", TASKS),
            ("GET", f"{TASKS}/{{task_id}}"),
            ("DELETE", f"{TASKS}/{{task_id}}"),
            ("GET", f"{TASKS}/{{task_id}}/results"),
            ("GET", f"{TASKS}/{{task_id}}/events"),
            ("POST", f"{TASKS}/{{task_id}}/cancel"),
            ("POST", "/api/v1/monitors"),
            ("GET", "/api/v1/monitors"),
            ("GET", "/api/v1/monitors/{monitor_id}"),
            ("PATCH", "/api/v1/monitors"),
            ("DELETE", "/api/v1/monitors"),
            ("PATCH", "/api/v1/monitors/{monitor_id}"),
            ("DELETE", "/api/v1/monitors/{monitor_id}"),
            ("POST", "/api/v1/features"),
            ("GET", "/api/v1/predictions"),
            ("GET", "/api/v1/url"),
            ("GET", "/api/v1/url/history"),
            ("GET", "/api/v1/url/incidents"),
            ("DELETE", "/api/v1/url"),
            ("POST", "/api/v1/predictions"),
            ("POST", "/graphql"),
            ("GET", "/api/v1/models/url-health/quality"),
            ("GET", "/api/v1/polling"),
            ("GET", "/api/v1/polling/{pool_id}/monitors"),
            ("GET", "/api/v1/alerts"),
            ("GET", "/api/v1/alerts/rules"),
            ("PUT", "/api/v1/alerts/rules"),
            ("DELETE", "/api/v1/alerts/rules/{name}"),
            ("DELETE", "/api/v1/alerts/channels/{name}"),
            ("POST", "/api/v1/alerts/test"),
            ("GET", "/api/v1/alerts/dead-letters"),
            ("POST", "/api/v1/alerts/dead-letters/{message_id}/retry"),
            ("GET", "/health/live"),
            ("GET", "/health/ready"),
            ("GET", "/metrics"),
            ("POST", "/api/v1/score"),
            ("POST", "/invocations"),
            ("GET", "/v1/models/{model}"),
            ("GET", "/v1/models/{model}/versions/{version}"),
            ("POST", "/v1/models/{model}:predict"),
            ("POST", "/v1/models/{model}/versions/{version}:predict"),
            ("GET", "/v2"),
            ("GET", "/v2/health/live"),
            ("GET", "/v2/health/ready"),
            ("GET", "/v2/models/{model}"),
            ("GET", "/v2/models/{model}/ready"),
            ("POST", "/v2/models/{model}/infer"),
            ("GET", "/v2/models/{model}/versions/{version}"),
            ("GET", "/v2/models/{model}/versions/{version}/ready"),
            ("POST", "/v2/models/{model}/versions/{version}/infer"),
        }
        for (_, path), operation in operations.items():
            own_form = path.startswith(("/v1", "/v2", "/invocations"))
            assert operation["summary"]
            assert operation["description"]
            assert list(operation["responses"]["default"]["content"]) == [
                "application/json" if own_form else "application/problem+json"
            ]
        assert len({op["operationId"] for op in operations.values()}) == len(operations)

    def test_openapi_references_resolve(self, http: TestClient) -> None:
        reply = http.get("/openapi.json")
        schemas = reply.json()["components"]["schemas"]
        referenced = set(re.findall(r'"#/components/schemas/([^"]+)"', reply.text))
        assert referenced
        assert referenced <= set(schemas)
        assert "HTTPValidationError" not in schemas

    def test_swagger_page_needs_no_other_host(self, http: TestClient) -> None:
        page = http.get("/docs")
        assert page.status_code == 200
        assert "//" not in page.text
        assert "default-src 'self'" in page.headers["content-security-policy"]
        loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(loaded) == 4
        for path in loaded:
            assert http.get(f"/{path}").status_code == 200
        assert "validatorUrl: null" in http.get("/static/swagger.js").text


class TestOverview:
    def test_an_empty_platform(self, tmp_path: Path) -> None:
        with Platform(Settings(home=tmp_path)) as empty:
            page = TestClient(create_app(empty)).get("/")
        assert page.status_code == 200
        assert "No URL has been probed yet" in page.text

    def test_with_and_without_a_model(self, tmp_path: Path, champion: Champion) -> None:
        url = "https://a.example/'<script>?q=&amp;"
        up = parse_target(url)
        simulated = parse_target("https://b.example/")
        with Platform(Settings(home=tmp_path), clock=lambda: NOW_MS) as own:
            for target, outcome, source in (
                (up, Outcome.OK, ProbeSource.IMPORT),
                (simulated, Outcome.TIMEOUT, ProbeSource.SIMULATED),
            ):
                result = ProbeResult(target=target.key, ts_ms=NOW_MS - 180_000, outcome=outcome, total_ms=5.0)
                own.crawl.import_probes([(target, result)], source=source)
            own.lease.acquire()
            assert own.pipeline.step() == 2
            page = TestClient(create_app(own)).get("/").text
            assert "Nothing is predicted yet" in page
            assert page.count("3 minutes ago") == 2
            assert page.count("simulated history") == 1
            assert page.index("b.example") < page.index("simulated history")
            assert '<td class="up">up</td>' in page
            assert '<td class="down">down</td>' in page
            assert "<script>" not in page
            assert "a.example/&#39;" in page
            own.champion.current = champion
            assert own.rescorer.step() == 2
            page = TestClient(create_app(own)).get("/").text
            assert "url-health version 7" in page
            assert "Nothing is predicted yet" not in page
            assert page.index("b.example") < page.index("a.example")  # What fails now is certain to be seen failing.
            assert "100.0 %" in page
            assert "//" not in re.sub(r"https://[ab]\.example", "", page)
