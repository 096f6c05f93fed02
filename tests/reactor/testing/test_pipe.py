"""A pipe between simulated sockets. `tests/conformance/` compares it with the kernel's."""

from __future__ import annotations

import errno
import socket

import pytest

from reactor.testing import SimulatedNetwork


def test_pipe_takes_two_descriptors_and_gives_them_back() -> None:
    network = SimulatedNetwork(1)
    pipe = network.pipe()
    assert len(network.descriptors.open) == 2
    pipe.close()
    pipe.close()
    assert not network.descriptors.open


@pytest.mark.parametrize("room", [0, 1])
def test_pipe_without_two_free_descriptors_takes_none(room: int) -> None:
    network = SimulatedNetwork(1, descriptor_limit=3 + room)
    with pytest.raises(OSError, match="Too many open files") as refused:
        network.pipe()
    assert refused.value.errno == errno.EMFILE
    assert not network.descriptors.open


def test_socket_buffer_is_never_larger_than_the_network_allows() -> None:
    """socket(7): the kernel doubles the size asked for, and caps it at net.core.rmem_max and wmem_max."""
    network = SimulatedNetwork(1, receive_buffer_bytes=1000, send_buffer_bytes=2000)
    sock = network.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option, most in ((socket.SO_RCVBUF, 2000), (socket.SO_SNDBUF, 4000)):
        sock.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
        assert sock.getsockopt(socket.SOL_SOCKET, option) == most
        sock.setsockopt(socket.SOL_SOCKET, option, 10)
        assert sock.getsockopt(socket.SOL_SOCKET, option) == 20
    sock.close()
