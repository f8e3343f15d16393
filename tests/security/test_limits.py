"""What a caller may send has a limit everywhere, and who holds connections open holds up nobody."""

import asyncio
import gzip
import json
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest
import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.app import create_app
from serving.intake import MAX_LINE_BYTES, MAX_STREAM_BYTES
from serving.metrics import Metrics
from serving.middleware import CROWDED_S, MAX_BODY_BYTES, SILENT_S, RequestMiddleware
from serving.protocol import HEAD_S, MAX_HEAD_BYTES, READ_S, LimitedHttp
from tests.support import wait_until
from urlhealth.platform import Platform
from urlhealth.probing.urls import MAX_LENGTH
from urlhealth.settings import ROOT, Settings

TASKS = "/api/v1/tasks"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def platform_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ASGIApp]:
    settings = Settings(home=tmp_path_factory.mktemp("home"), max_urls_per_task=3, mlflow_tracking_uri="")
    with Platform(settings) as platform:
        yield create_app(platform)


@pytest.fixture(scope="module")
def http(platform_app: ASGIApp) -> Iterator[TestClient]:
    with TestClient(platform_app, raise_server_exceptions=False) as client:
        yield client


@contextmanager
def listening(protocol: type[LimitedHttp], app: ASGIApp = PlainTextResponse("here")) -> Iterator[int]:  # noqa: B008
    """A server with this protocol that answers everything; its port."""
    config = uvicorn.Config(app, http=protocol, log_config=None, lifespan="off")
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


CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "endless",
    [
        b"0\r\n" + b"x: " + b"a" * 20_000_000,
        b"0\r\n" + b"x: yyyyyyyyyyy\r\n" * 1_400_000,
        b"1;" + b"a" * 20_000_000,
        b"0\r\n\r\n" + b"\r\n" * 10_000_000,
    ],
    ids=["a trailer", "trailers", "an extension of a chunk", "empty lines"],
)
def test_what_stands_beside_a_body_is_limited_too(port: int, endless: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection, pytest.raises(ConnectionError):
        connection.sendall(CHUNKED + endless)  # More than the buffers between us take: it was closed meanwhile.


def drip(connection: socket.socket, piece: bytes) -> None:
    """Send a piece again and again, until the other side has closed."""
    with suppress(ConnectionError):
        for _ in range(2000):
            connection.sendall(piece)
            if select.select([connection], [], [], 0.01)[0] and not connection.recv(65_536):
                return
        pytest.fail("it never closed")


@pytest.mark.parametrize("piece", [b"a", b"\r\n"], ids=["a body that nobody reads", "empty lines"])
def test_who_goes_on_after_the_answer_is_given_up(piece: bytes) -> None:
    class Impatient(LimitedHttp):
        head_s = 0.2

    length = 1_000_000 if piece == b"a" else 0
    with (
        listening(Impatient) as port,
        socket.create_connection(("127.0.0.1", port), timeout=20) as connection,
    ):
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % length)
        with connection.makefile("rb") as answer:
            assert next(line for line in answer if line == b"\r\n")
            assert answer.read(4) == b"here"
        drip(connection, piece)


#: More than the buffers between a server and a client take.
LONG = 100_000_000


def test_who_does_not_take_the_answer_is_given_up() -> None:
    class Impatient(LimitedHttp):
        read_s = 0.2

    given_up = threading.Event()

    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        pieces = (b"a" * (LONG // 100) for _ in range(100))
        await StreamingResponse(pieces)(scope, receive, send)
        given_up.set()

    with (
        listening(Impatient, answering) as port,
        socket.create_connection(("127.0.0.1", port), timeout=20) as connection,
    ):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert given_up.wait(20)
        took = 0
        with suppress(ConnectionError):
            while piece := connection.recv(1 << 20):
                took += len(piece)
        assert took < LONG


def test_slow_bodies_of_one_caller_leave_places_to_others() -> None:
    """And to that caller, for bodies that come at once."""

    async def reading(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            await PlainTextResponse(f"{len(await request.body())}")(scope, receive, send)
        except HTTPException as error:
            await PlainTextResponse(error.detail, error.status_code)(scope, receive, send)

    limits = Settings(max_requests=4)
    app = RequestMiddleware(reading, Metrics(lambda: pytest.fail("not asked for")), settings=lambda: limits)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n\r\n"
    with listening(LimitedHttp, app) as port, ExitStack() as stack:

        def begin() -> socket.socket:
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            slow.sendall(head + b"a")
            return slow

        slow = [begin(), begin()]
        wait_until(lambda: sum(app._awaited.values()) == 2, timeout_s=20, what="the server to wait for both")
        for _ in range(3):  # As many at once as there are places.
            for _ in range(4):
                begin()
            assert httpx.post(f"http://127.0.0.1:{port}/", content=b"12345").text == "5"
            with begin().makefile("rb") as answer:
                assert b"nothing came for 0.25 s" in answer.read()
            assert httpx.post(f"http://127.0.0.1:{port}/", content=b"12345").text == "5"
        for one in slow:
            one.sendall(b"bcde")
            with one.makefile("rb") as answer:
                assert answer.read().endswith(b"\r\n5")
        assert not app._awaited


def test_who_is_silent_within_a_body_is_told_so(platform_app: ASGIApp) -> None:
    with listening(LimitedHttp, platform_app) as port, pytest.MonkeyPatch.context() as patch:
        patch.setattr(RequestMiddleware, "silent_s", 0.2)
        for path in (TASKS, "/api/v1/monitors", "/api/v1/predictions", "/submit", "/login", "/graphql", "/invocations"):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                kind = "x-www-form-urlencoded" if path == "/login" else "json"
                connection.sendall(
                    f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/{kind}\r\n"
                    "Content-Length: 500\r\n\r\n{".encode()
                )
                assert b" 408 " in connection.recv(65_536), path


def test_websockets_are_refused_and_not_logged_as_failures(
    platform_app: ASGIApp, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(LimitedHttp, platform_app) as port:
        reply = httpx.get(
            f"http://127.0.0.1:{port}/api/v1/tasks",
            headers={
                "connection": "upgrade",
                "upgrade": "websocket",
                "sec-websocket-version": "13",
                "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
            },
        )
    assert reply.status_code == 403
    assert "Traceback" not in caplog.text


def test_what_is_echoed_of_a_bad_request_is_short(http: TestClient) -> None:
    reply = http.post(TASKS, content=json.dumps({"urls": ["x" * 2000], "y" * 5: 1}), headers=JSON)
    assert reply.status_code == 422
    assert len(reply.content) < 2000


def test_the_docs_say_what_the_limits_are() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    for words in (
        f"{MAX_HEAD_BYTES >> 10} KiB (431), and {HEAD_S:g} s",
        f"{MAX_HEAD_BYTES >> 10} KiB between two pieces of a body",
        f"{HEAD_S:g} s until the next request's headers",
        f"{MAX_BODY_BYTES >> 20} MiB; lines of tasks and monitors {MAX_STREAM_BYTES >> 30} GiB",
        f"a line {MAX_LINE_BYTES >> 10} KiB; also unpacked",
        f"{SILENT_S:g} s (408); {CROWDED_S:g} s for a caller who holds half",
        f"an answer that is not taken | {READ_S:g} s",
        f"{MAX_LENGTH:,} characters",
    ):
        assert words in text, words
