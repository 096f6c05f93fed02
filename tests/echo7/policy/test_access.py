"""`--allow` and `--deny`, with the standard library's `ipaddress` as the oracle."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from echo7.policy.access import Access
from echo7.policy.rate import plain_host

V4, V6 = ipaddress.IPv4Network, ipaddress.IPv6Network


def near(version: int) -> st.SearchStrategy[Any]:
    """Return addresses that share long prefixes, so that networks and sources meet."""
    if version == 4:
        return st.one_of(st.integers(0, 255).map(lambda n: ipaddress.ip_address(0x0A000000 + n)), st.ip_addresses(v=4))
    return st.one_of(
        st.integers(0, 255).map(lambda n: ipaddress.IPv6Address((0x20010DB8 << 96) + n)), st.ip_addresses(v=6)
    )


def networks(version: int) -> st.SearchStrategy[Any]:
    bits = 32 if version == 4 else 128
    lengths = st.one_of(st.integers(0, bits), st.integers(bits - 8, bits))
    return st.builds(
        lambda address, length: ipaddress.ip_network((address, length), strict=False), near(version), lengths
    )


both = st.sampled_from([4, 6])
some_networks = st.lists(both.flatmap(networks), max_size=5)
sources = both.flatmap(near)


def expected(allow: list[Any], deny: list[Any], source: Any) -> bool:
    """Return what the law says: the smallest network decides, of equal ones the denied one."""
    verdicts = [(net.prefixlen, False) for net in deny if net.version == source.version and source in net]
    verdicts += [(net.prefixlen, True) for net in allow if net.version == source.version and source in net]
    if not verdicts:
        return not allow
    longest = max(length for length, _ in verdicts)
    return all(verdict for length, verdict in verdicts if length == longest)


@given(some_networks, some_networks, sources)
@example([V4("10.0.0.0/8")], [V4("10.0.0.0/8")], ipaddress.ip_address("10.0.0.1"))
@example([V4("10.0.0.0/24")], [V4("10.0.0.0/8")], ipaddress.ip_address("10.0.0.1"))
@example([V4("10.0.0.0/8")], [V4("10.0.0.1/32")], ipaddress.ip_address("10.0.0.1"))
@example([V4("0.0.0.0/0")], [], ipaddress.ip_address("2001:db8::1"))
@example([], [V6("::/0")], ipaddress.ip_address("2001:db8::1"))
def test_smallest_network_decides_and_of_equal_ones_the_denied_one(
    allow: list[Any], deny: list[Any], source: Any
) -> None:
    access = Access(map(str, allow), map(str, deny))
    assert access.allows(source.packed) is expected(allow, deny, source)


@given(some_networks, some_networks, near(4))
@example([V4("10.0.0.0/24")], [V4("10.0.0.1/32")], ipaddress.ip_address("10.0.0.1"))
def test_ipv4_source_is_the_same_over_ipv6(allow: list[Any], deny: list[Any], source: Any) -> None:
    """RFC 4291 §2.5.5.2: ::ffff:192.0.2.1; networks may be written so, too."""
    mapped = ipaddress.IPv6Address(b"\0" * 10 + b"\xff\xff" + source.packed)

    def written(net: Any) -> str:
        return f"::ffff:{net.network_address}/{net.prefixlen + 96}" if net.version == 4 else str(net)

    access = Access(map(written, allow), map(written, deny))
    assert access.allows(plain_host(mapped.packed)) is expected(allow, deny, source)


@pytest.mark.parametrize(
    "text", ["", "x", "10.0.0.1/8", "10.0.0.0/33", "2001:db8::/129", "10.0.0", "fe80::1%eth0/64", "1/2/3"]
)
def test_invalid_network_is_refused_in_one_line(text: str) -> None:
    """`10.0.0.1/8` too: it may mean one host, or sixteen million."""
    with pytest.raises(ValueError, match=r"^[^\n]*is not a network such as[^\n]*$"):
        Access([text])


def test_without_networks_every_source_is_allowed() -> None:
    assert Access().allows(bytes(4))
    assert Access().allows(bytes(16))
