"""The engine against real servers on loopback: phases, redirects, limits, addresses, certificates, cancelling."""

import gzip
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_network
from itertools import pairwise
from pathlib import Path

import certifi
import pytest

from tests.misbehaving import HEAD, OK, Behaviour, Shown, hang, read_head, redirect, say, serving, tls
from tests.probes import QUICK, make_engine, probe, probe_all, running_engine
from urlhealth.errors import ConfigurationError
from urlhealth.probing.engine import ProbeEngine
from urlhealth.probing.politeness import Politeness
from urlhealth.probing.transfer import Transfer, TrustedCertificates
from urlhealth.probing.urls import parse_target
from urlhealth.vocabulary import Outcome, ProbeOptions, ProbeRequest

Serve = Callable[[Behaviour], int]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server that does the same to each connection; gives its port."""
    with ExitStack() as servers:
        yield lambda behave: servers.enter_context(serving(behave))


@pytest.fixture(scope="module")
def engine() -> Iterator[ProbeEngine]:
    with running_engine() as engine:
        yield engine


@pytest.mark.parametrize(
    ("url", "outcome", "words"),
    [
        ("http://no-such-name.invalid/", Outcome.DNS, "the name is not known"),
        ("http://127.0.0.1:1/", Outcome.CONNECT, "no connection: Connection refused"),
        ("http://10.0.0.1/", Outcome.REFUSED, "address refused: 10.0.0.1 is a private or reserved address"),
        ("http://[::ffff:169.254.169.254]/", Outcome.REFUSED, "carries 169.254.169.254"),
        ("http://a(b)/", Outcome.PROTOCOL, "the URL cannot be requested"),
    ],
)
def test_what_never_connects_has_an_outcome_and_no_phases(
    engine: ProbeEngine, url: str, outcome: Outcome, words: str
) -> None:
    result = probe(engine, url)
    assert result.outcome is outcome
    assert words in (result.error or "")
    assert (result.status_code, result.connect_ms, result.tls_ms, result.first_byte_ms) == (None, None, None, None)
    assert (result.address, result.http_version) == (None, None)
    assert result.total_ms is not None


def test_a_good_answer_and_its_phases(engine: ProbeEngine, serve: Serve) -> None:
    def think(connection: socket.socket) -> None:
        read_head(connection)
        time.sleep(0.1)
        connection.sendall(HEAD + b"Content-Length: 2\r\n\r\nh")
        time.sleep(0.1)
        connection.sendall(b"i")

    before_ms = time.time() * 1000
    port = serve(think)
    result = probe(engine, f"http://127.0.0.1:{port}/page?q#part")
    assert result.outcome is Outcome.OK
    assert result.target == f"http://127.0.0.1:{port}/page?q"
    assert before_ms - 1 <= result.ts_ms <= time.time() * 1000
    assert None not in (result.dns_ms, result.connect_ms, result.first_byte_ms, result.total_ms)
    assert result.dns_ms < 50  # type: ignore[operator]
    assert result.connect_ms < 50  # type: ignore[operator]
    assert 100 <= result.first_byte_ms < 190  # type: ignore[operator]
    assert result.total_ms >= 200  # type: ignore[operator]
    assert result.tls_ms is None
    assert (result.status_code, result.size_bytes, result.redirects) == (200, 2, 0)
    assert (result.address, result.http_version, result.final_url) == ("127.0.0.1", "1.1", None)


def test_a_chain_of_redirects_sums_its_phases_and_keeps_no_cookies(engine: ProbeEngine, serve: Serve) -> None:
    heads: list[bytes] = []

    def chain(connection: socket.socket) -> None:
        head = read_head(connection)
        heads.append(head)
        time.sleep(0.05)
        if b" /end " in head:
            connection.sendall(OK)
        else:
            to = b"/end" if b" /more " in head else b"/more"
            connection.sendall(
                b"HTTP/1.1 302 F\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\nLocation: " + to + b"\r\n\r\n"
            )

    port = serve(chain)
    result = probe(engine, f"http://127.0.0.1:{port}/")
    assert (result.outcome, result.redirects) == (Outcome.OK, 2)
    assert result.final_url == f"http://127.0.0.1:{port}/end"
    assert result.first_byte_ms is not None
    assert result.total_ms is not None
    assert 150 <= result.first_byte_ms <= result.total_ms
    assert len(heads) == 3
    assert not any(b"cookie" in head.lower() for head in heads)
    assert all(b"User-Agent: urlhealth-tests/1\r\n" in head for head in heads)


def test_the_number_of_redirects_is_an_option(engine: ProbeEngine, serve: Serve) -> None:
    options = ProbeOptions(max_redirects=0)
    result = probe(engine, f"http://127.0.0.1:{serve(redirect(b'/'))}/", options)
    assert (result.outcome, result.redirects) == (Outcome.TOO_MANY_REDIRECTS, 0)


def test_a_compressed_body_is_counted_as_it_reads(engine: ProbeEngine, serve: Serve) -> None:
    body = gzip.compress(bytes(50_000))
    port = serve(say(HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body))
    result = probe(engine, f"http://127.0.0.1:{port}/")
    assert (result.outcome, result.size_bytes) == (Outcome.OK, 50_000)


def test_options_do_not_pass_on_to_the_next_probe(engine: ProbeEngine, serve: Serve) -> None:
    url = f"http://127.0.0.1:{serve(say(OK))}/"
    assert probe(engine, url, ProbeOptions(max_bytes=1)).outcome is Outcome.TOO_LARGE
    assert probe(engine, url, ProbeOptions()).outcome is Outcome.OK


def test_proxies_of_the_environment_are_not_used(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with running_engine() as engine:
        assert probe(engine, f"http://127.0.0.1:{serve(say(OK))}/").outcome is Outcome.OK


def test_a_refused_address_is_never_connected_to(serve: Serve) -> None:
    connected = threading.Event()
    inner = serve(lambda _: connected.set())
    with running_engine(allow=[ip_network("127.0.0.2/32")]) as engine:
        direct = probe(engine, f"http://127.0.0.1:{inner}/")
        named = probe(engine, f"http://inner.localhost:{inner}/")
        with serving(redirect(b"http://127.0.0.1:%d/" % inner), address="127.0.0.2") as lure:
            redirected = probe(engine, f"http://127.0.0.2:{lure}/")
    assert [result.outcome for result in (direct, named, redirected)] == [Outcome.REFUSED] * 3
    assert (redirected.status_code, redirected.redirects) == (302, 1)
    assert not connected.is_set()


def test_a_dead_site_is_not_called_refused_because_another_address_of_it_is() -> None:
    with running_engine(allow=[ip_network("127.0.0.0/8")]) as engine:
        assert probe(engine, "http://dead.localhost:1/").outcome is Outcome.CONNECT


def test_waiting_in_the_engine_is_not_counted_as_the_target_s_time(serve: Serve) -> None:
    def think(connection: socket.socket) -> None:
        read_head(connection)
        time.sleep(0.1)
        connection.sendall(OK)

    with running_engine(concurrency=1) as engine:
        results = probe_all(engine, [f"http://h{n}.localhost:{serve(think)}/" for n in range(4)])
    starts = sorted(result.ts_ms for result in results)
    assert all(later - earlier >= 95 for earlier, later in pairwise(starts))
    assert all(result.total_ms is not None and result.total_ms < 190 for result in results)


def test_a_host_gets_no_more_than_its_share_and_does_not_hold_up_others(serve: Serve) -> None:
    lock = threading.Lock()
    under_way = most = 0

    def think(connection: socket.socket) -> None:
        nonlocal under_way, most
        read_head(connection)
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.05)
        with lock:
            under_way -= 1
        connection.sendall(OK)

    busy, other = serve(think), serve(say(OK))
    with running_engine(per_host=2) as engine:
        results = probe_all(engine, [*[f"http://127.0.0.1:{busy}/{n}" for n in range(8)], f"http://127.0.0.1:{other}/"])
    assert all(result.outcome is Outcome.OK for result in results)
    assert most == 2
    assert results[-1].ts_ms < sorted(result.ts_ms for result in results[:8])[2]


def test_results_wake_as_soon_as_there_is_one_and_when_it_closes(serve: Serve) -> None:
    engine = make_engine()
    started = time.monotonic()
    engine.submit([ProbeRequest(target=parse_target(f"http://127.0.0.1:{serve(say(OK))}/"))])
    assert len(engine.results(30.0)) == 1
    engine.submit([ProbeRequest(target=parse_target(f"http://127.0.0.1:{serve(hang)}/"))])
    threading.Timer(0.05, engine.close).start()
    assert engine.results(30.0) == []
    assert time.monotonic() - started < 5
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit([])


UNCHECKED = replace(QUICK, verify_tls=False)


@pytest.mark.parametrize("curve", ["X25519", "prime256v1", "secp384r1", "secp521r1"])
def test_servers_that_know_one_curve_only_are_understood(engine: ProbeEngine, serve: Serve, curve: str) -> None:
    result = probe(engine, f"https://127.0.0.1:{serve(tls(say(OK), Shown(curve=curve)))}/", UNCHECKED)
    assert (result.outcome, result.cert_expires_ms) == (Outcome.OK, 2_114_380_799_000), result


def test_a_certificate_whose_end_cannot_be_read_has_none(engine: ProbeEngine, serve: Serve) -> None:
    shown = Shown(end_as_written=b"361331999999Z")
    result = probe(engine, f"https://127.0.0.1:{serve(tls(say(OK), shown))}/", UNCHECKED)
    assert (result.outcome, result.cert_expires_ms) == (Outcome.OK, None), result
    assert not engine.failed


def test_an_answer_that_nobody_thought_of_is_a_result_and_ends_nothing(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(per_host=1)
    url = f"http://127.0.0.1:{serve(say(OK))}/"
    try:
        with monkeypatch.context() as broken:
            broken.setattr(Transfer, "_verdict", lambda *_: 1 / 0)
            result = probe(engine, url)
        after = probe(engine, url)
    finally:
        engine.close()
    assert (result.outcome, result.error) == (Outcome.PROTOCOL, "the answer cannot be read: division by zero")
    assert after.outcome is Outcome.OK


def test_a_request_that_cannot_be_made_is_a_result_and_ends_nothing(engine: ProbeEngine, serve: Serve) -> None:
    url = f"http://127.0.0.1:{serve(say(OK))}/"
    result = probe(engine, url, ProbeOptions(basic_auth="me:\ud800"))
    assert result.outcome is Outcome.PROTOCOL
    assert (result.error or "").startswith("the URL cannot be requested: ")
    assert probe(engine, url).outcome is Outcome.OK


def test_a_defect_of_the_engine_is_told_to_whoever_waits_and_whoever_asks(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    monkeypatch.setattr(Politeness, "begin", lambda *_: 1 / 0)
    assert not engine.failed
    engine.submit([ProbeRequest(target=parse_target(f"http://127.0.0.1:{serve(say(OK))}/"))])
    with pytest.raises(RuntimeError, match="the probing engine has failed"):
        engine.results(5.0)
    assert engine.failed
    engine.close()


def test_close_does_not_wait_for_what_cannot_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = threading.Event()
    monkeypatch.setattr(Transfer, "close", lambda _: resolved.wait(30))
    engine = make_engine()
    probe(engine, "http://127.0.0.1:1/")
    started = time.monotonic()
    engine.close()
    assert time.monotonic() - started < 10
    resolved.set()


def test_a_canary_must_be_a_url() -> None:
    with pytest.raises(ConfigurationError, match="the canary cannot be probed: 'nonsense' has no scheme"):
        make_engine(canary="nonsense")


def test_trusted_certificates_leave_nothing_behind(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    for ca_file in (None, Path(certifi.where())):
        trusted = TrustedCertificates(ca_file)
        assert Path(trusted.path).stat().st_size > 0
        engine = make_engine(ca_file=ca_file)
        result = probe(engine, f"https://127.0.0.1:{serve(tls(say(OK)))}/")
        assert (result.outcome, list(folder.iterdir())) == (Outcome.TLS, [])
        assert "certificate is not trusted" in (result.error or "")
        engine.close()
        trusted.close()


def test_certificates_to_trust_must_be_some(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.pem: No such file"):
        make_engine(ca_file=tmp_path / "none.pem")
    empty = tmp_path / "empty.pem"
    empty.touch()
    with pytest.raises(ConfigurationError, match=r"no certificates can be read from .*empty\.pem"):
        make_engine(ca_file=empty)
