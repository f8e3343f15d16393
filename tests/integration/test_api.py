"""The API of a running `urlhealth serve`, on sites of known behaviour."""

import json
import signal
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from demo.sample_web import SampleWeb
from demo.sites import Kind
from serving.schemas import Listing, Task, TaskResult
from tests.support import Api, platform_process, wait_until
from urlhealth.prediction.champion import BUNDLED

PRIVATE = "http://10.1.2.3/"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with platform_process(tmp_path_factory.mktemp("home")) as (api, _):
        yield api
        api.http.close()


def site_of(web: SampleWeb, kind: Kind) -> str:
    """The URL of a site of this kind that is plain http, unless the kind is about certificates."""
    return next(s.url for s in web.sites if s.kind is kind and (s.certificate is None or kind is Kind.SELF_SIGNED))


def test_the_four_calls_of_the_small_crawler(api: Api, sample_web: SampleWeb) -> None:
    expected = {
        site_of(sample_web, Kind.STEADY): {},
        site_of(sample_web, Kind.REDIRECT): {},
        site_of(sample_web, Kind.NOT_FOUND): {"http": 404},
        site_of(sample_web, Kind.LOOP): {"http": "TOO_MANY_REDIRECTS"},
        site_of(sample_web, Kind.SELF_SIGNED): {"http": "SSL_ERROR"},
        site_of(sample_web, Kind.RESET): {"http": "CONNECTION_ERROR"},
        site_of(sample_web, Kind.HUGE): {"http": "TOO_LARGE"},
        site_of(sample_web, Kind.HANGING): {"http": "TIMEOUT"},
        PRIVATE: {"http": "BLOCKED_ADDRESS"},
    }
    before_s = int(time.time())
    reply = api.http.post("/submit", json={"urls": list(expected)})
    assert reply.status_code == 200
    assert set(reply.json()) == {"task_id"}
    task_id = reply.json()["task_id"]

    hanging = site_of(sample_web, Kind.HANGING)
    path = f"/tasks/{task_id}"
    # All but the hanging one are there long before it: what is finished is shown while the task is running.
    partly = wait_until(
        lambda: (task := api.http.get(path).json()) and len(task["result"]) == len(expected) - 1 and task,
        timeout_s=9,
        what="all but the hanging site",
    )
    assert partly["status"] == "running"
    assert hanging not in partly["result"]

    done = wait_until(
        lambda: (task := api.http.get(path).json())["status"] == "done" and task, timeout_s=20, what="the task"
    )
    assert set(done) == {"status", "result"}
    assert {url: found["errors"] for url, found in done["result"].items()} == expected
    for found in done["result"].values():
        assert set(found) == {"timestamp", "errors"}
        assert type(found["timestamp"]) is int
        assert before_s <= found["timestamp"] <= time.time()

    listing = api.http.get("/tasks")
    assert listing.json()[task_id] == done
    assert listing.headers["x-limit"] == "tasks=100, results=10000"

    reply = api.http.delete(path)
    assert (reply.status_code, reply.content) == (204, b"")
    assert api.http.get(path).status_code == 404
    assert api.http.delete(path).status_code == 404
    assert task_id not in api.http.get("/tasks").json()


def test_a_task_from_its_creation_to_its_results(api: Api, sample_web: SampleWeb) -> None:
    steady, missing = site_of(sample_web, Kind.STEADY), site_of(sample_web, Kind.NOT_FOUND)
    sent = [steady, missing, steady.upper().replace("HTTP", "http")]
    reply = api.http.post("/api/v1/tasks", json={"urls": sent})
    assert reply.status_code == 202
    assert reply.json() == {"task_id": reply.json()["task_id"], "status": "queued", "total": 3}
    assert reply.headers["location"] == f"/api/v1/tasks/{reply.json()['task_id']}"

    api.wait_done(reply.json()["task_id"])
    raw = api.http.get(reply.headers["location"])
    task = Task.model_validate_json(raw.content)
    assert (task.status, task.total, task.done) == ("done", 3, 3)
    assert task.outcomes == {"ok": 2, "http_error": 1}
    assert len(task.workers) == 1
    times = [task.created_at, task.started_at, task.finished_at]
    assert times == sorted(filter(None, times))
    assert datetime.now(UTC) - datetime.fromisoformat(task.created_at) < timedelta(minutes=1)

    page = Listing[TaskResult].model_validate_json(api.http.get(f"{reply.headers['location']}/results").content)
    assert page.next_cursor is None
    assert [(item.position, item.url) for item in page.items] == list(enumerate(sent))
    ok, not_found, same = page.items
    assert (ok.outcome, ok.status_code, ok.error, ok.target) == ("ok", 200, None, steady)
    assert (not_found.outcome, not_found.status_code) == ("http_error", 404)
    assert same.target == ok.target
    for phase in (ok.dns_ms, ok.connect_ms, ok.first_byte_ms, ok.total_ms):
        assert phase is not None
        assert 0 <= phase < 10_000
    assert ok.tls_ms is None
    assert ok.address in ("127.0.0.1", "::1")
    assert ok.timestamp is not None
    assert task.created_at <= ok.timestamp <= str(task.finished_at)


def test_a_task_is_followed_to_its_end(api: Api, sample_web: SampleWeb) -> None:
    # The hanging one is there last, so that there is something to follow.
    urls = [site_of(sample_web, Kind.STEADY), site_of(sample_web, Kind.NOT_FOUND), site_of(sample_web, Kind.HANGING)]
    body = b'{"options": {"timeout_s": 2}}\n' + b"".join(f'"{url}"\n'.encode() for url in urls)
    reply = api.http.post("/api/v1/tasks", content=body, headers={"content-type": "application/x-ndjson"})
    location = reply.headers["location"]
    events = follow(api, location)
    tasks = [json.loads(event["data"]) for event in events]
    assert [event["event"] for event in events] == ["progress"] * (len(events) - 1) + ["done"]
    assert len(events) > 1
    assert [task["done"] for task in tasks] == sorted(task["done"] for task in tasks)
    assert tasks[-1] == api.http.get(location).json()
    # Whoever lost the connection goes on where it was.
    assert follow(api, location, after=events[-2]["id"]) == events[-1:]
    lines = api.http.get(f"{location}/results", params={"format": "ndjson"}).text.splitlines()
    assert [TaskResult.model_validate_json(line).outcome for line in lines] == ["ok", "http_error", "timeout"]


def test_nothing_stays_of_a_body_that_breaks_off(tmp_path: Path) -> None:
    with platform_process(tmp_path / "home") as (api, _):
        port = httpx.URL(api.url).port
        assert port is not None
        with socket.create_connection(("127.0.0.1", port)) as sender:
            head = (
                "POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\n"
                "Content-Type: text/plain\r\nContent-Length: 1000000\r\n\r\n"
            )
            sender.sendall(head.encode() + b"https://a.example\n" * 100)
        broken = 'route="/api/v1/tasks",status="422"'
        wait_until(lambda: broken in api.http.get("/metrics").text, timeout_s=20, what="the request to end")
        assert api.http.get("/api/v1/tasks").json()["items"] == []
        assert "Traceback" not in (tmp_path / "home" / "serve.log").read_text()


def test_a_server_with_a_follower_stops_all_the_same(tmp_path: Path, sample_web: SampleWeb) -> None:
    with platform_process(tmp_path / "home") as (api, process):
        body = {"urls": [site_of(sample_web, Kind.HANGING)], "options": {"timeout_s": 120}}
        location = api.http.post("/api/v1/tasks", json=body).headers["location"]
        with api.http.stream("GET", f"{location}/events") as reply:
            lines = reply.iter_lines()  # Kept: to forget it would close the connection.
            assert next(lines).startswith("id: ")
            process.terminate()
            assert process.wait(60) == -signal.SIGTERM  # What uvicorn ends with when it has stopped in order.


def follow(api: Api, location: str, after: str | None = None) -> list[dict[str, str]]:
    """The events of a task up to its end."""
    headers = {} if after is None else {"last-event-id": after}
    with api.http.stream("GET", f"{location}/events", headers=headers) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        text = reply.read().decode()
    return [dict(line.split(": ", 1) for line in event.splitlines()) for event in text.strip().split("\n\n")]


def test_what_was_probed_has_features_and_a_line_on_the_page(api: Api, sample_web: SampleWeb) -> None:
    up, down = site_of(sample_web, Kind.STEADY), site_of(sample_web, Kind.SERVER_ERROR)
    api.wait_done(api.submit([up, down]))
    wait_until(
        lambda: all(item["status"] == "fresh" for item in api.features([up, down])), timeout_s=20, what="features"
    )
    items = api.features([down, "https://never.example", up])
    assert [item["status"] for item in items] == ["fresh", "missing", "fresh"]
    assert [item["features"] and item["features"]["failing_now"] for item in items] == [1, None, 0]
    assert items[0]["age_s"] < 60
    assert api.http.get("/").headers["content-type"] == "text/html; charset=utf-8"
    lines = {
        f'">{url}</a></td>\n        <td class="{state}">{state}</td>' for url, state in ((down, "down"), (up, "up"))
    }
    wait_until(lambda: all(line in api.http.get("/").text for line in lines), timeout_s=20, what="lines on the page")


def test_a_monitor_is_probed(api: Api, sample_web: SampleWeb) -> None:
    url = next(s.url for s in sample_web.sites[1:] if s.kind is Kind.STEADY and s.certificate is None)
    reply = api.http.post("/api/v1/monitors", json={"url": url, "interval_s": 10})
    assert reply.status_code == 201
    wait_until(lambda: api.features([url])[0]["status"] == "fresh", timeout_s=30, what="the monitor's first probe")
    assert api.http.delete(reply.headers["location"]).status_code == 204


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/submit", b"not json", 422),
        ("POST", "/api/v1/tasks", b'{"urls": []}', 422),
        ("POST", "/api/v1/tasks", b'{"urls": ["gopher://a.example"]}', 422),
        ("POST", "/api/v1/predictions", b'{"urls": ["https://a.example"], "on_stale": "error"}', 409),
        ("POST", "/", b"{}", 405),
        ("GET", "/tasks/unknown", b"", 404),
        ("GET", "/nowhere", b"", 404),
        ("GET", "/%ff%00", b"", 404),
    ],
)
def test_errors_are_problems(api: Api, method: str, path: str, content: bytes, status: int) -> None:
    reply = httpx.request(method, api.url + path, content=content, headers={"content-type": "application/json"})
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["status"] == status
    assert reply.headers["x-request-id"]


def test_it_is_live_and_becomes_ready(api: Api) -> None:
    assert api.http.get("/health/live").status_code == 200
    wait_until(lambda: api.http.get("/health/ready").status_code == 200, timeout_s=20, what="the platform to be ready")
    checks = {check["name"]: check for check in api.http.get("/health/ready").json()["checks"]}
    assert [name for name, check in checks.items() if not check["ok"]] == []
    assert f"version {BUNDLED}" in checks["model"]["detail"]
    assert "urlhealth_writer 1.0" in api.http.get("/metrics").text
