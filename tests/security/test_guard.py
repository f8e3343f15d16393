"""No spelling of an inner address, and no way around the look at it, gets a probe to connect.

All of it goes through the real engine and libcurl, as a URL that is sent and as where a redirect leads. A trap listens
on loopback, where each that passed would end. Names are answered by CURLOPT_RESOLVE, in libcurl's own cache: what it
does with an answer is the same as with a name server's.
"""

import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final

import pycurl
import pytest

from tests.misbehaving import OK, redirect, say, serving
from tests.probes import probe, probe_all
from urlhealth.errors import InvalidRequest
from urlhealth.probing.engine import ProbeEngine
from urlhealth.probing.guard import BAD_PORTS, AddressGuard
from urlhealth.probing.options import parse_options
from urlhealth.probing.transfer import Transfer
from urlhealth.probing.urls import parse_target
from urlhealth.vocabulary import Outcome, ProbeOptions

#: The only network that may be probed here: where the servers are that lead astray.
OPEN: Final = "127.0.0.2"
VICTIMS: Final = ("127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.0.1", "172.31.255.254", "100.100.100.200")
#: A refused address of each kind, as a name's answer.
ANSWERS: Final = (
    *VICTIMS,
    *("0.0.0.0", "0.1.2.3", "127.255.255.254", "192.0.0.192", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.51.100.7"),
    *("203.0.113.9", "224.0.0.251", "239.255.255.250", "240.0.0.1", "255.255.255.255", "168.63.129.16"),
    *("::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "100::1", "2001:db8::1", "3fff::1"),
    *("2001:2::1", "2001:10::1", "2001:20::1", "5f00::1", "64:ff9b:1::1", "4000::1"),
)


def spellings(victim: str) -> Iterator[str]:
    """An IPv4 address as hosts of URLs, in all the ways that some parser takes."""
    address = IPv4Address(victim)
    a, b, c, d = address.packed
    number = int(address)
    yield victim
    yield f"{victim}."
    yield str(number)
    yield f"{number}."
    yield hex(number)
    yield f"0X{number:08X}"
    yield f"0x{number:020x}"
    yield f"0{number:o}"
    yield f"0{a:o}.0{b:o}.0{c:o}.0{d:o}"
    yield f"{a:#x}.{b:#x}.{c:#x}.{d:#x}"
    yield f"{a:#x}.{b}.0{c:o}.{d}"
    yield f"{a}.{b << 16 | c << 8 | d}"
    yield f"{a}.{b}.{c << 8 | d}"
    yield f"000{a:o}.00{b:o}.{c}.{d}"
    yield victim.replace(".", "%2e")
    yield "".join(f"%{ord(letter):02x}" for letter in victim)
    yield victim.translate({ord("0") + digit: 0xFF10 + digit for digit in range(10)})  # full-width digits
    for dot in "。．｡":
        yield victim.replace(".", dot)
    yield victim.translate({ord("1"): "①", ord("2"): "②", ord("3"): "③"})
    yield victim.replace("1", "¹")
    yield victim.replace(".", ".\u00ad")  # soft hyphen, which IDNA drops
    yield victim.replace(".", "\t.")
    yield f"example.com@{victim}"
    yield f"example.com:80@{victim}"
    yield f"[::ffff:{victim}]"
    yield f"[::FFFF:{address.packed.hex()[:4]}:{address.packed.hex()[4:]}]"
    yield f"[0:0:0:0:0:ffff:{victim}]"
    yield f"[::{victim}]"
    yield f"[::ffff:0:{victim}]"
    yield f"[64:ff9b::{victim}]"
    yield f"[{IPv6Address((0x2002 << 112) | (number << 80) | 1)}]"
    yield f"[{IPv6Address((0x2001_0000 << 96) | (0x0808_0808 << 64) | (number ^ 0xFFFF_FFFF))}]"
    yield f"[{IPv6Address((0x2001_0000 << 96) | (number << 64) | 0xF7F7_F7F7)}]"
    yield f"[{IPv6Address((0x2606_4700 << 96) | (0x5EFE << 32) | number)}]"
    yield f"[{IPv6Address((0x2606_4700 << 96) | (0x0200_5EFE << 32) | number)}]"


OTHERS: Final = (
    *("localhost", "LOCALHOST", "localhost.", "a.localhost", "ｌｏｃａｌｈｏｓｔ", "loc%61lhost", "LocalHost\t"),
    *("0", "0.", "0x0", "00", "0.0", "127.1", "127.0.1", "0177.1", "0x7f.1", "[::]", "[::1]", "[0::0:1]"),
    *("[0000:0000:0000:0000:0000:0000:0000:0001]", "[fe80::1]", "[fe80::1%25lo]", "[::1%25lo]", "[::1%251]"),
    *("[fc00::1]", "[fd00:ec2::254]", "[ff02::1]", "[ff0e::1]", "[::ffff:7f00:1]", "[64:ff9b:1::a00:1]", "[fec0::1]"),
    *("[2001:db8::1]", "[3fff::1]", "[5f00::1]", "[100::1]", "[4000::1]"),
    *("user:secret@127.0.0.1", "127.0.0.1%00.example.com", "127.0.0.1\\@example.com"),
)
TRICKS: Final = tuple(dict.fromkeys((*(form for victim in VICTIMS for form in spellings(victim)), *OTHERS)))


class Trap:
    """Listens on the addresses of loopback at one port, and remembers who came."""

    def __init__(self) -> None:
        self.caught: list[object] = []
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self.port = int(self._sockets[0].getsockname()[1])
        with suppress(OSError):
            self._sockets.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))
        for listener in self._sockets:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, peer = listener.accept()
                self.caught.append(peer)
                connection.sendall(OK)
                connection.close()

    def close(self) -> None:
        for listener in self._sockets:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()


@pytest.fixture(scope="module")
def trap() -> Iterator[Trap]:
    trap = Trap()
    yield trap
    trap.close()


@contextmanager
def guarded(guard: AddressGuard) -> Iterator[ProbeEngine]:
    engine = ProbeEngine(
        user_agent="urlhealth-tests/1", concurrency=64, concurrency_per_host=64, guard=guard, worker_id="tests"
    )
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="module")
def engine() -> Iterator[ProbeEngine]:
    with guarded(AddressGuard([ip_network(f"{OPEN}/32")])) as engine:
        yield engine


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says what a name's addresses are from the next probe on."""
    answers: dict[str, str] = {}
    begin = Transfer.begin

    def begin_with_answers(self: Transfer, *args: object, **more: object) -> None:
        begin(self, *args, **more)  # type: ignore[arg-type]
        self.curl.setopt(pycurl.RESOLVE, [f"{name}:{addresses}" for name, addresses in answers.items()])

    monkeypatch.setattr(Transfer, "begin", begin_with_answers)

    def say(name: str, port: int, *addresses: str) -> None:
        written = (f"[{address}]" if ":" in address else address for address in addresses)
        answers[f"{name}:{port}"] = ",".join(written)

    return say


def test_the_table_is_long_enough() -> None:
    assert len(TRICKS) >= 150


def test_the_trap_catches(trap: Trap) -> None:
    with guarded(AddressGuard([ip_network("127.0.0.0/8")])) as engine:
        assert probe(engine, f"http://0x7f.1:{trap.port}/").outcome is Outcome.OK
    assert len(trap.caught) == 1
    trap.caught.clear()


def test_no_spelling_passes_as_a_url(engine: ProbeEngine, trap: Trap) -> None:
    tried, refused_as_urls = [], 0
    for trick in TRICKS:
        url = f"http://{trick}:{trap.port}/"
        try:
            parse_target(url)
            tried.append(url)
        except InvalidRequest:
            refused_as_urls += 1
    outcomes = {result.target: result.outcome for result in probe_all(engine, tried)}
    assert {target: outcome for target, outcome in outcomes.items() if outcome is not Outcome.REFUSED} == {}
    assert trap.caught == []
    assert len(tried) >= 100, "most spellings are URLs, and are the guard's to judge"


def test_no_spelling_passes_behind_a_redirect(engine: ProbeEngine, trap: Trap) -> None:
    with ExitStack() as servers:
        urls = []
        for trick in TRICKS:
            location = f"http://{trick}:{trap.port}/".encode()
            urls.append(f"http://{OPEN}:{servers.enter_context(serving(redirect(location), address=OPEN))}/")
        results = probe_all(engine, urls)
    allowed = {Outcome.REFUSED, Outcome.PROTOCOL, Outcome.DNS}
    assert {result.outcome for result in results} <= allowed
    assert sum(result.outcome is Outcome.REFUSED for result in results) >= 100
    assert trap.caught == []


def test_no_name_passes_whatever_its_answer_is(engine: ProbeEngine, trap: Trap, answer: Callable[..., None]) -> None:
    for number, address in enumerate(ANSWERS):
        answer(f"n{number}.test", trap.port, address)
    results = probe_all(engine, [f"http://n{number}.test:{trap.port}/" for number in range(len(ANSWERS))])
    assert {(r.target, r.outcome) for r in results if r.outcome is not Outcome.REFUSED} == set()
    assert trap.caught == []


def test_a_name_that_changes_its_answer_is_judged_by_the_one_that_is_used(
    engine: ProbeEngine, trap: Trap, answer: Callable[..., None]
) -> None:
    with serving(say(OK), address=OPEN) as port:
        answer("rebinds.test", port, OPEN)
        url = f"http://rebinds.test:{port}/"
        assert probe(engine, url).outcome is Outcome.OK
        answer("rebinds.test", port, "127.0.0.1")
        assert probe(engine, url).outcome is Outcome.REFUSED
    # Of two addresses the first is open, and nobody is there.
    answer("both.test", trap.port, OPEN, "127.0.0.1")
    assert probe(engine, f"http://both.test:{trap.port}/").outcome is Outcome.REFUSED
    assert trap.caught == []


def test_alt_svc_and_hsts_lead_nowhere(engine: ProbeEngine, trap: Trap) -> None:
    head = b'HTTP/1.1 200 OK\r\nAlt-Svc: h2="127.0.0.1:%d", http/1.1="127.0.0.1:%d"; ma=600\r\n' % (
        trap.port,
        trap.port,
    )
    head += b"Strict-Transport-Security: max-age=600\r\nContent-Length: 2\r\n\r\nhi"
    with serving(say(head), address=OPEN) as port:
        for _ in range(2):
            assert probe(engine, f"http://{OPEN}:{port}/").outcome is Outcome.OK
    assert trap.caught == []


@pytest.mark.parametrize("scheme", ["http", "https", "socks5", "socks5h"])
@pytest.mark.parametrize("host", ["127.0.0.1", "0x7f.1", "2130706433", "localhost", "[::1]", "[::ffff:127.0.0.1]"])
def test_a_proxy_is_judged_like_a_target(engine: ProbeEngine, trap: Trap, scheme: str, host: str) -> None:
    options = parse_options({"proxy": f"{scheme}://{host}:{trap.port}", "timeout_s": 0.6, "connect_timeout_s": 0.3})
    assert probe(engine, "http://example.com/", options).outcome is Outcome.REFUSED
    assert trap.caught == []


@pytest.mark.parametrize("host", ["127.0.0.1", "0x7f.1", "[::1]", "localhost", "a.localhost.", "169.254.169.254"])
def test_a_proxy_is_not_asked_for_inner_addresses(engine: ProbeEngine, host: str) -> None:
    heads: list[bytes] = []

    def proxy(connection: socket.socket) -> None:
        heads.append(connection.recv(65_536))
        connection.sendall(OK)

    with serving(proxy, address=OPEN) as port:
        options = ProbeOptions(proxy=f"http://{OPEN}:{port}", timeout_s=0.6)
        assert probe(engine, "http://example.com/", options).outcome is Outcome.OK
        assert probe(engine, f"http://{host}/", options).outcome is Outcome.REFUSED
    assert len(heads) == 1


def test_a_proxy_leads_to_no_inner_address(engine: ProbeEngine) -> None:
    heads: list[bytes] = []

    def proxy(connection: socket.socket) -> None:
        heads.append(connection.recv(65_536))
        connection.sendall(b"HTTP/1.1 302 Found\r\nlocation : http://0xa9fea9fe/latest\r\nContent-Length: 0\r\n\r\n")
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://0xa9fea9fe/latest\r\nContent-Length: 0\r\n\r\n")

    with serving(proxy, address=OPEN) as port:
        options = ProbeOptions(proxy=f"http://{OPEN}:{port}", timeout_s=0.6)
        assert probe(engine, "http://example.com/", options).outcome is Outcome.REFUSED
    assert len(heads) == 1


def test_what_is_denied_stays_so_whatever_is_allowed(trap: Trap) -> None:
    loopback = [ip_network("127.0.0.0/8"), ip_network("::1")]
    url = f"http://127.0.0.1:{trap.port}/"
    for more in (
        {"deny": [ip_network("127.0.0.1/32")]},
        {"deny_ports": [trap.port]},
        {"allow_ports": [80, 443]},
        {"deny_hosts": ["127.0.0.1"]},
        {"allow_hosts": ["example.com"]},
    ):
        # As the probing process gets it.
        with guarded(pickle.loads(pickle.dumps(AddressGuard(loopback, **more)))) as engine:
            assert probe(engine, url).outcome is Outcome.REFUSED, more
    assert trap.caught == []


def test_hosts_are_judged_by_name_before_a_redirect_is_followed(answer: Callable[..., None]) -> None:
    asked: list[bytes] = []

    def note(connection: socket.socket) -> None:
        asked.append(connection.recv(65_536))
        connection.sendall(OK)

    guard = AddressGuard([ip_network(f"{OPEN}/32")], allow_hosts=["good.test", "bad.test"], deny_hosts=["BAD.test."])
    with guarded(guard) as engine, serving(note, address=OPEN) as port:
        for name in ("good.test", "www.good.test", "bad.test", "a.bad.test", "notgood.test"):
            answer(name, port, OPEN)
        for name in ("good.test", "www.good.test", "GOOD.test."):
            answer(name.lower(), port, OPEN)
            assert probe(engine, f"http://{name}:{port}/").outcome is Outcome.OK
        asked.clear()
        for name in ("bad.test", "a.bad.test", "notgood.test", OPEN):
            assert probe(engine, f"http://{name}:{port}/").outcome is Outcome.REFUSED
            with serving(redirect(f"//{name}:{port}/x".encode()), address=OPEN) as leads:
                answer("good.test", leads, OPEN)
                assert probe(engine, f"http://good.test:{leads}/").outcome is Outcome.REFUSED
    assert asked == []


def test_ports_of_other_protocols_are_refused_outside_networks_that_are_allowed() -> None:
    for port in BAD_PORTS:
        assert AddressGuard().refusal("1.1.1.1", port) == f"port {port} is not one of HTTP"
        assert AddressGuard([ip_network("10.0.0.0/8")]).refusal("10.0.0.1", port) is None
        assert AddressGuard(allow_ports=[port]).refusal("1.1.1.1", port) is None
