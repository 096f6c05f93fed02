"""SimulatedSocket: what streams and datagrams have in common. Most of it is in test_stream and test_datagram."""

from __future__ import annotations

import socket
from typing import cast

import pytest

from reactor.testing import SimulatedNetwork
from reactor.testing.kernel.endpoint import SimulatedSocket


def test_what_a_kind_of_socket_must_say_for_itself() -> None:
    """Promise: readiness and the end depend on the kind: the base class has no opinion."""
    sock = SimulatedSocket(SimulatedNetwork(), socket.AF_INET, socket.SOCK_STREAM, False)
    with pytest.raises(NotImplementedError):
        sock.poll()
    with pytest.raises(NotImplementedError):
        sock.close()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_socket_knows_what_it_is(kind: socket.SocketKind) -> None:
    """Promise: family and type are as for `socket.socket`, and the descriptor is one of this network."""
    network = SimulatedNetwork()
    sock = network.socket(socket.AF_INET6, kind)
    assert (sock.family, sock.type, sock.proto) == (socket.AF_INET6, kind, 0)
    assert network.descriptors.open[sock.fileno()] is cast(SimulatedSocket, sock)
