"""Shared by the tests of the simulated network: sockets inside, peers outside, and passing time."""

from __future__ import annotations

import socket
from typing import cast

from reactor import Connection, Datagram, DatagramProtocol, StreamProtocol
from reactor.sockets.addresses import Address
from reactor.sockets.opening import Socket
from reactor.testing import Peer, SimulatedNetwork
from reactor.testing.kernel.stream import StreamSocket

HERE = "10.0.0.1"
PORT = 7
ELSEWHERE = "192.0.2.1"  # the usual host of peers


class Echo(StreamProtocol):
    """Echo, and remember how the connection ended."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.received = bytearray()
        self.lost: list[Exception | None] = []

    def connection_made(self, connection: Connection) -> None:
        self.connection = connection

    def data_received(self, connection: Connection, data: bytes) -> None:
        self.received += data
        connection.write(data)

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        self.lost.append(error)


class UdpEcho(DatagramProtocol):
    """Send each datagram back."""

    def datagram_received(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
        endpoint.send(data, source, path)


def go(network: SimulatedNetwork, for_s: float = 0.0) -> None:
    """Let the world outside go on, without a step of the program."""
    end_s = network.clock() + for_s
    while network.move_peers() or network.wire.run_due() or network.go_on(end_s):
        pass
    while network.move_peers():
        pass


def stream(network: SimulatedNetwork, family: int = socket.AF_INET) -> Socket:
    sock = network.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock


def listening(network: SimulatedNetwork, backlog: int = 8, port: int = PORT) -> Socket:
    sock = stream(network)
    sock.bind((HERE, port))
    sock.listen(backlog)
    return sock


def answered(listener: Socket) -> Socket:
    sock, _ = listener.accept()
    sock.setblocking(False)
    return sock


def pair(network: SimulatedNetwork) -> tuple[Socket, Peer]:
    """Return (the program's end, the peer)."""
    listener = listening(network)
    peer = network.peer((HERE, PORT))
    go(network, network.latency_s)
    sock = answered(listener)
    listener.close()
    return sock, peer


def udp(network: SimulatedNetwork, host: str = HERE, port: int = 0) -> Socket:
    sock = network.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind((host, port))
    return sock


def bits(sock: Socket) -> int:
    return cast(StreamSocket, sock).poll()


def error_of(sock: Socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
