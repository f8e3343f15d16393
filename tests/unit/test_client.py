"""The client against a server that fails as networks and platforms do; and what of the client is derived."""

import asyncio
import importlib.util
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import pytest

from tests.support import free_port
from urlhealth.settings import ROOT
from urlhealth_client import (
    ApiError,
    AsyncClient,
    Client,
    Conflict,
    ConnectionFailed,
    Invalid,
    NotFound,
    Refused,
    Retries,
    Unavailable,
    UrlHealthClientError,
)

#: Pauses of no length.
AT_ONCE = Retries(attempts=3, first_delay_s=0, random=lambda: 0.0)
CREATED = {"task_id": "t1", "status": "queued", "total": 2}
OPTIONS = {
    "connect_timeout_s": 5, "timeout_s": 10, "max_redirects": 10, "max_bytes": 1, "verify_tls": True, "method": "GET",
    "headers": {}, "ip_family": "any", "http_version": "auto", "expected_statuses": [],
}  # fmt: skip
TASK = CREATED | {
    "status": "running", "done": 1, "outcomes": {"ok": 1}, "workers": [], "options": OPTIONS,
    "created_at": "2026-01-01T00:00:00.123Z", "started_at": None, "finished_at": None,
}  # fmt: skip


class Asked(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Answer(NamedTuple):
    """A reply; None as status breaks the connection, `cut` breaks it within the body."""

    status: int | None
    body: Any = b""
    headers: tuple[tuple[str, str], ...] = ()
    cut: bool = False


class Scripted:
    """A server that gives one answer after the other, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answers: list[Answer] = []
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                scripted.asked.append(Asked(self.command, self.path, headers, body))
                status, content, extra, cut = scripted.answers.pop(0)
                self.close_connection = status is None or cut
                if status is None:
                    return
                sent = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in extra:
                    self.send_header(name, value)
                if status != 204:
                    self.send_header("Content-Length", str(len(sent) + 100 * cut))
                self.end_headers()
                self.wfile.write(sent)

            do_GET = do_POST = do_DELETE = do_PATCH = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    yield scripted
    scripted.close()


@pytest.fixture
def client(server: Scripted) -> Iterator[Client]:
    with Client(server.url, retries=AT_ONCE) as client:
        yield client


def event(number: int, name: str = "progress") -> bytes:
    return f"id: {number}\nevent: {name}\ndata: {json.dumps(TASK)}\n\n".encode()


def result(position: int) -> bytes:
    return json.dumps({"position": position, "url": f"https://{position}.example"}).encode() + b"\n"


def test_what_is_derived_is_what_the_generator_makes() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "clients/python/generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for path, text in generate.made().items():
        assert path.read_text() == text, f"{path} lags behind: run `make client`"


def test_a_task_whose_reply_was_lost_is_sent_again_under_the_same_key(server: Scripted, client: Client) -> None:
    server.answers = [Answer(None), Answer(503, b"proxy"), Answer(202, CREATED)]
    task = client.create_task(iter(["https://a.example", "https://b.example"]), options={"timeout_s": 5})
    assert (task.task_id, task.total) == ("t1", 2)
    assert len({asked.headers["idempotency-key"] for asked in server.asked}) == 1
    assert [asked.body for asked in server.asked] == [
        b'{"options":{"timeout_s":5}}\n"https://a.example"\n"https://b.example"\n'
    ] * 3
    server.answers = [Answer(202, CREATED)] * 2
    client.create_task(["https://a.example"])
    client.create_task(["https://a.example"], idempotency_key="nightly")
    assert len({asked.headers["idempotency-key"] for asked in server.asked}) == 3
    assert server.asked[-1].headers["idempotency-key"] == "nightly"


def test_retries_come_to_an_end(server: Scripted, client: Client) -> None:
    server.answers = [Answer(503, {"detail": "not now"})] * 5
    with pytest.raises(Unavailable, match="not now"):
        client.task("t1")
    assert len(server.asked) == 4
    with pytest.raises(ConnectionFailed, match="no reply from http://127"), Client(
        f"http://127.0.0.1:{free_port()}", retries=AT_ONCE
    ) as nobody:  # fmt: skip
        nobody.ready()


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.create_monitor({"url": "https://a.example", "interval_s": 60}),
        lambda client: client.erase("https://a.example"),
    ],
)
def test_what_may_have_been_carried_out_is_not_done_twice(
    server: Scripted, client: Client, call: Callable[[Client], Any]
) -> None:
    server.answers = [Answer(None), Answer(204)]
    with pytest.raises(ConnectionFailed):
        call(client)
    assert len(server.asked) == 1


def test_pauses_grow_up_to_a_limit_and_a_server_may_ask_for_more() -> None:
    retries = Retries(attempts=5, first_delay_s=1, max_delay_s=6, random=lambda: 1.0)
    assert list(retries.pauses()) == [1, 2, 4, 6, 6]
    assert list(Retries(attempts=2, first_delay_s=1, random=lambda: 0.0).pauses()) == [0.5, 1]
    import httpx

    reply = httpx.Response(503, headers={"Retry-After": "5"})
    assert retries.after(reply, 1) == 5
    assert retries.after(httpx.Response(503, headers={"Retry-After": "900"}), 1) == 6
    assert retries.after(httpx.Response(503, headers={"Retry-After": "tomorrow"}), 1) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, Refused),
        (403, Refused),
        (404, NotFound),
        (409, Conflict),
        (413, Invalid),
        (422, Invalid),
        (500, Unavailable),
    ],
)
def test_an_error_says_what_the_platform_said(
    server: Scripted, client: Client, status: int, kind: type[ApiError]
) -> None:
    problem = {"type": "urn:x", "detail": "do this", "errors": [{"pointer": "/urls/1", "detail": "has no scheme"}]}
    server.answers = [Answer(status, problem)]
    with pytest.raises(kind, match="do this") as caught:
        client.task("t1")
    assert (caught.value.status, caught.value.type, caught.value.errors[0].pointer) == (status, "urn:x", "/urls/1")


@pytest.mark.parametrize("body", [b"<html>", {"task_id": 7}])
def test_a_reply_of_something_else_is_one_error(server: Scripted, client: Client, body: Any) -> None:
    server.answers = [Answer(200, body)] * 3
    with pytest.raises(UrlHealthClientError, match="is the address right"):
        client.task("t1")
    with pytest.raises(UrlHealthClientError, match="is the address right"):
        list(client.tasks())


def test_a_newer_platform_is_understood(server: Scripted, client: Client) -> None:
    server.answers = [Answer(200, TASK | {"status": "paused", "colour": "red"})]
    task = client.task("t1")
    assert task.status == "paused"
    assert json.loads(task.model_dump_json())["created_at"] == TASK["created_at"]


def test_pages_are_hidden(server: Scripted, client: Client) -> None:
    server.answers = [
        Answer(200, {"items": [TASK, TASK], "next_cursor": "c 1"}),
        Answer(503, b""),
        Answer(200, {"items": [TASK], "next_cursor": None}),
    ]
    assert len(list(client.tasks(status="running"))) == 3
    assert [asked.path for asked in server.asked[:2]] == [
        "/api/v1/tasks?status=running&limit=100",
        "/api/v1/tasks?status=running&limit=1000&cursor=c+1",
    ]


def test_a_stream_of_results_goes_on_after_the_last_one_that_came(server: Scripted, client: Client) -> None:
    server.answers = [
        Answer(None),
        Answer(200, result(0) + result(1), cut=True),
        Answer(200, result(0) + result(1) + result(2)),
    ]
    assert [found.position for found in client.results("t1")] == [0, 1, 2]


def test_events_go_on_from_the_last_one(server: Scripted, client: Client) -> None:
    server.answers = [
        Answer(200, event(1) + b": nothing new\n\n" + event(2) + b"id: 3\nevent: pro", cut=True),
        Answer(200, b""),
        Answer(200, event(3) + event(4, "done")),
    ]
    assert [(seen.event_id, seen.name) for seen in client.events("t1")] == [
        ("1", "progress"), ("2", "progress"), ("3", "progress"), ("4", "done")
    ]  # fmt: skip
    assert [asked.headers.get("last-event-id") for asked in server.asked] == [None, "2", "2"]
    server.answers = [Answer(204)]
    assert list(client.events("t1", last_event_id="4")) == []
    server.answers = [Answer(200, b"event: deleted\ndata: {}\n\n")]
    with pytest.raises(NotFound, match="was deleted"):
        client.wait("t1")


def test_long_lists_are_cut_into_requests(server: Scripted, client: Client) -> None:
    server.answers = [Answer(200, {"items": []})] * 2
    assert client.features(f"https://{n}.example" for n in range(1001)) == []
    assert [len(json.loads(asked.body)["urls"]) for asked in server.asked] == [1000, 1]


def test_a_long_task_is_packed(server: Scripted, client: Client) -> None:
    server.answers = [Answer(202, CREATED)]
    client.create_task(f"https://{n}.example" for n in range(10_000))
    (asked,) = server.asked
    assert asked.headers["content-encoding"] == "gzip"
    assert len(asked.body) < 60_000


def test_the_key_is_sent_and_the_other_client_does_the_same(server: Scripted) -> None:
    server.answers = [Answer(None), Answer(200, TASK), Answer(200, {"items": [TASK], "next_cursor": None})]

    async def ask() -> list[str]:
        async with AsyncClient(server.url + "/", key="k-1", retries=AT_ONCE) as client:
            task = await client.task("t1")
            return [task.task_id] + [listed.task_id async for listed in client.tasks()]

    assert asyncio.run(ask()) == ["t1", "t1"]
    assert {asked.headers["authorization"] for asked in server.asked} == {"Bearer k-1"}
