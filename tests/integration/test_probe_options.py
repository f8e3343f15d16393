"""What each option makes of a probe, and that none of it passes on to another probe or another host."""

import threading
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from tests.misbehaving import HEAD, OK, SPEAKS_H2, Behaviour, hang, read_head, redirect, say, serving, tls
from tests.probes import probe, probe_all, running_engine
from urlhealth.probing.engine import ProbeEngine
from urlhealth.probing.options import parse_options
from urlhealth.probing.urls import parse_target
from urlhealth.vocabulary import Outcome, ProbeOptions, ProbeRequest, ProbeResult

JSON = b'{"status": "fine", "queues": [{"name": "a", "length": 3}]}'
SECRETS: list[dict[str, Any]] = [
    {"basic_auth": "me:hunter2"},
    {"bearer_token": "hunter2"},
    {"headers": {"Authorization": "Bearer hunter2"}},
    {"headers": {"Cookie": "session=hunter2"}},
]


def answer(body: bytes, status: bytes = b"200 OK", *headers: bytes) -> Behaviour:
    lines = b"".join(header + b"\r\n" for header in (b"Content-Length: %d" % len(body), *headers))
    return say(b"HTTP/1.1 " + status + b"\r\n" + lines + b"\r\n" + body)


class Recorder:
    """Answers, and keeps the heads of the requests."""

    def __init__(self, answer: bytes = OK) -> None:
        self.heads: list[bytes] = []
        self._answer = answer

    def __call__(self, connection: Any) -> None:
        self.heads.append(read_head(connection))
        connection.sendall(self._answer)


@pytest.fixture(scope="module")
def engine() -> Iterator[ProbeEngine]:
    with running_engine() as engine:
        yield engine


def ask(engine: ProbeEngine, behave: Behaviour, scheme: str = "http", **options: Any) -> ProbeResult:
    with serving(behave) as port:
        return probe(engine, f"{scheme}://127.0.0.1:{port}/", parse_options({"timeout_s": 5, **options}))


def test_head_asks_for_no_body(engine: ProbeEngine) -> None:
    head, get = Recorder(HEAD + b"Content-Length: 1000000000\r\n\r\n"), Recorder()
    assert ask(engine, head, method="HEAD").outcome is Outcome.OK
    assert ask(engine, get).outcome is Outcome.OK
    assert (head.heads[0][:7], get.heads[0][:6]) == (b"HEAD / ", b"GET / ")


@pytest.mark.parametrize(
    ("behave", "options", "outcome", "words"),
    [
        (say(OK), {"expected_statuses": [200, 404]}, Outcome.OK, None),
        (answer(b"", b"404 No"), {"expected_statuses": [404]}, Outcome.OK, None),
        (answer(b"", b"403 No"), {"expected_statuses": [403]}, Outcome.OK, None),
        (redirect(b"/"), {"expected_statuses": [302]}, Outcome.OK, None),
        (redirect(b"file:///"), {"expected_statuses": [301]}, Outcome.CONDITION, "HTTP status 302 was not expected"),
        (answer(b"", b"204 No"), {"expected_statuses": [200]}, Outcome.CONDITION, "HTTP status 204 was not expected"),
        (answer(b"", b"500 No"), {"expected_statuses": [200]}, Outcome.HTTP_ERROR, "HTTP 500 Internal Server Error"),
        (answer(b"gr\xc3\xbcn"), {"body_contains": "grün"}, Outcome.OK, None),
        (answer(b"rot"), {"body_contains": "grün"}, Outcome.CONDITION, "the body does not contain 'grün'"),
        (answer(b"\xff gr\xc3\xbcn"), {"body_regex": "^.* gr.n$"}, Outcome.CONDITION, "nothing in the body matches"),
        (answer(b"ja gr\xc3\xbcn"), {"body_regex": "^.* gr.n$"}, Outcome.OK, None),
        (answer(JSON), {"body_jsonpath": "$.queues[?@.length < 5]"}, Outcome.OK, None),
        (answer(JSON), {"body_jsonpath": "$.queues[?@.length > 5]"}, Outcome.CONDITION, "nothing in the body is at"),
        (answer(b"<html>"), {"body_jsonpath": "$.queues"}, Outcome.CONDITION, "the body is not JSON"),
        (answer(JSON), {"body_contains": "fine", "body_jsonpath": "$.no"}, Outcome.CONDITION, "is at '$.no'"),
        (answer(b"hello"), {"body_contains": "hello", "max_bytes": 4}, Outcome.TOO_LARGE, "larger than 4 bytes"),
    ],
)
def test_what_an_answer_must_be(
    engine: ProbeEngine, behave: Behaviour, options: dict[str, Any], outcome: Outcome, words: str | None
) -> None:
    result = ask(engine, behave, **options)
    assert result.outcome is outcome
    assert (result.error is None) if words is None else (words in (result.error or "")), result.error


def test_headers_are_sent_and_do_not_pass_on_to_the_next_probe(engine: ProbeEngine) -> None:
    first, second = Recorder(), Recorder()
    ask(engine, first, headers={"X-Asked-By": "tests", "Accept": "text/plain", "X-Empty": ""}, basic_auth="me:pass")
    ask(engine, second)
    for line in (b"X-Asked-By: tests", b"Accept: text/plain", b"X-Empty:", b"Authorization: Basic bWU6cGFzcw=="):
        assert line + b"\r\n" in first.heads[0]
        assert line + b"\r\n" not in second.heads[0]
    assert b"User-Agent: urlhealth-tests/1\r\n" in first.heads[0]


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_go_to_the_host_that_they_are_for_and_no_further(engine: ProbeEngine, secret: dict[str, Any]) -> None:
    stranger = Recorder(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
    with serving(stranger, address="127.0.0.2") as elsewhere:
        own = Recorder(b"HTTP/1.1 302 F\r\nLocation: http://127.0.0.2:%d/\r\nContent-Length: 0\r\n\r\n" % elsewhere)
        result = ask(engine, own, **secret)
    assert result.redirects == 1
    assert b"hunter2" in own.heads[0] or b"bWU6aHVudGVyMg==" in own.heads[0]
    assert not any(name in stranger.heads[0].lower() for name in (b"authorization", b"cookie", b"hunter2"))
    assert "hunter2" not in repr((result, parse_options(secret)))


def test_a_proxy_is_used_and_its_own_faults_are_not_the_target_s(engine: ProbeEngine) -> None:
    proxy = Recorder()
    with serving(proxy) as port:
        through = parse_options({"proxy": f"http://me:hunter2@127.0.0.1:{port}"})
        assert probe(engine, "http://no-such-name.invalid/page", through).outcome is Outcome.OK
    assert proxy.heads[0].startswith(b"GET http://no-such-name.invalid/page HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic" in proxy.heads[0]
    dead = probe(engine, "http://no-such-name.invalid/", parse_options({"proxy": "http://me:hunter2@127.0.0.1:1"}))
    unknown = probe(engine, "http://no-such-name.invalid/", parse_options({"proxy": "http://me:hunter2@no.invalid"}))
    private = probe(engine, "http://no-such-name.invalid/", parse_options({"proxy": "http://10.0.0.1:3128"}))
    without = ask(engine, say(OK))
    assert [dead.outcome, unknown.outcome] == [Outcome.SELF, Outcome.SELF]
    assert "no connection to the proxy" in (dead.error or "")
    assert "hunter2" not in f"{dead} {unknown}"
    assert private.outcome is Outcome.REFUSED
    assert without.outcome is Outcome.OK


def test_a_tunnel_that_the_proxy_refuses_is_no_connection(engine: ProbeEngine) -> None:
    with serving(answer(b"", b"502 No")) as port:
        result = probe(engine, "https://example.invalid/", parse_options({"proxy": f"http://127.0.0.1:{port}"}))
    assert result.outcome is Outcome.CONNECT
    assert "the proxy gave no connection: CONNECT tunnel failed, response 502" in (result.error or "")


@pytest.mark.parametrize(("family", "outcome"), [("any", Outcome.OK), ("ipv4", Outcome.OK), ("ipv6", Outcome.CONNECT)])
def test_the_family_of_addresses(engine: ProbeEngine, family: str, outcome: Outcome) -> None:
    with serving(say(OK)) as port:
        result = probe(engine, f"http://family.localhost:{port}/", parse_options({"ip_family": family}))
    assert result.outcome is outcome


def test_the_version_of_http(engine: ProbeEngine) -> None:
    old = ask(engine, say(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi"), http_version="1.1")
    assert (old.outcome, old.http_version) == (Outcome.OK, "1.0")
    not_two = ask(engine, tls(say(OK)), scheme="https", http_version="2", verify_tls=False)
    assert (not_two.outcome, not_two.error) == (Outcome.CONDITION, "answered by HTTP/1.1, not HTTP/2")
    offered = ask(engine, tls(hang, SPEAKS_H2), scheme="https", http_version="1.1", verify_tls=False, timeout_s=0.3)
    assert offered.tls_ms is not None
    three = ask(engine, say(OK), scheme="https", http_version="3", timeout_s=0.5)
    assert three.outcome in (Outcome.CONNECT, Outcome.TIMEOUT)


class Stumbling:
    """Answers the statuses one after the other, then the last for ever."""

    def __init__(self, *statuses: int) -> None:
        self._left = list(statuses)
        self.asked = 0
        self._lock = threading.Lock()

    def __call__(self, connection: Any) -> None:
        read_head(connection)
        with self._lock:
            self.asked += 1
            status = self._left.pop(0) if len(self._left) > 1 else self._left[0]
        connection.sendall(b"HTTP/1.1 %d X\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n" % status)


@pytest.mark.parametrize(
    ("statuses", "outcome", "attempts"),
    [
        ([500, 502, 200], Outcome.OK, [500, 502, 200]),
        ([500], Outcome.HTTP_ERROR, [500, 500, 500]),
        ([404], Outcome.HTTP_ERROR, []),
        ([200], Outcome.OK, []),
        ([500, 403], Outcome.HTTP_ERROR, [500, 403]),
    ],
)
def test_retries_are_kept_and_judged_afterwards(
    engine: ProbeEngine, statuses: list[int], outcome: Outcome, attempts: list[int]
) -> None:
    server = Stumbling(*statuses)
    result = ask(engine, server, retries=2, retry_delay_s=0.01)
    assert result.outcome is outcome
    assert [attempt.status_code for attempt in result.attempts] == attempts
    assert server.asked == max(1, len(attempts))
    assert [attempt.ts_ms for attempt in result.attempts] == sorted(attempt.ts_ms for attempt in result.attempts)


def robots(text: bytes, status: bytes = b"200 OK") -> tuple[Behaviour, Counter[bytes]]:
    """A site with this robots.txt, and how often each path was asked for."""
    asked: Counter[bytes] = Counter()

    def behave(connection: Any) -> None:
        head = read_head(connection)
        path = head.split(b" ")[1]
        asked[path] += 1
        if path == b"/robots.txt":
            connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
        else:
            connection.sendall(OK)

    return behave, asked


def test_robots_txt_is_asked_once_and_obeyed_where_that_is_wanted() -> None:
    rules = b"User-agent: other\nDisallow: /\n\nUser-agent: urlhealth-tests\nDisallow: /private\n"
    behave, asked = robots(
        rules + b"".join(b"User-agent: a%d\n" % n for n in range(20_000)) + b"Disallow: /x\n" * 10_000
    )
    with running_engine() as engine, serving(behave) as port:
        site = f"http://127.0.0.1:{port}"
        obeying = ProbeOptions(robots=True)
        found = probe_all(engine, [f"{site}/", f"{site}/private/a", f"{site}/open?q", f"{site}/private"], obeying)
        regardless = probe(engine, f"{site}/private/a")
    assert [result.outcome for result in found] == [Outcome.OK, Outcome.BLOCKED, Outcome.OK, Outcome.BLOCKED]
    assert found[1].error == "robots.txt does not allow it"
    assert regardless.outcome is Outcome.OK
    assert asked == {b"/robots.txt": 1, b"/": 1, b"/open?q": 1, b"/private/a": 1}


def test_a_robots_txt_is_asked_for_once_though_who_asked_first_is_cancelled() -> None:
    obey, asked = robots(b"")
    began, go_on = threading.Event(), threading.Event()

    def behave(connection: Any) -> None:
        began.set()
        go_on.wait(10)
        obey(connection)

    with running_engine() as engine, serving(behave) as port:
        target = parse_target(f"http://127.0.0.1:{port}/")
        options = ProbeOptions(robots=True)
        engine.submit([ProbeRequest(target=target, options=options, task_id="gone")])
        assert began.wait(10)
        engine.cancel({"gone"})
        engine.submit([ProbeRequest(target=target, options=options, task_id="kept")])
        assert engine.results(0.1) == []
        go_on.set()
        assert [probed.request.task_id for probed in engine.results(10)] == ["kept"]
    assert asked == {b"/robots.txt": 1, b"/": 1}


@pytest.mark.parametrize(
    ("status", "outcome", "error"),
    [
        (b"404 No", Outcome.OK, None),
        (b"503 No", Outcome.BLOCKED, "robots.txt cannot be read: HTTP 503"),
    ],
)
def test_a_robots_txt_that_is_not_there(status: bytes, outcome: Outcome, error: str | None) -> None:
    behave, _ = robots(b"", status)
    with running_engine() as engine, serving(behave) as port:
        result = probe(engine, f"http://127.0.0.1:{port}/", ProbeOptions(robots=True))
        dead = probe(engine, "http://127.0.0.1:1/", ProbeOptions(robots=True))
    assert (result.outcome, result.error) == (outcome, error)
    assert dead.outcome is Outcome.CONNECT
    assert (dead.error or "").startswith("robots.txt: no connection")


def test_whoever_answers_429_is_left_alone_for_as_long_as_it_says() -> None:
    with running_engine(per_host=1) as engine, serving(Stumbling(429, 200)) as port, serving(say(OK)) as other:
        found = probe_all(engine, [*[f"http://127.0.0.1:{port}/{n}" for n in range(2)], f"http://127.0.0.1:{other}/"])
    assert [result.outcome for result in found] == [Outcome.BLOCKED, Outcome.OK, Outcome.OK]
    assert found[1].ts_ms - found[0].ts_ms >= 1000
    assert found[1].total_ms is not None
    assert found[1].total_ms < 500
    assert found[2].ts_ms - found[0].ts_ms < 500


def test_a_host_is_asked_no_oftener_than_the_rate_allows() -> None:
    with running_engine(rate_per_host=20) as engine, serving(say(OK)) as port:
        found = probe_all(engine, [f"http://127.0.0.1:{port}/{n}" for n in range(5)])
    starts = sorted(result.ts_ms for result in found)
    assert all(later - earlier >= 45 for earlier, later in pairwise(starts))


@pytest.mark.parametrize(("canary_answers", "outcome"), [(True, Outcome.CONNECT), (False, Outcome.SELF)])
def test_the_canary_decides_whose_fault_it_is_that_many_hosts_fail(canary_answers: bool, outcome: Outcome) -> None:
    asked = threading.Event()

    def behave(connection: Any) -> None:
        asked.set()
        say(b"HTTP/1.1 429 No\r\nRetry-After: 60\r\nContent-Length: 0\r\n\r\n")(connection)

    with serving(behave) as port:
        canary = f"http://127.0.0.1:{port if canary_answers else 1}/"
        with running_engine(canary=canary) as engine:
            found = probe_all(engine, [f"http://site{n}.localhost:1/" for n in range(5)])
            assert asked.is_set() == canary_answers
            # The canary's own wish to be left alone says nothing of the host for others, and does not hold us up.
            assert probe(engine, f"http://127.0.0.1:{port}/").outcome is Outcome.BLOCKED
    assert [result.outcome for result in found] == [outcome] * 5
    if not canary_answers:
        assert (found[0].error or "").startswith("our own network was out: http://127.0.0.1:1/ could not be reached")
