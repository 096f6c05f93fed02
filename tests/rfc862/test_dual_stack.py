"""IPv4 and IPv6 from one command, from either alone, and over one inherited socket that carries both."""

from __future__ import annotations

import errno
import logging
import socket
import struct
from collections.abc import Mapping
from typing import Any

import pytest

from echo7.server import EchoServer
from echo7.sockets.binding import BindError, Bound
from reactor import Datagram, Listener, Reactor, report_paths
from reactor.fastpath.batch import DatagramBatch
from reactor.sockets.errors import os_error
from tests.support.basics import has_ipv6
from tests.support.echo import EchoByHand
from tests.support.faults import FlakySocket, FlakySockets
from tests.support.loops import kernel_socket, turn_until
from tests.support.root import forge, in_network_namespace, udp_over_ipv4

needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="needs IPv6 on loopback")


def exchange(echo: EchoByHand, host: str, data: bytes = b"both ways") -> None:
    """Check that TCP and UDP to this address are echoed."""
    with echo.connect(host) as client:
        client.send(data)
        assert echo.receive(client, len(data)) == data
    with echo.udp(host) as client:
        client.send(data)
        assert echo.answer(client) == data


@needs_ipv6
@pytest.mark.parametrize("hosts", [("*",), (), ("127.0.0.1", "::1"), ("0.0.0.0", "::")], ids=str)
def test_one_server_serves_ipv4_and_ipv6(hosts: tuple[str, ...]) -> None:
    """Promise 20: "one command serves IPv4 and IPv6", on one port number."""
    with EchoByHand(hosts) as echo:
        assert echo.server.left_out == []
        assert len(echo.server.addresses) == 4
        assert {address.port for address in echo.server.addresses} == {echo.port}
        exchange(echo, "127.0.0.1")
        exchange(echo, "::1")


@needs_ipv6
def test_ipv6_sockets_are_v6only() -> None:
    """Promise 20: "IPv6 sockets are V6ONLY", or the IPv4 wildcard beside them couldn't be bound."""
    with EchoByHand(("*",)) as echo:
        serving = [h for h in echo.reactor.handlers if isinstance(h, Listener | Datagram | DatagramBatch)]
        ours = [h for h in serving if ":" in h.address[0]]
        assert len(ours) == 2
        for handler in ours:
            with kernel_socket(handler) as sock:
                assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


class NoIPv6Address(FlakySocket):
    """A socket of a kernel that has IPv6 but no IPv6 address."""

    def bind(self, address: Any) -> None:
        if self.family == socket.AF_INET6:
            raise os_error(errno.EADDRNOTAVAIL)
        super().bind(address)


class NoIPv6(FlakySockets):
    """A machine with no IPv6 in its kernel, or with no IPv6 address."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def socket(self, family: int, type: int) -> socket.socket:
        if family == socket.AF_INET6 and self.how == "EAFNOSUPPORT":
            raise os_error(errno.EAFNOSUPPORT)
        sock = NoIPv6Address(family, type)
        sock.faults = self.faults
        return sock


@pytest.mark.parametrize("how", ["EAFNOSUPPORT", "EADDRNOTAVAIL"])
@pytest.mark.parametrize(("hosts", "left_out"), [(("*",), ["::"]), ((), ["::1"])], ids=["every address", "default"])
def test_machine_without_ipv6_serves_ipv4(hosts: tuple[str, ...], left_out: list[str], how: str) -> None:
    """Promise 20: "a machine without IPv6 still serves IPv4", and the log line is made of `left_out`."""
    with EchoByHand(hosts, reactor_options={"sockets": NoIPv6(how)}) as echo:
        assert echo.server.left_out == left_out
        assert [address.transport for address in echo.server.addresses] == ["tcp", "udp"]
        exchange(echo, "127.0.0.1")


def test_interface_without_ipv6_is_served_over_ipv4() -> None:
    """Promise 20 on the real kernel: a loopback interface without ::1."""

    def body() -> None:
        with EchoByHand(()) as echo:
            assert echo.server.left_out == ["::1"]
            exchange(echo, "127.0.0.1")

    in_network_namespace(["addr flush dev lo", "addr add 127.0.0.1/8 dev lo"], body)


def test_ipv6_asked_for_by_name_is_not_left_out() -> None:
    """Asking for ::1 alone is an error there, because nothing could be served."""
    sockets = NoIPv6("EAFNOSUPPORT")
    with Reactor(sockets=sockets) as reactor, pytest.raises(BindError, match="no such address family"):
        EchoServer(("::1",), 0).start(reactor)


# ---------------------------------------------------------------- one inherited socket for both


def inherited() -> Bound:
    """What a parent process may hand over: IPv6 wildcard sockets that carry IPv4 too."""
    tcp = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    for sock in (tcp, udp):
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setblocking(False)
    tcp.bind(("::", 0))
    tcp.listen()
    report_paths(udp)
    udp.bind(("::", tcp.getsockname()[1]))
    return Bound(tcp=[tcp], udp=[udp])


def drops_after_an_ordinary_datagram(echo: EchoByHand) -> Mapping[str, int]:
    """Return the drops, after an ordinary datagram was answered: all earlier ones are answered or dropped by then."""
    with echo.udp() as client:
        client.send(b"ordinary")
        assert echo.answer(client) == b"ordinary"
    return echo.server.counters.drops


@needs_ipv6
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5", "::1"])
def test_inherited_dual_stack_socket_answers_from_the_address_asked(host: str) -> None:
    """Promises 20 ("v4-mapped addresses are handled on inherited ones") and 12: the clients are connected ones."""
    with EchoByHand(bound=inherited()) as echo:
        exchange(echo, host)
        assert echo.server.counters.drops == {}


@needs_ipv6
def test_inherited_dual_stack_socket_does_not_answer_a_broadcast() -> None:
    """Promises 13 and 20: only IP_PKTINFO knows a v4-mapped broadcast; IPV6_PKTINFO shows an ordinary address."""
    with EchoByHand(bound=inherited()) as echo, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.sendto(b"all of you", ("127.255.255.255", echo.port))
        assert drops_after_an_ordinary_datagram(echo) == {"destination_broadcast": 1}
        with pytest.raises(BlockingIOError):
            client.recv(99)


@needs_ipv6
def test_inherited_dual_stack_socket_does_not_answer_a_multicast() -> None:
    """Promises 13 and 20: 224.0.0.0/4 is multicast, also as ::ffff:e000:0/100."""
    loopback = socket.inet_aton("127.0.0.1")
    bound = inherited()
    member = struct.pack("!4s4s", socket.inet_aton("239.8.6.2"), loopback)
    bound.udp[0].setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
    with EchoByHand(bound=bound) as echo, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, loopback)
        client.sendto(b"all of you", ("239.8.6.2", echo.port))
        assert drops_after_an_ordinary_datagram(echo) == {"destination_multicast": 1}
        with pytest.raises(BlockingIOError):
            client.recv(99)


@needs_ipv6
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (("127.0.0.1", 0), "source_port_zero"),
        (("127.0.0.1", 19), "source_port_responder"),
        (("127.0.0.1", 11211), "source_port_responder"),
        (("224.0.0.5", 5000), "source_multicast"),
        (("239.255.255.250", 5000), "source_multicast"),
        (("255.255.255.255", 5000), "source_broadcast"),
    ],
    ids=str,
)
def test_inherited_dual_stack_socket_refuses_v4_mapped_responders(source: tuple[str, int], reason: str) -> None:
    """Promises 13 and 20: a forged source is refused in its v4-mapped form too."""
    with EchoByHand(bound=inherited()) as echo:
        forge(udp_over_ipv4(source, ("127.0.0.1", echo.port), b"forged"))
        assert drops_after_an_ordinary_datagram(echo) == {reason: 1}


@needs_ipv6
def test_server_on_inherited_sockets_stops_in_order(caplog: pytest.LogCaptureFixture) -> None:
    """Promise 4 on inherited sockets. No error is logged."""
    stopped: list[bool] = []
    with caplog.at_level(logging.ERROR), EchoByHand(bound=inherited()) as echo:
        with echo.connect() as client:
            client.send(b"before")
            turn_until(echo.reactor, lambda: echo.server.counters.tcp_bytes_received == 6)
            echo.server.stop(lambda: stopped.append(True))
            assert echo.receive_to_end(client) == b"before"
        turn_until(echo.reactor, lambda: stopped)
    assert not caplog.records


# ---------------------------------------------------------------- datagrams from before the start


def inherited_queue(family: socket.AddressFamily) -> socket.socket:
    """A UDP wildcard socket bound by a parent process; it doesn't report the destination of datagrams yet."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    member = struct.pack("!4s4s", socket.inet_aton("239.8.6.2"), socket.inet_aton("127.0.0.1"))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
    sock.bind(("", 0))
    return sock


FAMILIES = [socket.AF_INET, pytest.param(socket.AF_INET6, marks=needs_ipv6)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("asked", "answered"), [("127.0.0.1", True), ("127.0.0.5", True), ("127.255.255.255", False), ("239.8.6.2", False)]
)
def test_datagrams_from_before_the_start_are_treated_like_any_other(
    family: socket.AddressFamily, asked: str, answered: bool
) -> None:
    """Promises 12 and 13 for datagrams queued in a parent's socket, of which the kernel tells less."""
    sock = inherited_queue(family)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        client.sendto(b"early", (asked, sock.getsockname()[1]))
        report_paths(sock)
        with EchoByHand(bound=Bound(udp=[sock])) as echo:
            drops = drops_after_an_ordinary_datagram(echo)
            if answered:
                data, source = client.recvfrom(99)
                assert (data, source[0], drops) == (b"early", asked, {})
            else:
                assert sum(drops.values()) == 1
                with pytest.raises(BlockingIOError):
                    client.recv(99)


@pytest.mark.parametrize("family", FAMILIES)
def test_inherited_socket_with_so_broadcast_answers_no_forged_broadcast(family: socket.AddressFamily) -> None:
    """Promise 13: a parent may have set SO_BROADCAST (systemd: Broadcast=yes). Then the kernel refuses nothing."""
    sock = inherited_queue(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    report_paths(sock)
    with EchoByHand(bound=Bound(udp=[sock])) as echo:
        forge(udp_over_ipv4(("127.255.255.255", 5000), ("127.0.0.1", echo.port), b"forged"))
        drops = drops_after_an_ordinary_datagram(echo)
        assert sum(drops.values()) == 1
        assert echo.server.counters.datagrams_sent == 1
