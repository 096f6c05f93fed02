"""UDP paths, and the control data that answers need."""

import ipaddress
import socket
import sys
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from reactor.sockets import pktinfo as control
from reactor.sockets.pktinfo import (
    IP_PKTINFO,
    IPV6_PKTINFO,
    Control,
    is_unicast,
    path_of,
    receiver,
    reply_control,
    report_paths,
)
from tests.support.basics import PATIENCE_S, has_ipv6

PATHS4, PATHS6 = st.binary(min_size=12, max_size=12), st.binary(min_size=20, max_size=20)
OTHERS = st.lists(st.tuples(st.just(socket.SOL_SOCKET), st.integers(1, 99), st.binary(max_size=24)), max_size=3)

needs_pktinfo = pytest.mark.skipif(IP_PKTINFO < 0, reason="this platform has no IP_PKTINFO")
needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


def info4(path: bytes) -> tuple[int, int, bytes]:
    """Return a struct in_pktinfo as the kernel makes it."""
    return socket.IPPROTO_IP, IP_PKTINFO, path


def info6(path: bytes) -> tuple[int, int, bytes]:
    """Return a struct in6_pktinfo as the kernel makes it."""
    return socket.IPPROTO_IPV6, IPV6_PKTINFO, path


@given(OTHERS, OTHERS, PATHS4 | PATHS6)
def test_the_path_is_found_among_other_control_data(before: Control, after: Control, path: bytes) -> None:
    """An inherited socket may have other options, such as time stamps."""
    info = info4(path) if len(path) == 12 else info6(path)
    assert path_of([*before, info, *after]) == path


@given(OTHERS)
@example([(socket.SOL_SOCKET, 29, bytes(16))])  # SO_TIMESTAMP
def test_without_pktinfo_there_is_no_path(others: Control) -> None:
    """`path_of` returns b"" then."""
    assert path_of(others) == b""


@given(PATHS4, PATHS6, st.booleans())
def test_ipv4_path_is_preferred_to_the_ipv6_one(path4: bytes, path6: bytes, first: bool) -> None:
    """A v4-mapped datagram has both, in either order, and only the IPv4 one shows broadcast."""
    both = [info4(path4), info6(path6)]
    assert path_of(both if first else both[::-1]) == path4


@given(PATHS4)
def test_an_ipv4_answer_leaves_from_the_address_asked_and_names_no_interface(path: bytes) -> None:
    """ip(7): ipi_ifindex, ipi_spec_dst (the source of an answer), ipi_addr. An index would bypass routing."""
    ((level, kind, data),) = reply_control(path)
    assert (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO)
    assert len(data) == len(path)
    assert (data[:4], data[4:8]) == (bytes(4), path[8:12])


@given(PATHS6)
def test_an_ipv6_answer_leaves_from_the_address_asked_and_names_no_interface(path: bytes) -> None:
    """RFC 3542 §6.1: ipi6_addr, ipi6_ifindex."""
    ((level, kind, data),) = reply_control(path)
    assert (level, kind) == (socket.IPPROTO_IPV6, IPV6_PKTINFO)
    assert data == path[:16] + bytes(4)


@given(st.integers(1, 99), st.ip_addresses(v=4), st.ip_addresses(v=4))
def test_an_ipv4_request_was_unicast_only_if_it_would_be_answered_from_the_address_asked(
    index: int, local: ipaddress.IPv4Address, asked: ipaddress.IPv4Address
) -> None:
    """ipi_addr == ipi_spec_dst only for unicast."""
    path = index.to_bytes(4, sys.byteorder)
    assume(int(local))
    assert is_unicast(path + local.packed + local.packed)
    assert is_unicast(path + local.packed + asked.packed) is (local == asked)


@given(st.ip_addresses(v=4))
def test_request_queued_before_report_paths_is_judged_by_its_address(asked: ipaddress.IPv4Address) -> None:
    """Such a datagram has no local address to compare with."""
    many = asked.is_multicast or asked == ipaddress.IPv4Address("255.255.255.255")
    assert is_unicast(bytes(8) + asked.packed) is not many


@given(st.ip_addresses(v=6) | st.ip_addresses(v=6, network="ff00::/8"), st.integers(0, 99))
def test_an_ipv6_request_was_unicast_unless_sent_to_ff00(asked: ipaddress.IPv6Address, index: int) -> None:
    """RFC 4291 §2.7: a multicast address begins with eight ones."""
    assert is_unicast(asked.packed + index.to_bytes(4, sys.byteorder)) is not asked.is_multicast


def test_without_a_path_a_request_counts_as_unicast() -> None:
    """A socket bound to one address gets no broadcasts and reports no paths."""
    assert is_unicast(b"")


def asked_path(server: socket.socket, destination: tuple[Any, ...]) -> bytes:
    """Send a datagram to `destination`, answer it with its path, and return the path."""
    with socket.socket(socket.AF_INET6 if ":" in destination[0] else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE_S)
        client.connect(destination)
        client.send(b"?")
        server.settimeout(PATIENCE_S)
        data, control, _, source = receiver(server)(16)
        path = path_of(control)
        server.sendmsg((data,), reply_control(path), 0, source)
        assert client.recv(16) == b"?"  # a connected client receives only from the address that it asked
        return path


@needs_pktinfo
@pytest.mark.parametrize("asked", ["127.0.0.1", "127.0.0.5"] if sys.platform == "linux" else ["127.0.0.1"])
def test_ipv4_answer_leaves_from_the_reported_address(asked: str) -> None:
    """RFC 1122 §4.1.3.5, on a wildcard bind."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        report_paths(server)
        server.bind(("0.0.0.0", 0))
        path = asked_path(server, (asked, server.getsockname()[1]))
    assert path[8:12] == socket.inet_aton(asked)
    assert is_unicast(path)


@needs_pktinfo
@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.5 is an address of ours on Linux only")
def test_request_queued_before_report_paths_is_answered_from_the_address_asked() -> None:
    """An inherited socket may hold datagrams before `report_paths`."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("0.0.0.0", 0))
        client.settimeout(PATIENCE_S)
        client.connect(("127.0.0.5", server.getsockname()[1]))
        client.send(b"?")
        report_paths(server)
        server.settimeout(PATIENCE_S)
        data, control, _, source = receiver(server)(16)
        path = path_of(control)
        assert is_unicast(path)
        server.sendmsg((data,), reply_control(path), 0, source)
        assert client.recv(16) == b"?"


@needs_ipv6
@pytest.mark.parametrize("v6only", [0, 1])
def test_ipv6_answer_leaves_from_the_reported_address(v6only: int) -> None:
    """The same for IPv6 (RFC 3542 §6.2), whether or not the socket carries IPv4 too."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        report_paths(server)
        server.bind(("::", 0))
        path = asked_path(server, ("::1", server.getsockname()[1]))
    assert path[:16] == socket.inet_pton(socket.AF_INET6, "::1")


@needs_ipv6
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives IP_PKTINFO on an IPv6 socket")
def test_on_an_inherited_dual_stack_socket_the_ipv4_path_is_reported() -> None:
    """Promise 20: "v4-mapped addresses are handled on inherited ones"."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        report_paths(server)
        server.bind(("::", 0))
        path = asked_path(server, ("127.0.0.5", server.getsockname()[1]))
    assert len(path) == 12
    assert path[8:12] == socket.inet_aton("127.0.0.5")


class AskedSocket:
    """An IPv6 socket that only records its options, so no IPv6 is needed."""

    family = socket.AF_INET6
    recvmsg = None  # it is there

    def __init__(self, v6only: int) -> None:
        self.v6only = v6only
        self.asked: list[tuple[int, int]] = []

    def setsockopt(self, level: int, name: int, value: int) -> None:
        self.asked.append((level, name))

    def getsockopt(self, level: int, name: int) -> int:
        return self.v6only


@pytest.mark.parametrize("v6only", [0, 1])
def test_only_a_dual_stack_socket_reports_ipv4_paths_too(v6only: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An inherited IPv6 socket may carry IPv4 too (v4-mapped), so both reports are turned on."""
    for name, number in (("IP_PKTINFO", 8), ("IPV6_RECVPKTINFO", 49)):
        monkeypatch.setattr(control, name, number)
    sock: Any = AskedSocket(v6only)
    report_paths(sock)
    assert sock.asked == [(socket.IPPROTO_IPV6, 49), *([] if v6only else [(socket.IPPROTO_IP, 8)])]


class PlainSocket:
    """A UDP socket on a platform without recvmsg (Windows)."""

    family = socket.AF_INET

    def recvfrom(self, size_bytes: int) -> tuple[bytes, Any]:
        """Return a datagram without control data."""
        return b"data"[:size_bytes], ("127.0.0.1", 9)


def test_a_platform_without_recvmsg_receives_without_paths() -> None:
    """With only recvfrom, no option is set, and paths are empty."""
    plain: Any = PlainSocket()
    report_paths(plain)  # it has no setsockopt
    assert receiver(plain)(3) == (b"dat", [], 0, ("127.0.0.1", 9))
    assert path_of([]) == b""


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def test_platform_without_pktinfo_sets_no_option(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "Where the platform has neither, answers from a wildcard socket leave from the address that routing picks":
    what comes has no path, and is answered without one.
    """
    for name in ("IP_PKTINFO", "IPV6_RECVPKTINFO"):
        monkeypatch.setattr(control, name, -1)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as server:
        report_paths(server)
        server.bind((host, 0))
        with socket.socket(server.family, socket.SOCK_DGRAM) as client:
            for sock in (client, server):
                sock.settimeout(PATIENCE_S)
            client.connect(server.getsockname())
            client.send(b"?")
            data, ancillary, _, source = receiver(server)(16)
            assert (data, path_of(ancillary)) == (b"?", b"")
            server.sendto(data, source)
            assert client.recv(16) == b"?"


def test_the_receiver_leaves_room_for_both_kinds_of_path() -> None:
    """With less room, the control data would be cut off (MSG_CTRUNC)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        report_paths(server)
        server.bind(("127.0.0.1", 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"?", server.getsockname())
        server.settimeout(PATIENCE_S)
        flags = receiver(server)(16)[2]
    assert not flags & socket.MSG_CTRUNC
