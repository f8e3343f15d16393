"""Outside input is read or refused, never worse: parsers by hypothesis, and a server that sends random bytes."""

import json
import random
import socket
from contextlib import suppress
from itertools import count
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from serving.access import NoRule, _from_elsewhere, _why_not_local, scope_needed
from tests.misbehaving import read_head, serving
from tests.probes import probe_all, running_engine
from urlhealth.crawl.records import cursor_number
from urlhealth.errors import InvalidCursor, InvalidRequest
from urlhealth.probing.guard import AddressGuard
from urlhealth.probing.options import parse_options
from urlhealth.probing.robots import RobotsFiles
from urlhealth.probing.urls import parse_target
from urlhealth.settings import redacted
from urlhealth.vocabulary import Outcome, ProbeOptions, ProbeResult

few = settings(max_examples=80, deadline=None, derandomize=True, database=None)
URLISH = st.text("htps:/\\.@[]%0123456789abxAF。①%\t#?- \u200d\ud800", max_size=60) | st.text(max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
OPTION = st.sampled_from([*ProbeOptions.__dataclass_fields__, "no_such"])
#: The number of answers that the server of random bytes gives.
ANSWERS = 150


@few
@given(URLISH | URLISH.map("http://{}".format))
def test_urls(text: str) -> None:
    try:
        target = parse_target(text)
    except InvalidRequest:
        return
    assert target.url.startswith(("http://", "https://"))
    assert "@" not in target.host
    assert parse_target(target.url) == target


@few
@given(st.dictionaries(OPTION, JSON | URLISH, max_size=4))
def test_options(given_: dict[str, Any]) -> None:
    try:
        options = parse_options(given_)
    except InvalidRequest:
        return
    assert parse_options(dict(given_)) == options


@few
@given(URLISH, st.integers(0, 65_535))
def test_the_guard_and_what_stands_before_it(text: str, port: int) -> None:
    refusal = AddressGuard().refusal(text, port)
    assert refusal is None or isinstance(refusal, str)
    AddressGuard(deny_hosts=["bad.test"]).host_refusal(f"http://{text}/")
    redacted(text)


@few
@given(st.text(max_size=60))
def test_cursors(text: str) -> None:
    with suppress(InvalidCursor):
        assert cursor_number("tasks", text) >= 0


@few
@given(st.binary(max_size=300), st.integers(100, 599))
def test_robots(body: bytes, status: int) -> None:
    robots = RobotsFiles("urlhealth/1")
    result = ProbeResult(target="http://a.example/robots.txt", ts_ms=0, outcome=Outcome.OK, status_code=status)
    robots.learn(result, b"User-agent: *\nDisallow: " + body, 0.0)
    robots.refusal("http://a.example/x")


@few
@given(st.text("/abcv12:{}.%\r\n\u00e9", max_size=30), st.sampled_from(["GET", "POST", "DELETE", "BREW", ""]))
def test_paths_that_no_rule_is_for(path: str, method: str) -> None:
    with suppress(NoRule):
        scope_needed(method, path)


@few
@given(st.text("[]:/@.abc0123\x80 ", max_size=20))
def test_hosts_and_origins(text: str) -> None:
    headers = Headers({"host": text, "origin": text})
    assert isinstance(_from_elsewhere(headers), bool)
    _why_not_local("127.0.0.1", text)


def test_a_server_that_sends_random_bytes() -> None:
    """Every answer becomes a row that can be stored and shown, and the engine goes on."""
    numbers = count()
    valid = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n"
        b"Location: /a\r\nRetry-After: 3\r\nSet-Cookie: a=b\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    )

    def answer(connection: socket.socket) -> None:
        rng = random.Random(next(numbers))
        read_head(connection)
        kind = rng.randrange(4)
        if kind == 0:
            said = rng.randbytes(rng.randrange(1, 400))
        elif kind == 1:
            said = b"HTTP/1.1 " + rng.randbytes(rng.randrange(1, 200)) + b"\r\n\r\n"
        elif kind == 2:
            said = (
                b"HTTP/1.1 %d x\r\n" % rng.choice((200, 301, 429, 503))
                + rng.randbytes(80)
                + b"\r\n\r\n"
                + rng.randbytes(80)
            )
        else:
            mutated = bytearray(valid)
            for _ in range(rng.randrange(1, 12)):
                mutated[rng.randrange(len(mutated))] = rng.randrange(256)
            said = bytes(mutated[: rng.randrange(10, len(mutated) + 1)])
        connection.sendall(said)

    options = ProbeOptions(timeout_s=1, connect_timeout_s=1, max_bytes=1000, body_contains="h")
    with running_engine(per_host=64) as engine, serving(answer) as port:
        results = probe_all(engine, [f"http://127.0.0.1:{port}/{n}" for n in range(ANSWERS)], options)
        assert not engine.failed
    assert len(results) == ANSWERS
    assert {Outcome.PROTOCOL, Outcome.CONDITION} <= {result.outcome for result in results}  # some could be read
    for result in results:
        json.dumps([result.error, result.final_url, result.http_version]).encode()
        (result.error or "").encode()
        assert result.total_ms is None or result.total_ms >= 0
