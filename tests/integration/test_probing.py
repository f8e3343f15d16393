"""The engine against real servers on loopback, most of which misbehave."""

import gzip
import socket
import ssl
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_network
from itertools import pairwise
from pathlib import Path

import certifi
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from urlhealth.errors import ConfigurationError
from urlhealth.probing.engine import ProbeEngine
from urlhealth.probing.guard import AddressGuard
from urlhealth.probing.transfer import Transfer, TrustedCertificates
from urlhealth.probing.urls import parse_target
from urlhealth.vocabulary import Outcome, ProbeOptions, ProbeRequest, ProbeResult

Behaviour = Callable[[socket.socket], None]
Serve = Callable[[Behaviour], int]
LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
QUICK = ProbeOptions(connect_timeout_s=0.3, timeout_s=0.6, max_bytes=100_000)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server that does the same to each connection; gives its port."""
    listeners: list[socket.socket] = []

    def start(behave: Behaviour) -> int:
        listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        listeners.append(listener)
        threading.Thread(target=_accept, args=(listener, behave), daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _accept(listener: socket.socket, behave: Behaviour) -> None:
    def handle(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            behave(connection)

    with suppress(OSError):
        while True:
            threading.Thread(target=handle, args=(listener.accept()[0],), daemon=True).start()


def make_engine(*, concurrency: int = 64, per_host: int = 8, ca_file: Path | None = None, allow=LOOPBACK):  # type: ignore[no-untyped-def]
    return ProbeEngine(
        user_agent="urlhealth tests",
        concurrency=concurrency,
        concurrency_per_host=per_host,
        guard=AddressGuard(allow),
        worker_id="tests",
        ca_file=ca_file,
    )


@pytest.fixture(scope="module")
def engine() -> Iterator[ProbeEngine]:
    engine = make_engine()
    yield engine
    engine.close()


def probe_all(engine: ProbeEngine, urls: list[str], options: ProbeOptions = QUICK) -> list[ProbeResult]:
    """The results in the order of the URLs."""
    requests = [
        ProbeRequest(target=parse_target(url), options=options, task_id=str(place)) for place, url in enumerate(urls)
    ]
    engine.submit(requests)
    found: dict[str | None, ProbeResult] = {}
    deadline = time.monotonic() + 20
    while len(found) < len(urls):
        assert time.monotonic() < deadline, "results are missing"
        found |= {probed.request.task_id: probed.result for probed in engine.results(1.0)}
    return [found[str(place)] for place in range(len(urls))]


def probe(engine: ProbeEngine, url: str, options: ProbeOptions = QUICK) -> ProbeResult:
    return probe_all(engine, [url], options)[0]


def read_head(connection: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head and (chunk := connection.recv(65_536)):
        head += chunk
    return head


def say(*parts: bytes) -> Behaviour:
    """Reads the request, and sends this."""

    def behave(connection: socket.socket) -> None:
        read_head(connection)
        for part in parts:
            connection.sendall(part)

    return behave


def for_ever(start: bytes, more: bytes, pause_s: float = 0.0) -> Behaviour:
    def behave(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(start)
        while True:
            connection.sendall(more)
            time.sleep(pause_s)

    return behave


def reset_after(*parts: bytes) -> Behaviour:
    def behave(connection: socket.socket) -> None:
        say(*parts)(connection)
        time.sleep(0.05)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return behave


def hang(connection: socket.socket) -> None:
    while connection.recv(65_536):
        pass


def redirect(location: bytes) -> Behaviour:
    return say(b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n")


HEAD = b"HTTP/1.1 200 OK\r\n"
BOMB = gzip.compress(bytes(20_000_000))
MISBEHAVIOURS: dict[str, tuple[Behaviour, Outcome, int | None, str]] = {
    "404": (say(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"), Outcome.HTTP_ERROR, 404, "HTTP 404 Not Found"),
    "599": (say(b"HTTP/1.0 599 No\r\n\r\n"), Outcome.HTTP_ERROR, 599, "HTTP 599"),
    "401": (say(b"HTTP/1.1 401 No\r\n\r\n"), Outcome.BLOCKED, 401, "HTTP 401 Unauthorized"),
    "403": (say(b"HTTP/1.1 403 No\r\n\r\n"), Outcome.BLOCKED, 403, "HTTP 403 Forbidden"),
    "429": (say(b"HTTP/1.1 429 No\r\n\r\n"), Outcome.BLOCKED, 429, "HTTP 429 Too Many Requests"),
    "hang": (hang, Outcome.TIMEOUT, None, "no answer after 0.6 s"),
    "a byte at a time": (for_ever(HEAD + b"\r\n", b".", 0.05), Outcome.TIMEOUT, 200, "the answer was not complete"),
    "closed": (say(), Outcome.CONNECT, None, "closed without an answer"),
    "reset": (reset_after(), Outcome.CONNECT, None, "Connection reset by peer"),
    "reset in the body": (
        reset_after(HEAD + b"Content-Length: 9\r\n\r\nabc"), Outcome.CONNECT, 200, "Connection reset by peer"
    ),
    "half a body": (say(HEAD + b"Content-Length: 9\r\n\r\nabc"), Outcome.PROTOCOL, 200, "the answer broke off"),
    "endless body": (for_ever(HEAD + b"\r\n", bytes(65_536)), Outcome.TOO_LARGE, 200, "larger than 100000 bytes"),
    "announced body": (
        say(HEAD + b"Content-Length: 100001\r\n\r\n"), Outcome.TOO_LARGE, 200, "larger than 100000 bytes"
    ),
    "bomb": (
        say(HEAD + b"Content-Encoding: gzip\r\n\r\n" + BOMB), Outcome.TOO_LARGE, 200, "larger than 100000 bytes"
    ),
    "not gzip": (
        say(HEAD + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nplain"), Outcome.PROTOCOL, 200, "decoded"
    ),
    "endless headers": (for_ever(HEAD, b"X: " + b"x" * 1000 + b"\r\n"), Outcome.PROTOCOL, 200, "Too large response"),
    "endless header": (for_ever(HEAD + b"X: ", b"x" * 10_000), Outcome.PROTOCOL, 200, "the headers are too long"),
    "flood of 1xx": (
        for_ever(b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 100), Outcome.PROTOCOL, 103, "headers"
    ),
    "unasked upgrade": (say(b"HTTP/1.1 101 Up\r\nUpgrade: x\r\n\r\nx"), Outcome.PROTOCOL, 101, "HTTP status 101"),
    "bad chunk": (
        say(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello"), Outcome.PROTOCOL, 200, "the answer cannot be read"
    ),
    "two lengths": (
        say(HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi"), Outcome.PROTOCOL, 200, "Content-Length"
    ),
    "NUL": (say(HEAD + b"X: a\0b\r\n\r\n"), Outcome.PROTOCOL, 200, "NUL"),
    "no HTTP": (say(b"SSH-2.0-OpenSSH_9\r\n"), Outcome.PROTOCOL, None, "not an HTTP answer"),
    "odd bytes": (say(b"HTTP/1.1 200 \xff\xfe\r\nX-\xff: \xf1\r\nContent-Length: 2\r\n\r\nhi"), Outcome.OK, 200, ""),
    "to a file": (redirect(b"file:///etc/passwd"), Outcome.PROTOCOL, 302, 'Protocol "file" is disabled'),
    "to gopher": (redirect(b"gopher://127.0.0.1/"), Outcome.PROTOCOL, 302, 'Protocol "gopher" is disabled'),
    "to nowhere": (redirect(b"http://"), Outcome.PROTOCOL, 302, "the redirect target"),
    "to odd bytes": (redirect(b"http://127.0.0.1:1/\xf1\xff"), Outcome.CONNECT, 302, "Connection refused"),
    "to itself": (redirect(b"/"), Outcome.TOO_MANY_REDIRECTS, 302, "too many redirects"),
    "to a private address": (
        redirect(b"http://10.0.0.1/"), Outcome.REFUSED, 302, "refused: 10.0.0.1 is a private or reserved address"
    ),
    "to a mapped address": (redirect(b"http://[::ffff:10.0.0.1]/"), Outcome.REFUSED, 302, "carries 10.0.0.1"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISBEHAVIOURS)
def test_whatever_a_server_does_has_an_outcome_and_words(engine: ProbeEngine, serve: Serve, name: str) -> None:
    behave, outcome, status, words = MISBEHAVIOURS[name]
    result = probe(engine, f"http://127.0.0.1:{serve(behave)}/")
    assert (result.outcome, result.status_code) == (outcome, status), result
    assert words.lower() in (result.error or "").lower()
    assert (result.error is None) == (outcome is Outcome.OK)
    assert result.size_bytes <= QUICK.max_bytes + 65_536


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


@pytest.mark.parametrize(
    ("behave", "outcome", "words"),
    [
        (lambda c: c.sendall(OK), Outcome.TLS, "the TLS handshake failed"),
        (hang, Outcome.TIMEOUT, "the TLS handshake was not finished"),
    ],
)
def test_https_to_a_server_without_tls(
    engine: ProbeEngine, serve: Serve, behave: Behaviour, outcome: Outcome, words: str
) -> None:
    result = probe(engine, f"https://127.0.0.1:{serve(behave)}/")
    assert result.outcome is outcome
    assert words in (result.error or "")
    assert result.connect_ms is not None
    assert result.tls_ms is None


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
    assert all(b"User-Agent: urlhealth tests\r\n" in head for head in heads)


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
    engine = make_engine()
    try:
        assert probe(engine, f"http://127.0.0.1:{serve(say(OK))}/").outcome is Outcome.OK
    finally:
        engine.close()


def test_a_refused_address_is_never_connected_to(serve: Serve) -> None:
    connected = threading.Event()
    inner = serve(lambda _: connected.set())
    engine = make_engine(allow=[ip_network("127.0.0.2/32")])
    try:
        direct = probe(engine, f"http://127.0.0.1:{inner}/")
        named = probe(engine, f"http://inner.localhost:{inner}/")
        with socket.create_server(("127.0.0.2", 0)) as allowed:
            lure = redirect(b"http://127.0.0.1:%d/" % inner)
            threading.Thread(target=_accept, args=(allowed, lure), daemon=True).start()
            redirected = probe(engine, f"http://127.0.0.2:{allowed.getsockname()[1]}/")
            allowed.shutdown(socket.SHUT_RDWR)
    finally:
        engine.close()
    assert [result.outcome for result in (direct, named, redirected)] == [Outcome.REFUSED] * 3
    assert (redirected.status_code, redirected.redirects) == (302, 1)
    assert not connected.is_set()


def test_a_dead_site_is_not_called_refused_because_another_address_of_it_is() -> None:
    engine = make_engine(allow=[ip_network("127.0.0.0/8")])
    try:
        assert probe(engine, "http://dead.localhost:1/").outcome is Outcome.CONNECT
    finally:
        engine.close()


def test_waiting_in_the_engine_is_not_counted_as_the_target_s_time(serve: Serve) -> None:
    def think(connection: socket.socket) -> None:
        read_head(connection)
        time.sleep(0.1)
        connection.sendall(OK)

    engine = make_engine(concurrency=1)
    try:
        results = probe_all(engine, [f"http://h{n}.localhost:{serve(think)}/" for n in range(4)])
    finally:
        engine.close()
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
    engine = make_engine(per_host=2)
    try:
        results = probe_all(engine, [*[f"http://127.0.0.1:{busy}/{n}" for n in range(8)], f"http://127.0.0.1:{other}/"])
    finally:
        engine.close()
    assert all(result.outcome is Outcome.OK for result in results)
    assert most == 2
    assert results[-1].ts_ms < sorted(result.ts_ms for result in results[:8])[2]


def test_capacity_counts_what_nobody_has_fetched(serve: Serve) -> None:
    engine = make_engine(concurrency=2)
    try:
        free = engine.capacity
        request = ProbeRequest(target=parse_target(f"http://127.0.0.1:{serve(say(OK))}/"))
        engine.submit([request, request])
        assert engine.capacity == free - 2
        fetched = 0
        while fetched < 2:
            fetched += len(engine.results(5.0))
            assert engine.capacity == free - 2 + fetched
        assert engine.results(0.01) == []
    finally:
        engine.close()


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


def tls(tmp_path: Path, *, curve: str = "prime256v1", ends: bytes = b"361231235959Z") -> Behaviour:
    """Answers over TLS, agreeing on keys by this curve only, with a self-signed certificate that ends at `ends`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    end = datetime(2036, 12, 31, 23, 59, 59, tzinfo=UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(datetime(2020, 1, 1, tzinfo=UTC)).not_valid_after(end)
    der = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER).replace(b"361231235959Z", ends)
    file = tmp_path / f"{curve}.pem"
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    file.write_text(file.read_text() + ssl.DER_cert_to_PEM_cert(der))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    context.set_ecdh_curve(curve)

    def behave(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            say(OK)(secured)

    return behave


UNCHECKED = replace(QUICK, verify_tls=False)


@pytest.mark.parametrize("curve", ["X25519", "prime256v1", "secp384r1", "secp521r1"])
def test_servers_that_know_one_curve_only_are_understood(
    engine: ProbeEngine, serve: Serve, tmp_path: Path, curve: str
) -> None:
    result = probe(engine, f"https://127.0.0.1:{serve(tls(tmp_path, curve=curve))}/", UNCHECKED)
    assert (result.outcome, result.cert_expires_ms) == (Outcome.OK, 2_114_380_799_000), result


def test_a_certificate_whose_end_cannot_be_read_has_none(engine: ProbeEngine, serve: Serve, tmp_path: Path) -> None:
    result = probe(engine, f"https://127.0.0.1:{serve(tls(tmp_path, ends=b'361331999999Z'))}/", UNCHECKED)
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


def test_a_defect_of_the_engine_is_told_to_whoever_waits_and_whoever_asks(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    monkeypatch.setattr(Transfer, "begin", lambda *_, **__: 1 / 0)
    assert not engine.failed
    engine.submit([ProbeRequest(target=parse_target(f"http://127.0.0.1:{serve(say(OK))}/"))])
    with pytest.raises(RuntimeError, match="the probing engine has failed"):
        engine.results(5.0)
    assert engine.failed
    engine.close()


def test_cancelled_tasks_are_dropped_wherever_they_are_and_others_go_on(serve: Serve) -> None:
    engine = make_engine(concurrency=2, per_host=1)
    free = engine.capacity
    began = threading.Semaphore(0)

    def stall(connection: socket.socket) -> None:
        began.release()
        hang(connection)

    stalling, good = serve(stall), serve(say(OK))
    patient = ProbeOptions()

    def request(url: str, task_id: str | None) -> ProbeRequest:
        return ProbeRequest(target=parse_target(url), task_id=task_id, options=patient)

    try:
        # Two under way, one held for its host, one that waits for a slot.
        stalled = [f"http://a.localhost:{stalling}/", f"http://b.localhost:{stalling}/"]
        engine.submit([request(stalled[0], "gone"), request(stalled[1], "gone"), request(stalled[0], "gone")])
        engine.submit([request(f"http://c.localhost:{good}/", "kept"), request(f"http://d.localhost:{good}/", None)])
        assert began.acquire(timeout=5)
        assert began.acquire(timeout=5)
        assert engine.capacity == free - 5
        engine.cancel({"gone", "never known"})
        found: list[str | None] = []
        while len(found) < 2:
            batch = engine.results(5.0)
            assert batch, "results are missing"
            found += [probed.request.task_id for probed in batch]
        assert set(found) == {"kept", None}
        assert engine.capacity == free
        engine.submit([request(f"http://a.localhost:{good}/", "next")])
        assert [probed.request.task_id for probed in engine.results(5.0)] == ["next"]
    finally:
        engine.close()


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
        result = probe(engine, f"https://127.0.0.1:{serve(tls(tmp_path))}/")
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
