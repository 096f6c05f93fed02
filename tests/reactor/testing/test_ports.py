"""Ports and descriptors: a kernel's small integers, and what happens when none are left."""

from __future__ import annotations

import socket
from typing import cast

import pytest

import reactor.testing.kernel.ports
from reactor.testing import SimulatedNetwork
from reactor.testing.kernel.endpoint import SimulatedSocket
from tests.reactor.testing.programs import ELSEWHERE, HERE, go, listening, stream, udp
from tests.support.basics import told


def test_descriptors_run_out_at_the_limit() -> None:
    network = SimulatedNetwork(descriptor_limit=6)
    sockets = [stream(network) for _ in range(3)]
    assert [sock.fileno() for sock in sockets] == [3, 4, 5]
    assert network.descriptors.is_full
    assert told(network.socket, socket.AF_INET, socket.SOCK_STREAM) == "EMFILE"
    sockets[1].close()
    assert not network.descriptors.is_full
    assert stream(network).fileno() == 4, "the lowest that is free"


def test_socketpair_without_two_descriptors_takes_none() -> None:
    network = SimulatedNetwork(descriptor_limit=4)
    assert told(network.socketpair) == "EMFILE"
    assert not network.descriptors.open


def test_peers_need_no_descriptor() -> None:
    network = SimulatedNetwork(descriptor_limit=4)
    listening(network, backlog=100)
    for _ in range(50):
        network.peer((HERE, 7))
    assert network.descriptors.is_full


def test_ephemeral_ports_are_reused_and_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reactor.testing.kernel.ports, "EPHEMERAL", (40_000, 40_002))
    network = SimulatedNetwork()
    sockets = [udp(network) for _ in range(3)]
    assert [sock.getsockname()[1] for sock in sockets] == [40_000, 40_001, 40_002]
    late = network.socket(socket.AF_INET, socket.SOCK_DGRAM)
    assert told(late.bind, (HERE, 0)) == "EADDRINUSE"
    sockets[1].close()
    late.bind((HERE, 0))
    assert late.getsockname() == (HERE, 40_001)


def test_bound_port_is_taken_for_program_and_peers() -> None:
    """Only the wildcards of program and peers don't collide."""
    network = SimulatedNetwork()
    own = udp(network, "127.0.0.1", 4000)
    with pytest.raises(OSError, match="in use"):
        network.udp_peer(source="127.0.0.1", port=4000)
    udp(network, "0.0.0.0", 4001)
    peer = network.udp_peer(port=4001)
    peer.send(b"x", own.getsockname())
    assert own.recv(1) == b"x"


@pytest.mark.parametrize("first", ["0.0.0.0", HERE])
def test_wildcard_takes_all_addresses_of_a_port(first: str) -> None:
    """EADDRINUSE in either order. Ports of the other family are separate."""
    network = SimulatedNetwork()
    udp(network, first, 4000)
    second = network.socket(socket.AF_INET, socket.SOCK_DGRAM)
    assert told(second.bind, ("0.0.0.0" if first == HERE else HERE, 4000)) == "EADDRINUSE"
    udp(network, "::", 4000)
    udp(network, "10.0.0.2" if first == HERE else HERE, 4001)


def test_address_of_another_machine_is_refused() -> None:
    """EADDRNOTAVAIL for a program; EINVAL for an address of another family."""
    network = SimulatedNetwork(addresses=("127.0.0.1", "198.51.100.1"))
    sock = stream(network)
    assert told(sock.bind, (ELSEWHERE, 80)) == "EADDRNOTAVAIL"
    assert told(sock.bind, ("::1", 80)) == "EINVAL"
    sock.bind(("198.51.100.1", 80))


def test_closed_accepted_socket_leaves_the_listener_its_port() -> None:
    network = SimulatedNetwork()
    listener = listening(network)
    network.peer((HERE, 7))
    accepted, _ = listener.accept()
    accepted.close()
    peer = network.peer((HERE, 7))
    go(network)
    assert not peer.lost


def test_socket_bound_to_the_address_comes_before_the_wildcard() -> None:
    network = SimulatedNetwork()
    sock = udp(network, "0.0.0.0", 4000)
    find = network.ports.find
    assert find(socket.SOCK_DGRAM, socket.AF_INET, HERE, 4000) is cast(SimulatedSocket, sock)
    assert find(socket.SOCK_DGRAM, socket.AF_INET, ELSEWHERE, 4000) is None
    assert find(socket.SOCK_DGRAM, socket.AF_INET, HERE, 4001) is None
    peer = network.udp_peer(port=4000)
    assert find(socket.SOCK_DGRAM, socket.AF_INET, ELSEWHERE, 4000) is peer.socket
