"""Which addresses, ports and hosts may be connected to: globally routable ones, unless the operator says else."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:  # what a probing process does not need
    from urlhealth.settings import Settings

Network = IPv4Network | IPv6Network

_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
_NAT64: Final = IPv6Network("64:ff9b::/96")
#: The second half of an ISATAP interface id, before the IPv4 address (RFC 5214); the bit in it says "global".
_ISATAP: Final = (0x0000_5EFE, 0x0200_5EFE)

#: What older versions of Python take for global, or what is and must not be reached all the same.
_REFUSED: Final[dict[Network, str]] = {
    IPv4Network("168.63.129.16/32"): "a cloud's own service",  # Azure's; other clouds' are link-local or private
    IPv4Network("192.0.0.0/24"): "a private or reserved address",
    IPv4Network("192.88.99.0/24"): "a 6to4 relay",
    IPv6Network("2001:20::/28"): "a private or reserved address",
    IPv6Network("3fff::/20"): "a documentation address",
}

#: Ports that browsers do not speak HTTP to, because what listens there may take a request for commands of its own
#: (https://fetch.spec.whatwg.org/#port-blocking).
BAD_PORTS: Final = frozenset((
    0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104,
    109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526,
    530, 531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045,
    4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080
))  # fmt: skip


class AddressGuard:
    """Refuses what is not globally routable unicast, so that nobody can reach inner networks through a probe.

    An IPv6 address that carries an IPv4 address (mapped, NAT64, 6to4, Teredo, ISATAP) is judged by that one too. What
    is denied stays so, whatever is allowed.
    """

    def __init__(
        self,
        allow: Sequence[Network] = (),
        *,
        deny: Sequence[Network] = (),
        allow_hosts: Iterable[str] = (),
        deny_hosts: Iterable[str] = (),
        allow_ports: Iterable[int] = (),
        deny_ports: Iterable[int] = (),
    ) -> None:
        """
        Args:
            allow: networks that may be probed although they are private, loopback or reserved; there on any port.
            deny: networks that may not be probed.
            allow_hosts: if there are any, only these hosts and those below them may be probed.
            deny_hosts: hosts that may not be probed, nor those below them.
            allow_ports: if there are any, only these ports; else all that browsers speak HTTP to.
            deny_ports: ports that may not be connected to.
        """
        self._allow, self._deny = tuple(allow), tuple(deny)
        self._allow_hosts, self._deny_hosts = _suffixes(allow_hosts), _suffixes(deny_hosts)
        self._allow_ports, self._deny_ports = frozenset(allow_ports), frozenset(deny_ports)
        #: Why an address (as text) must not be connected to on a port; None if it may.
        self.refusal: Callable[[str, int], str | None] = lru_cache(maxsize=65_536)(self._judge)

    def __reduce__(self) -> tuple[Callable[[], "AddressGuard"], tuple[()]]:
        """For another process: without what was judged here."""
        again = partial(
            AddressGuard,
            self._allow,
            deny=self._deny,
            allow_hosts=self._allow_hosts,
            deny_hosts=self._deny_hosts,
            allow_ports=self._allow_ports,
            deny_ports=self._deny_ports,
        )
        return again, ()

    @property
    def judges_hosts(self) -> bool:
        """Whether names count, so that `host_refusal` must be asked too."""
        return bool(self._allow_hosts or self._deny_hosts)

    def host_refusal(self, url: str) -> str | None:
        """Why a URL must not be requested, by its host alone: for a name that we look up, the address is judged later.

        An address that is written in the URL is judged here too, because behind a proxy nobody else would.
        """
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            return "the URL cannot be read"
        if self._allow_hosts and not _within(host, self._allow_hosts):
            return f"{host} is none of the hosts that may be probed"
        if _within(host, self._deny_hosts):
            return f"{host} is a host that must not be probed"
        try:
            ip_address(host)
        except ValueError:
            return self.refusal("127.0.0.1", port) if _within(host, (".localhost",)) else None
        return self.refusal(host, port)

    def _judge(self, text: str, port: int) -> str | None:
        try:
            address = ip_address(text)
        except ValueError:
            return f"{text} is not an IP address"
        carried = tuple(_carried(address))
        for each in (address, *carried):
            if any(each in network for network in self._deny):
                return f"{text} is in a network that must not be probed"
        if port in self._deny_ports:
            return f"port {port} must not be probed"
        if self._allow_ports and port not in self._allow_ports:
            return f"port {port} is none of those that may be probed"
        if self._allowed(address):
            return None
        if refused := self._kind_of(text, address, carried):
            return refused
        if not self._allow_ports and port in BAD_PORTS:
            return f"port {port} is not one of HTTP"
        return None

    def _kind_of(self, text: str, address: IPv4Address | IPv6Address, carried: Sequence[IPv4Address]) -> str | None:
        for inner in carried:
            if not self._allowed(inner) and (kind := _kind(inner)):
                return f"{text} carries {inner}, which is {kind}"
        if carried and isinstance(address, IPv6Address) and (address.ipv4_mapped or address in _NAT64):
            return None
        kind = _kind(address)
        return kind and f"{text} is {kind}"

    def _allowed(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._allow)


def _suffixes(hosts: Iterable[str]) -> tuple[str, ...]:
    return tuple("." + host.strip().strip(".").lower() for host in hosts)


def _within(host: str, suffixes: tuple[str, ...]) -> bool:
    return f".{host}".endswith(suffixes)


def guard_of(settings: "Settings") -> AddressGuard:
    """The guard that the settings ask for."""
    return AddressGuard(
        settings.allow_addresses,
        deny=settings.deny_addresses,
        allow_hosts=settings.allow_hosts,
        deny_hosts=settings.deny_hosts,
        allow_ports=settings.allow_ports,
        deny_ports=settings.deny_ports,
    )


def _carried(address: IPv4Address | IPv6Address) -> Iterator[IPv4Address]:
    if isinstance(address, IPv4Address):
        return
    if address.ipv4_mapped:
        yield address.ipv4_mapped
    if address in _NAT64:
        yield IPv4Address(int(address) & 0xFFFF_FFFF)
    if address.sixtofour:
        yield address.sixtofour
    if address.teredo:
        yield from address.teredo
    if int(address) >> 32 & 0xFFFF_FFFF in _ISATAP:
        yield IPv4Address(int(address) & 0xFFFF_FFFF)


def _kind(address: IPv4Address | IPv6Address) -> str | None:
    """What kind of address it is that must not be probed; None for globally routable unicast."""
    if address.is_unspecified:
        return "unspecified"
    if address.is_loopback:
        return "a loopback address"
    if address.is_link_local:
        return "a link-local address"
    if address.is_multicast:
        return "a multicast address"
    if refused := next((kind for network, kind in _REFUSED.items() if address in network), None):
        return refused
    if not address.is_global:
        return "a private or reserved address"
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return "not a global unicast address"
    return None
