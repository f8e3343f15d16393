"""Which addresses may be connected to: globally routable ones, and those that the operator allows."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
_NAT64: Final = IPv6Network("64:ff9b::/96")


class AddressGuard:
    """Refuses what is not globally routable unicast, so that nobody can reach inner networks through a probe.

    An IPv6 address that carries an IPv4 address (mapped, NAT64, 6to4, Teredo) is judged by that one too.
    """

    def __init__(self, allow: Sequence[IPv4Network | IPv6Network] = ()) -> None:
        """`allow`: networks that may be probed although they are private, loopback or reserved."""
        self._allow = tuple(allow)
        #: Why an address (as text) must not be connected to; None if it may.
        self.refusal: Callable[[str], str | None] = lru_cache(maxsize=65_536)(self._judge)

    def __reduce__(self) -> tuple[type["AddressGuard"], tuple[object, ...]]:
        """For another process: without what was judged here."""
        return AddressGuard, (self._allow,)

    def _judge(self, text: str) -> str | None:
        try:
            address = ip_address(text)
        except ValueError:
            return f"{text} is not an IP address"
        if self._allowed(address):
            return None
        carried = tuple(_carried(address))
        for inner in carried:
            if not self._allowed(inner) and (kind := _kind(inner)):
                return f"{text} carries {inner}, which is {kind}"
        if carried and isinstance(address, IPv6Address) and (address.ipv4_mapped or address in _NAT64):
            return None
        kind = _kind(address)
        return kind and f"{text} is {kind}"

    def _allowed(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._allow)


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
    if not address.is_global:
        return "a private or reserved address"
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return "not a global unicast address"
    return None
