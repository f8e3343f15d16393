"""What a caller may send has a limit everywhere, and who holds connections open holds up nobody."""

import asyncio
import gzip
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from serving.app import create_app
from serving.intake import MAX_LINE_BYTES
from serving.middleware import MAX_BODY_BYTES
from serving.protocol import MAX_HEAD_BYTES, LimitedHttp
from urlhealth.platform import Platform
from urlhealth.probing.urls import MAX_LENGTH
from urlhealth.settings import Settings

TASKS = "/api/v1/tasks"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(home=tmp_path_factory.mktemp("home"), max_urls_per_task=3, mlflow_tracking_uri="")
    with Platform(settings) as platform, TestClient(create_app(platform), raise_server_exceptions=False) as client:
        yield client


@contextmanager
def listening(protocol: type[LimitedHttp]) -> Iterator[int]:
    """A server with this protocol that answers everything; its port."""
    config = uvicorn.Config(PlainTextResponse("here"), http=protocol, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(10)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with listening(LimitedHttp) as port:
        yield port


def test_bodies(http: TestClient) -> None:
    assert http.post(TASKS, content=b" " * (MAX_BODY_BYTES + 1), headers=JSON).status_code == 413
    bomb = gzip.compress(b" " * (MAX_BODY_BYTES + 1))
    assert len(bomb) < MAX_BODY_BYTES / 100
    assert http.post(TASKS, content=bomb, headers=JSON | {"content-encoding": "gzip"}).status_code == 413
    line = b'"https://a.example/' + b"a" * MAX_LINE_BYTES + b'"\n'
    assert http.post(TASKS, content=line, headers={"content-type": "application/x-ndjson"}).status_code == 422


@pytest.mark.parametrize(
    "path", [TASKS, "/submit", "/api/v1/predictions", "/invocations", "/v2/models/url-health/infer"]
)
def test_json_that_is_too_deep(http: TestClient, path: str) -> None:
    for deep in ("[" * 100_000, '{"a":' * 100_000, '{"urls":' + "[" * 5000 + "]" * 5000 + "}"):
        reply = http.post(path, content=deep, headers=JSON)
        assert reply.status_code in (400, 422, 503), reply.text  # 503: there is no model to ask
        assert len(reply.content) < 10_000


def test_urls_and_tasks(http: TestClient) -> None:
    url = "https://a.example/"
    assert http.post(TASKS, json={"urls": [url + "a" * (MAX_LENGTH - len(url))]}).status_code == 202
    assert http.post(TASKS, json={"urls": [url + "a" * (MAX_LENGTH - len(url) + 1)]}).status_code == 422
    assert http.post(TASKS, json={"urls": [url] * 4}).status_code == 422


@pytest.mark.parametrize("path", [TASKS, "/api/v1/monitors", "/api/v1/predictions", "/api/v1/audit"])
def test_pages(http: TestClient, path: str) -> None:
    assert http.get(path, params={"limit": 1000}).status_code == 200
    for limit in (0, -1, 1001, 10**30):
        assert http.get(path, params={"limit": limit}).status_code == 422
    assert http.get(path, params={"cursor": "a" * 201}).status_code == 422


def test_patterns_that_other_engines_take_years_for(http: TestClient) -> None:
    for pattern in (r"(a+)+$", r"(a|a)*b", r"((a*)*)*c"):
        task = {"urls": ["https://a.example"], "options": {"body_regex": pattern}}
        assert http.post(TASKS, json=task).status_code == 202  # RE2's time grows with the text only
    for pattern in (r"(?=a)", r"(a)\1", r"(?:a{1000}){1000}"):
        task = {"urls": ["https://a.example"], "options": {"body_regex": pattern}}
        assert http.post(TASKS, json=task).status_code == 422


def test_long_heads(port: int) -> None:
    url = f"http://127.0.0.1:{port}/"
    assert httpx.get(url, headers={"x": "a" * 30_000}).text == "here"
    assert httpx.post(url, content=b"a" * 10 * MAX_HEAD_BYTES).text == "here"
    for head in (
        b"GET / HTTP/1.1\r\nx: " + b"a" * 500_000,
        b"GET /" + b"a" * 500_000,
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 90_000,
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            got = b""
            try:
                connection.sendall(head)
                while piece := connection.recv(65_536):
                    got += piece
            except ConnectionError:
                pass  # it was closed while we were sending
            assert b"here" not in got


def test_slow_heads_are_given_up() -> None:
    class Impatient(LimitedHttp):
        head_s = 0.2

    with listening(Impatient) as port:
        for sent in (b"", b"GET / HTTP/1.1\r\nx"):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                connection.sendall(sent)
                assert connection.recv(100) == b""
        assert httpx.get(f"http://127.0.0.1:{port}/").text == "here"


def test_idle_connections_hold_up_nobody(port: int) -> None:
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20)).sendall(b"GET / HT")
        assert httpx.get(f"http://127.0.0.1:{port}/", timeout=20).text == "here"


def test_what_is_echoed_of_a_bad_request_is_short(http: TestClient) -> None:
    reply = http.post(TASKS, content=json.dumps({"urls": ["x" * 2000], "y" * 5: 1}), headers=JSON)
    assert reply.status_code == 422
    assert len(reply.content) < 2000
