"""Which addresses are refused, and which networks change that."""

from ipaddress import ip_network

import pytest

from urlhealth.probing.guard import AddressGuard


@pytest.mark.parametrize(
    "address",
    ["93.184.215.14", "1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"],
)
def test_public_addresses_are_probed(address: str) -> None:
    assert AddressGuard().refusal(address, 443) is None


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1", "127.0.0.1 is a loopback address"),
        ("127.255.0.1", "loopback"),
        ("::1", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("10.1.2.3", "private or reserved"),
        ("172.16.0.1", "private or reserved"),
        ("192.168.1.1", "private or reserved"),
        ("100.64.0.1", "private or reserved"),
        ("192.0.2.1", "private or reserved"),
        ("240.0.0.1", "private or reserved"),
        ("255.255.255.255", "private or reserved"),
        ("169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("fc00::1", "private or reserved"),
        ("fec0::1", "not a global unicast address"),
        ("4000::1", "not a global unicast address"),
        ("2001:db8::1", "private or reserved"),
        ("::7f00:1", "::7f00:1"),
        ("64:ff9b:1::1", "64:ff9b:1::1"),
        ("::ffff:127.0.0.1", "carries 127.0.0.1, which is a loopback address"),
        ("::ffff:169.254.169.254", "carries 169.254.169.254, which is a link-local address"),
        ("64:ff9b::a00:1", "carries 10.0.0.1"),
        ("2002:a00:1::1", "carries 10.0.0.1"),
        ("2001:0:a00:1::1", "carries 10.0.0.1"),
        ("2001:0:101:101::f5ff:fffe", "carries 10.0.0.1"),
        ("nonsense", "is not an IP address"),
    ],
)
def test_all_else_is_refused_with_a_reason(address: str, words: str) -> None:
    refusal = AddressGuard().refusal(address, 443)
    assert refusal is not None
    assert words in refusal


def test_an_allowed_network_may_be_probed_and_nothing_beside_it() -> None:
    guard = AddressGuard([ip_network("127.0.0.0/8"), ip_network("fd00:1::/32")])
    assert guard.refusal("127.0.0.1", 443) is None
    assert guard.refusal("::ffff:127.0.0.1", 443) is None
    assert guard.refusal("fd00:1::5", 443) is None
    assert guard.refusal("::1", 443)
    assert guard.refusal("10.0.0.1", 443)
    assert guard.refusal("fd00:2::5", 443)
