"""SimulatedSocket: what streams and datagrams have in common. Most of it is in test_stream and test_datagram."""

from __future__ import annotations

import socket
from typing import cast

import pytest

from reactor.testing import SimulatedNetwork
from reactor.testing.kernel.endpoint import SimulatedSocket


def test_base_socket_has_no_poll_and_no_end() -> None:
    sock = SimulatedSocket(SimulatedNetwork(), socket.AF_INET, socket.SOCK_STREAM, False)
    with pytest.raises(NotImplementedError):
        sock.poll()
    with pytest.raises(NotImplementedError):
        sock.close()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_socket_has_family_type_and_descriptor(kind: socket.SocketKind) -> None:
    network = SimulatedNetwork()
    sock = network.socket(socket.AF_INET6, kind)
    assert (sock.family, sock.type, sock.proto) == (socket.AF_INET6, kind, 0)
    assert network.descriptors.open[sock.fileno()] is cast(SimulatedSocket, sock)
