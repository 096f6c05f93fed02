"""Simulated UDP: what happens to a datagram on its way."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from typing import cast

import pytest

from reactor.sockets.pktinfo import IP_PKTINFO, IPV6_PKTINFO, IPV6_RECVPKTINFO, MSG_ERRQUEUE
from reactor.testing import CATALOGUE, SimulatedNetwork
from reactor.testing.kernel.datagram import DatagramSocket
from reactor.testing.kernel.endpoint import POLLERR, POLLIN, POLLOUT
from tests.reactor.testing.programs import ELSEWHERE, HERE, bits, error_of, go, udp
from tests.support.basics import told


def test_datagram_arrives_after_the_latency() -> None:
    network = SimulatedNetwork(latency_s=0.5)
    sock, peer = udp(network), network.udp_peer()
    peer.send(b"hello", sock.getsockname())
    go(network, 0.4)
    assert bits(sock) == POLLOUT
    assert told(sock.recv, 10) == "EAGAIN"
    go(network, 0.2)
    assert bits(sock) == POLLIN | POLLOUT
    assert sock.recvfrom(10) == (b"hello", peer.address)


@pytest.mark.parametrize(
    ("kind", "at_once", "later"), [("loss", 0, 0), ("delay", 0, 1), ("duplicate", 1, 2)], ids=lambda value: str(value)
)
def test_packet_fault_loses_delays_or_doubles_a_datagram(kind: str, at_once: int, later: int) -> None:
    """A datagram is never changed. The amount is its delay, or its double's, in tenths of a millisecond."""
    network = SimulatedNetwork(script=f"packet#1={kind}:5000")
    sock, peer = udp(network), network.udp_peer()
    sock.sendto(b"x", peer.address)
    go(network, 0.4)
    assert len(peer.received) == at_once
    go(network, 0.2)
    assert peer.received == [(b"x", sock.getsockname())] * later
    assert network.chance.counts() == {f"packet.{kind}": 1}


@pytest.mark.skipif(not MSG_ERRQUEUE, reason="only Linux has such a queue")
def test_error_queue_is_empty_and_keeps_datagrams_where_they_are() -> None:
    """README: "the queue of MSG_ERRQUEUE is always empty"; waiting datagrams stay in the receive buffer."""
    network = SimulatedNetwork()
    sock, peer = udp(network), network.udp_peer()
    peer.send(b"hello", sock.getsockname())
    go(network, 0.1)
    assert told(sock.recvmsg, 10, 100, MSG_ERRQUEUE) == "EAGAIN"
    assert sock.recv(10) == b"hello"


def test_delayed_datagram_is_overtaken() -> None:
    network = SimulatedNetwork(script="packet#1=delay:100")
    sock, peer = udp(network), network.udp_peer()
    for data in (b"one", b"two"):
        sock.sendto(data, peer.address)
    go(network, 1.0)
    assert [data for data, _ in peer.received] == [b"two", b"one"]


def test_partition_loses_datagrams() -> None:
    network = SimulatedNetwork()
    sock, peer = udp(network), network.udp_peer()
    network.partition(ELSEWHERE)
    assert sock.sendto(b"x", peer.address) == 1
    peer.send(b"x", sock.getsockname())
    network.heal(ELSEWHERE)
    go(network, 10.0)
    assert not peer.received
    assert bits(sock) == POLLOUT
    sock.sendto(b"y", peer.address)
    go(network)
    assert [data for data, _ in peer.received] == [b"y"]


def test_connected_socket_gets_econnrefused_only_from_a_host_that_exists() -> None:
    """A host without such a port refuses; an address without a host stays silent."""
    network = SimulatedNetwork()
    network.udp_peer()
    refused, silent, unconnected = (udp(network) for _ in range(3))
    assert refused.connect_ex((ELSEWHERE, 9)) == 0
    assert silent.connect_ex(("203.0.113.9", 9)) == 0
    for sock in (refused, silent):
        assert sock.send(b"x") == 1
    unconnected.sendto(b"x", (ELSEWHERE, 9))
    assert [bits(sock) & POLLERR for sock in (refused, silent, unconnected)] == [POLLERR, 0, 0]
    assert error_of(refused) == errno.ECONNREFUSED
    assert bits(refused) == POLLOUT
    assert told(unconnected.getpeername) == "ENOTCONN"


def test_connect_ex_returns_what_connect_raises() -> None:
    network = SimulatedNetwork()
    sock = network.socket(socket.AF_INET, socket.SOCK_DGRAM)
    assert sock.connect_ex(("10.0.0.255", 9)) == errno.EACCES
    assert sock.connect_ex(("10.0.0.2", 9)) == 0
    assert sock.getpeername() == ("10.0.0.2", 9)
    assert sock.getsockname()[1] > 0, "connecting binds"


def test_too_large_datagram_is_refused_and_not_sent() -> None:
    network = SimulatedNetwork()
    sock, peer = udp(network), network.udp_peer()
    assert told(sock.sendto, bytes(65_508), peer.address) == "EMSGSIZE"
    sock.sendto(bytes(65_507), peer.address)
    go(network)
    assert [len(data) for data, _ in peer.received] == [65_507]


@pytest.mark.parametrize("call", ["sendmsg", "recvmsg"])
def test_scripted_fault_fails_one_call_and_the_next_works(call: str) -> None:
    for kind in CATALOGUE[call]:
        network = SimulatedNetwork(script=f"{call}#1={kind}")
        sock, peer = udp(network), network.udp_peer()
        peer.send(b"x", sock.getsockname())
        for failing in (True, False):
            try:
                assert (sock.sendto(b"y", peer.address) if call == "sendmsg" else sock.recv(1)) in (1, b"x")
                assert not failing
            except OSError as error:
                assert failing
                assert error.errno == getattr(errno, kind)  # noqa: PT017
        assert network.chance.counts() == {f"{call}.{kind}": 1}


@pytest.mark.parametrize("ipv6", [False, True])
def test_forced_interface_that_leads_nowhere_loses_the_datagram(ipv6: bool) -> None:
    """So a reply must not name the interface of the question. Control data of another kind is ignored."""
    network = SimulatedNetwork()
    sock, peer = (
        udp(network, "::" if ipv6 else "0.0.0.0"),
        network.udp_peer(source="2001:db8::1" if ipv6 else ELSEWHERE),
    )
    for interface in (0, 1, 2, 9):
        if ipv6:
            info = struct.pack("=16si", socket.inet_pton(socket.AF_INET6, "fd00::2"), interface)
            control = [(socket.IPPROTO_IPV6, IPV6_PKTINFO, info), (socket.SOL_SOCKET, 1, b"")]
        else:
            info = struct.pack("=i4s4s", interface, socket.inet_aton("10.0.0.2"), bytes(4))
            control = [(socket.IPPROTO_IP, IP_PKTINFO, info)]
        sock.sendmsg([b"%d" % interface], control, 0, peer.address)
    go(network)
    source = ("fd00::2", sock.getsockname()[1], 0, 0) if ipv6 else ("10.0.0.2", sock.getsockname()[1])
    assert peer.received == [(b"0", source), (b"2", source)]


def test_each_address_has_its_interface() -> None:
    interface_of = SimulatedNetwork().routing.interface_of
    assert [interface_of(host) for host in ("::1", "127.9.9.9", "10.0.0.1", "fd00::1", ELSEWHERE)] == [1, 1, 2, 2, 2]
    assert [interface_of(host) for host in ("10.0.0.2", "fd00::2")] == [3, 3]


@pytest.mark.parametrize(("host", "option"), [("0.0.0.0", IP_PKTINFO), ("::", IPV6_RECVPKTINFO)])
def test_control_data_comes_only_with_the_option_and_room_for_it(host: str, option: int) -> None:
    network = SimulatedNetwork()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = udp(network, host)
    peer = network.udp_peer(source="2001:db8::1" if ":" in host else ELSEWHERE)
    asked = "fd00::2" if ":" in host else "10.0.0.2"
    for _ in range(3):
        peer.send(b"x", (asked, sock.getsockname()[1]))
    assert sock.recvmsg(10, 100)[1] == []
    sock.setsockopt(socket.IPPROTO_IPV6 if ":" in host else socket.IPPROTO_IP, option, 1)
    assert sock.recvmsg(10)[1] == []
    [(_level, _kind, info)] = sock.recvmsg(10, 100)[1]
    assert socket.inet_pton(family, asked) in info


def test_full_receive_buffer_counts_lost_datagrams() -> None:
    """The first datagram always fits; reading makes room again."""
    network = SimulatedNetwork(receive_buffer_bytes=200)
    sock, peer = udp(network), network.udp_peer()
    for size in (1000, 1):
        peer.send(bytes(size), sock.getsockname())
    assert network.datagrams_lost == 1
    assert len(sock.recv(2000)) == 1000
    for _ in range(4):
        peer.send(bytes(10), sock.getsockname())
    assert network.datagrams_lost == 3
    sock.close()
    assert told(sock.recv, 1) == "EBADF"


def test_broadcast_reaches_every_wildcard_socket_of_its_port() -> None:
    network = SimulatedNetwork()
    everywhere, here = udp(network, "0.0.0.0", 4000), udp(network, "0.0.0.0", 4001)
    peer = network.udp_peer()
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    peer.send(b"all", ("10.0.0.255", 4000))
    assert everywhere.recvfrom(10) == (b"all", peer.address)
    assert told(here.recv, 1) == "EAGAIN"
    network.udp_peer(source="192.0.2.2", port=4000)
    peer.send(b"again", ("255.255.255.255", 4000))
    assert everywhere.recv(10) == b"again"


def test_call_that_would_block_raises_and_is_a_violation() -> None:
    network = SimulatedNetwork()
    sock = network.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with pytest.raises(RuntimeError, match="nothing blocks"):
        sock.recv(1)
    assert network.violations == ["a call that would block"]


def test_first_datagram_binds_an_unbound_socket() -> None:
    network = SimulatedNetwork()
    sock = network.socket(socket.AF_INET, socket.SOCK_DGRAM)
    peer = network.udp_peer()
    sock.sendto(b"question", peer.address)
    go(network)
    peer.send(b"answer", peer.received[0][1])
    assert peer.received[0][1][0] == HERE
    assert sock.recv(100) == b"answer"


# ---------------------------------------------------------------- batches


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has both calls")
def test_error_within_a_received_batch_is_raised_by_the_next_call() -> None:
    """recvmmsg(2) returns what it has, and saves the error on the socket; EAGAIN is no error."""
    from reactor.fastpath.mmsg import Slots

    network = SimulatedNetwork(0)
    server = cast(DatagramSocket, network.socket(socket.AF_INET, socket.SOCK_DGRAM))
    server.setblocking(False)
    server.bind(("10.0.0.1", 7))
    peer = network.udp_peer()
    for data in (b"one", b"two"):
        peer.send(data, ("10.0.0.1", 7))
    network.settle()
    network.plan("recvmsg", "ENETDOWN", after=1)
    slots = Slots(False, False)
    assert server.recvmmsg(slots) == 1
    with pytest.raises(OSError, match="down"):
        server.recvmmsg(slots)
    assert server.recvmmsg(slots) == 1
    slots.turn_round(1)
    network.plan("sendmsg", "EPERM")
    with pytest.raises(PermissionError):
        server.sendmmsg(slots, 0, 1)
    assert server.sendmmsg(slots, 0, 1) == 1
    server.close()
