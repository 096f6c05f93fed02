"""Which datagrams get no answer, over both carriers, with the standard library's `ipaddress` as the oracle."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from echo7.policy.guard import RESPONDER_PORTS, Guard, refused_destination, refused_source
from echo7.policy.ports import SourcePorts
from reactor import is_unicast
from reactor.limits import DATAGRAMS_PER_TURN
from tests.echo7.policy.carriers import LINUX, refusal, slots_with

CLIENT_PORT = 40_000
V4 = ipaddress.IPv4Address
V6 = ipaddress.IPv6Address
EDGES_V4 = "0.0.0.0 0.255.255.255 1.0.0.0 127.0.0.1 223.255.255.255 224.0.0.0 239.255.255.255 240.0.0.0 255.255.255.254"
EDGES_V6 = (
    ":: ::1 feff::1 ff00:: ff02::1 ffff::1 ff::1 f:: fe80::1 ::ffff:0:0 ::fffe:e000:1 ::224.0.0.1 64:ff9b::e000:1"
)

addresses_v4 = st.one_of(st.sampled_from([V4(text) for text in EDGES_V4.split()]), st.ip_addresses(v=4))
addresses_v6 = st.one_of(
    st.sampled_from([V6(text) for text in EDGES_V6.split()]),
    st.ip_addresses(v=6),
    st.ip_addresses(v=6, network="ff00::/8"),
    st.integers(0, 2**32).map(V6),
)
known = st.sampled_from(sorted(RESPONDER_PORTS))
own_ports = st.sets(st.one_of(st.sampled_from([0, 7, 53]), known, st.integers(0, 65_535)), max_size=4)
ports = st.one_of(st.sampled_from([0, 7, 53]), known, st.integers(0, 65_535))
ipv4_paths = st.tuples(addresses_v4, addresses_v4, st.booleans())
sources = st.sampled_from(["10.0.0.1", "224.0.0.1", "0.0.0.0", "255.255.255.255", "ff02::1", "::", "::1"])


def kernel_text(address: V4 | V6) -> str:
    """Write an address as the kernel's source addresses are written."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return socket.inet_ntop(family, address.packed)


def expected_source(address: V4 | V6) -> str | None:
    """The oracle."""
    if isinstance(address, V6) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_multicast:
        return "source_multicast"
    if address == V4("255.255.255.255"):
        return "source_broadcast"
    this_network = isinstance(address, V4) and address in ipaddress.IPv4Network("0.0.0.0/8")
    return "source_unspecified" if this_network or address.is_unspecified else None


def ipv4_path(asked: V4, would_answer_from: V4, interface: int = 2) -> bytes:
    """A struct in_pktinfo (ip(7)): interface, ipi_spec_dst, ipi_addr."""
    return interface.to_bytes(4, "little") + would_answer_from.packed + asked.packed


@given(addresses_v4)
@example(V4("255.255.255.255"))
def test_ipv4_source_is_refused_exactly_when_it_is_not_a_single_host(address: V4) -> None:
    """Promise 13: "No answer to: … broadcast or multicast sources"."""
    assert refused_source(kernel_text(address)) == expected_source(address)


def test_every_first_octet_is_decided_rightly() -> None:
    """The guard first looks at two characters, or at single bytes: the test tries all of them."""
    for octet in range(256):
        for address in (V4(octet << 24 | 1), V4((octet + 1 << 24) - 1)):
            assert refusal(Guard(), (str(address), CLIENT_PORT)) == expected_source(address)


@given(addresses_v6)
def test_ipv6_source_is_refused_exactly_when_it_is_not_a_single_host(address: V6) -> None:
    """RFC 4291 §2.7: an IPv6 multicast address begins with ff, and its first group is written out in full."""
    assert refused_source(kernel_text(address)) == expected_source(address)


@given(addresses_v4)
@example(V4("255.255.255.255"))
def test_v4_mapped_source_is_decided_by_the_ipv4_address_in_it(address: V4) -> None:
    """Promise 20: "v4-mapped addresses are handled on inherited ones" (RFC 4291 §2.5.5.2)."""
    mapped = V6(b"\0" * 10 + b"\xff\xff" + address.packed)
    assert refused_source(kernel_text(mapped)) == expected_source(address)


@given(st.ip_addresses(v=6, network="fe80::/64"), st.sampled_from(["lo", "eth0", "2"]))
def test_link_local_source_is_answered_with_and_without_its_scope(address: V6, scope: str) -> None:
    """A link-local source is a single host, whichever way the system writes its scope."""
    assert refused_source(kernel_text(address)) is None
    assert refused_source(f"{kernel_text(address)}%{scope}") is None


@given(st.one_of(addresses_v4, addresses_v6))
@example(V4("255.255.255.255"))
@example(V6("::ffff:255.255.255.255"))
def test_every_address_that_is_not_a_single_host_gets_a_closer_check(address: V4 | V6) -> None:
    """Two characters, or single bytes, clear most sources: they must never clear a wrong one."""
    text = kernel_text(address)
    source = (text, CLIENT_PORT) if address.version == 4 else (text, CLIENT_PORT, 0, 0)
    assert refusal(Guard(), source) == expected_source(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.255.255.254", "2.2.2.2", "22.1.1.1", "25.0.0.1", "230::1", "::2"])
def test_ordinary_sources_with_suspicious_beginnings_are_answered(host: str) -> None:
    """RFC 862: "a server … echoes any datagram": only what the promise names is refused; 127/8 sources are fine."""
    assert refusal(Guard(), (host, CLIENT_PORT)) is None


@pytest.mark.parametrize("port", sorted(RESPONDER_PORTS))
def test_source_port_on_which_a_responder_listens_gets_no_answer(port: int) -> None:
    """CVE-1999-0103, CVE-2024-2169: one spoofed datagram between two responders bounces without end."""
    assert refusal(Guard([7777]), ("192.0.2.1", port)) == "source_port_responder"


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("responders", [True, False])
def test_refused_ports_are_configurable(own: bool, responders: bool) -> None:
    """Issue: "`--refuse-source-ports SPEC`"; `test_ports.py` reads it. "Listed" is the last reason to apply."""
    guard = Guard([7007], SourcePorts(own, responders, frozenset({53, 1000})))
    found = {port: refusal(guard, ("192.0.2.1", port)) for port in (0, 19, 53, 1000, 7007, 7008)}
    assert found == {
        0: "source_port_zero",
        19: "source_port_responder" if responders else None,
        53: "source_port_responder" if responders else "source_port_listed",
        1000: "source_port_listed",
        7007: "source_port_own" if own else None,
        7008: None,
    }


def test_responders_that_the_promise_names_are_all_known() -> None:
    """Promise 13: "known UDP responders": those of DESIGN, and those that amplification attacks are known to use."""
    in_design = {7, 13, 17, 19, 37, 53, 69, 123}
    amplifiers = {11, 111, 137, 138, 161, 177, 389, 427, 520, 623, 1434, 1900, 3283, 3702, 5353, 11211, 27960}
    assert in_design | amplifiers <= RESPONDER_PORTS.keys()


@given(own_ports, ports, sources)
@example({0}, 0, "10.0.0.1")
@example({7}, 7, "10.0.0.1")
def test_source_port_decides_first_zero_before_own_before_responder(own: set[int], port: int, host: str) -> None:
    """Each refusal is "counted under its reason": a fixed order makes the reason the same every time."""
    if port == 0:
        expected: str | None = "source_port_zero"
    elif port in own:
        expected = "source_port_own"
    elif port in RESPONDER_PORTS:
        expected = "source_port_responder"
    else:
        expected = refused_source(host)
    assert refusal(Guard(own), (host, port)) == expected


@given(sources, ipv4_paths)
def test_source_address_decides_before_the_destination(host: str, addresses: tuple[V4, V4, bool]) -> None:
    """A forged multicast source is a multicast source, wherever the datagram was sent to."""
    path = ipv4_path(addresses[0], addresses[1])
    expected = refused_source(host)
    if expected is None and not is_unicast(path):
        expected = refused_destination(path)
    assert refusal(Guard(), (host, CLIENT_PORT), path) == expected


@given(ipv4_paths, st.integers(0, 2**31 - 1))
@example((V4("223.255.255.255"), V4("223.255.255.1"), False), 2)  # a subnet's broadcast address, beside multicast
@example((V4("224.0.0.0"), V4("192.0.2.1"), False), 2)
@example((V4("239.255.255.255"), V4("192.0.2.1"), False), 2)
@example((V4("240.0.0.0"), V4("240.0.0.1"), False), 2)
def test_ipv4_request_is_answered_only_if_it_was_sent_to_this_host_alone(
    addresses: tuple[V4, V4, bool], interface: int
) -> None:
    """DESIGN: "Requests sent to broadcast or multicast addresses are not answered"."""
    asked, answering, same = addresses
    answering = asked if same else answering
    path = ipv4_path(asked, answering, interface)
    if answering == V4("0.0.0.0"):  # unknown: the datagram came before IP_PKTINFO was set
        unicast = not asked.is_multicast and asked != V4("255.255.255.255")
    else:
        unicast = asked == answering
    many = "destination_multicast" if asked.is_multicast else "destination_broadcast"
    expected = None if unicast else many
    assert refusal(Guard(), ("192.0.2.1", CLIENT_PORT), path) == expected


@given(addresses_v6, st.integers(0, 2**31 - 1))
def test_ipv6_request_is_answered_unless_it_was_sent_to_a_multicast_address(address: V6, interface: int) -> None:
    """RFC 1122 §4.1.3.6 for its successor: an answer to a multicast request would come from every server at once."""
    path = address.packed + interface.to_bytes(4, "little")
    expected = "destination_multicast" if address.is_multicast else None
    assert refusal(Guard(), ("2001:db8::1", CLIENT_PORT, 0, 0), path) == expected


HERE = V4("10.0.0.1")
UNICAST = ipv4_path(HERE, HERE)


@LINUX
@pytest.mark.parametrize("port", [0, 7, *RESPONDER_PORTS])
@pytest.mark.parametrize("position", [0, 31, 63])
def test_one_refused_datagram_in_a_batch_is_found_at_any_place(port: int, position: int) -> None:
    batch = [(("192.0.2.7", CLIENT_PORT + index), UNICAST) for index in range(DATAGRAMS_PER_TURN)]
    batch[position] = (("192.0.2.7", port), UNICAST)
    assert list(Guard({7}).refusals(slots_with(batch), DATAGRAMS_PER_TURN)) == [position]


@LINUX
def test_slots_behind_the_batch_are_ignored() -> None:
    """A slot that an earlier batch has filled isn't part of this one."""
    batch = slots_with([(("192.0.2.7", CLIENT_PORT), UNICAST), *[(("224.0.0.1", 19), ipv4_path(HERE, V4(1)))] * 2])
    assert Guard().refusals(batch, 1) == {}


@LINUX
@pytest.mark.parametrize(
    ("sources", "path"),
    [
        ([("192.0.2.7", port) for port in range(CLIENT_PORT, CLIENT_PORT + DATAGRAMS_PER_TURN)], UNICAST),
        ([("2001:db8::7", CLIENT_PORT, 0, 0), ("::1", CLIENT_PORT, 0, 0)], V6("fd00::1").packed + bytes(4)),
    ],
)
def test_ordinary_batch_is_accepted_without_checking_single_datagrams(
    sources: list[tuple[object, ...]], path: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = slots_with([(source, path) for source in sources])
    monkeypatch.setattr(type(batch), "source", lambda self, index: pytest.fail("a close look"))
    assert Guard({7}).refusals(batch, len(sources)) == {}
