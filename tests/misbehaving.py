"""The misbehaving server: each way in which it does so, and the outcome of probing it.

`docs/probing.md` shows the table; `tests/integration/test_misbehaving.py` holds both to it.
"""

import gzip
import socket
import ssl
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from ipaddress import ip_address
from pathlib import Path

import brotli
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from urlhealth.vocabulary import Outcome

Behaviour = Callable[[socket.socket], None]


@contextmanager
def serving(behave: Behaviour, *, address: str = "127.0.0.1") -> Iterator[int]:
    """A server on loopback that does the same to each connection; gives its port."""

    def handle(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            behave(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=handle, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server((address, 0), backlog=100) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


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


def reset(connection: socket.socket) -> None:
    """Close with a RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def reset_after(*parts: bytes) -> Behaviour:
    def behave(connection: socket.socket) -> None:
        say(*parts)(connection)
        time.sleep(0.05)
        reset(connection)

    return behave


def hang(connection: socket.socket) -> None:
    while connection.recv(65_536):
        pass


def say_and_stay(*parts: bytes) -> Behaviour:
    """The same, and leaves the end to the client."""

    def behave(connection: socket.socket) -> None:
        connection.recv(65_536)
        for part in parts:
            connection.sendall(part)
        hang(connection)

    return behave


def redirect(location: bytes, *headers: bytes) -> Behaviour:
    lines = b"".join(header + b"\r\n" for header in headers)
    return say(b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\n" + lines + b"Content-Length: 0\r\n\r\n")


def reset_in_handshake(connection: socket.socket) -> None:
    connection.recv(65_536)
    reset(connection)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A self-signed certificate, and how it is shown."""

    host: str = "127.0.0.1"
    not_before: datetime = datetime(2020, 1, 1, tzinfo=UTC)
    not_after: datetime = datetime(2036, 12, 31, 23, 59, 59, tzinfo=UTC)
    #: What stands in the certificate for its end, if not `not_after`.
    end_as_written: bytes | None = None
    #: The only curve that keys are agreed on by.
    curve: str = "prime256v1"
    #: Protocols that are offered in the handshake.
    alpn: tuple[str, ...] = ()
    trusted: bool = False


@cache
def certified(shown: Shown) -> tuple[str, ssl.SSLContext]:
    """The certificate (PEM), and a context that shows it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "misbehaving")])
    with suppress(ValueError):
        alternative: x509.GeneralName = x509.IPAddress(ip_address(shown.host))
    if not shown.host[0].isdigit():
        alternative = x509.DNSName(shown.host)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(shown.not_before).not_valid_after(shown.not_after)
    builder = builder.add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
    der = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    if shown.end_as_written:
        der = der.replace(shown.not_after.strftime("%y%m%d%H%M%SZ").encode(), shown.end_as_written)
    pem = ssl.DER_cert_to_PEM_cert(der)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + pem.encode())
        file.flush()
        context.load_cert_chain(file.name)
    context.set_ecdh_curve(shown.curve)
    if shown.alpn:
        context.set_alpn_protocols(list(shown.alpn))
    return pem, context


def tls(behave: Behaviour, shown: Shown | None = None) -> Behaviour:
    """The same, over TLS."""

    def behave_secured(connection: socket.socket) -> None:
        with certified(shown or Shown())[1].wrap_socket(connection, server_side=True) as secured:
            behave(secured)

    return behave_secured


def write_trusted(file: Path) -> Path:
    """Write the certificates of the table that are to be trusted."""
    file.write_text("".join(certified(shown)[0] for shown in (EXPIRED, NOT_YET, OTHER_HOST, TRUSTED, SPEAKS_H2)))
    return file


EXPIRED = Shown(not_after=datetime(2021, 1, 1, tzinfo=UTC), trusted=True)
NOT_YET = Shown(not_before=datetime(2036, 1, 1, tzinfo=UTC), trusted=True)
OTHER_HOST = Shown(host="other.example", trusted=True)
TRUSTED = Shown(trusted=True)
SPEAKS_H2 = Shown(alpn=("h2",), trusted=True)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a server does, and what comes of probing it."""

    behave: Behaviour
    outcome: Outcome
    status: int | None = None
    #: Words of the error.
    words: str = ""
    scheme: str = "http"


HEAD = b"HTTP/1.1 200 OK\r\n"
OK = HEAD + b"Content-Length: 2\r\n\r\nhi"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
MEGABYTES = bytes(20_000_000)


def encoded(name: bytes, body: bytes) -> bytes:
    return HEAD + b"Content-Encoding: " + name + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def _table() -> dict[str, Expected]:
    def over_tls(shown: Shown, words: str) -> Expected:
        return Expected(behave=tls(say(OK), shown), outcome=Outcome.TLS, words=words, scheme="https")

    def refused(location: bytes, words: str) -> Expected:
        return Expected(behave=redirect(location), outcome=Outcome.REFUSED, status=302, words=words)

    def not_http(behave: Behaviour, status: int | None, words: str, scheme: str = "http") -> Expected:
        return Expected(behave=behave, outcome=Outcome.PROTOCOL, status=status, words=words, scheme=scheme)

    def too_large(behave: Behaviour) -> Expected:
        return Expected(behave=behave, outcome=Outcome.TOO_LARGE, status=200, words="larger than 100000 bytes")

    def late(behave: Behaviour, status: int | None, words: str, scheme: str = "http") -> Expected:
        return Expected(behave=behave, outcome=Outcome.TIMEOUT, status=status, words=words, scheme=scheme)

    def broken(behave: Behaviour, status: int | None, words: str, scheme: str = "http") -> Expected:
        return Expected(behave=behave, outcome=Outcome.CONNECT, status=status, words=words, scheme=scheme)

    gzip_bomb, brotli_bomb = gzip.compress(MEGABYTES), brotli.compress(MEGABYTES, quality=1)
    return {
        "status 404": Expected(
            behave=say(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"),
            outcome=Outcome.HTTP_ERROR, status=404, words="HTTP 404 Not Found",
        ),
        "status 599": Expected(
            behave=say(b"HTTP/1.0 599 No\r\n\r\n"), outcome=Outcome.HTTP_ERROR, status=599, words="HTTP 599"
        ),
        "status 401": Expected(
            behave=say(b"HTTP/1.1 401 No\r\n\r\n"), outcome=Outcome.BLOCKED, status=401, words="HTTP 401 Unauthorized"
        ),
        "status 403": Expected(
            behave=say(b"HTTP/1.1 403 No\r\n\r\n"), outcome=Outcome.BLOCKED, status=403, words="HTTP 403 Forbidden"
        ),
        "never answers": late(hang, None, "no answer after 0.6 s"),
        "a byte of the head at a time": late(for_ever(HEAD + b"X: ", b"x", 0.05), 200, "not complete"),
        "a byte of the body at a time": late(for_ever(HEAD + b"\r\n", b".", 0.05), 200, "not complete"),
        "closes without an answer": broken(say(), None, "closed without an answer"),
        "resets instead of an answer": broken(reset_after(), None, "Connection reset by peer"),
        "resets in the head": broken(reset_after(HEAD + b"X: y"), 200, "Connection reset by peer"),
        "resets in the body": broken(
            reset_after(HEAD + b"Content-Length: 9\r\n\r\nabc"), 200, "Connection reset by peer"
        ),
        "half a body": not_http(say(HEAD + b"Content-Length: 9\r\n\r\nabc"), 200, "the answer broke off"),
        "endless body": too_large(for_ever(HEAD + b"\r\n", bytes(65_536))),
        "endless chunks": too_large(for_ever(CHUNKED, b"8000\r\n" + bytes(0x8000) + b"\r\n")),
        "a body announced too large": too_large(say(HEAD + b"Content-Length: 100001\r\n\r\n")),
        "gzip bomb": too_large(say(encoded(b"gzip", gzip_bomb))),
        "gzip bomb in a gzip": too_large(say(encoded(b"gzip, gzip", gzip.compress(gzip_bomb)))),
        "Brotli bomb": too_large(say(encoded(b"br", brotli_bomb))),
        "gzip in seven layers": not_http(say(encoded(b", ".join([b"gzip"] * 7), gzip_bomb)), 200, "cannot be decoded"),
        "not the gzip it says": not_http(say(encoded(b"gzip", b"plain")), 200, "cannot be decoded"),
        "an encoding nobody asked for": not_http(say(encoded(b"zstd", b"plain")), 200, "cannot be decoded"),
        "endless heads": not_http(for_ever(HEAD, b"X: " + b"x" * 1000 + b"\r\n"), 200, "Too large response"),
        "endless line in the head": not_http(for_ever(HEAD + b"X: ", b"x" * 10_000), 200, "the headers are too long"),
        "cookies without end": not_http(
            for_ever(HEAD, b"".join(b"Set-Cookie: c%d=v\r\n" % n for n in range(100))), 200, "too many response headers"
        ),
        "flood of 1xx": not_http(
            for_ever(b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 100), 103, "headers"
        ),
        "an upgrade nobody asked for": not_http(
            say(b"HTTP/1.1 101 Up\r\nUpgrade: x\r\n\r\nx"), 101, "HTTP status 101"
        ),
        "invalid chunk": not_http(say(CHUNKED + b"zz\r\nhello"), 200, "the answer cannot be read"),
        "chunk size beyond all numbers": not_http(say(CHUNKED + b"f" * 40 + b"\r\nhello"), 200, "cannot be read"),
        "endless trailers": not_http(
            for_ever(CHUNKED + b"2\r\nhi\r\n0\r\n", b"X: " + b"x" * 1000 + b"\r\n"), 200, "large"
        ),
        "two lengths": not_http(
            say(HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi"), 200, "Content-Length"
        ),
        "negative length": not_http(say(HEAD + b"Content-Length: -2\r\n\r\nhi"), 200, "Content-Length"),
        "NUL in a header": not_http(say(HEAD + b"X: a\0b\r\n\r\n"), 200, "NUL"),
        "not HTTP": not_http(say(b"SSH-2.0-OpenSSH_9\r\n"), None, "not an HTTP answer"),
        "invalid UTF-8 in headers": Expected(
            behave=say(b"HTTP/1.1 200 \xff\xfe\r\nX-\xff: \xf1\r\nContent-Length: 2\r\n\r\nhi"),
            outcome=Outcome.OK, status=200,
        ),
        "a Retry-After that is no time": Expected(
            behave=say(b"HTTP/1.1 503 No\r\nRetry-After: \xff soon\r\nContent-Length: 0\r\n\r\n"),
            outcome=Outcome.HTTP_ERROR, status=503, words="HTTP 503",
        ),
        "redirect to file:": not_http(redirect(b"file:///etc/passwd"), 302, 'Protocol "file" is disabled'),
        "redirect to gopher:": not_http(redirect(b"gopher://127.0.0.1/"), 302, 'Protocol "gopher" is disabled'),
        "redirect to ftp:": not_http(redirect(b"ftp://127.0.0.1/"), 302, 'Protocol "ftp" is disabled'),
        "redirect to nowhere": not_http(redirect(b"http://"), 302, "the redirect target"),
        "redirect to itself": Expected(
            behave=redirect(b"/"), outcome=Outcome.TOO_MANY_REDIRECTS, status=302, words="too many redirects"
        ),
        "redirect to itself, with a cookie each time": Expected(
            behave=redirect(b"/", b"Set-Cookie: a=" + b"b" * 4000),
            outcome=Outcome.TOO_MANY_REDIRECTS, status=302, words="too many redirects",
        ),
        "redirect to a private address": refused(b"http://10.0.0.1/", "10.0.0.1 is a private or reserved address"),
        "redirect to a private address in disguise": refused(b"http://[::ffff:10.0.0.1]/", "carries 10.0.0.1"),
        "redirect to a closed port, with odd bytes": broken(
            redirect(b"http://127.0.0.1:1/\xf1\xff"), 302, "Connection refused"
        ),
        "no TLS where it should be": Expected(
            behave=say_and_stay(OK), outcome=Outcome.TLS, words="the TLS handshake failed", scheme="https"
        ),
        "TLS that stalls in the handshake": late(hang, None, "the TLS handshake was not finished", "https"),
        "TLS that is reset in the handshake": Expected(
            behave=reset_in_handshake, outcome=Outcome.TLS, words="the TLS handshake failed", scheme="https"
        ),
        "TLS that is reset in the body": broken(
            tls(reset_after(HEAD + b"Content-Length: 9\r\n\r\nabc"), TRUSTED), 200, "the connection broke", "https"
        ),
        "TLS that ends in the body": broken(
            tls(say(HEAD + b"Content-Length: 9\r\n\r\nabc"), TRUSTED), 200, "the connection broke", "https"
        ),
        "HTTP/2 that is none": not_http(tls(say_and_stay(OK), SPEAKS_H2), None, "the answer cannot be read", "https"),
        "self-signed certificate": over_tls(Shown(), "self-signed certificate"),
        "expired certificate": over_tls(EXPIRED, "certificate has expired"),
        "certificate that is not valid yet": over_tls(NOT_YET, "not yet valid"),
        "certificate of another host": over_tls(OTHER_HOST, "the certificate is not trusted"),
        "certificate with an end that is no time": over_tls(Shown(end_as_written=b"361331999999Z"), "not trusted"),
    }  # fmt: skip


MISBEHAVIOURS = _table()
