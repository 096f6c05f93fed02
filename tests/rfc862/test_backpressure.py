"""A client that sends and never reads costs bounded memory. RFC 862 has no flow control of its own; TCP has."""

from __future__ import annotations

import contextlib
import ctypes
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactor import READ, WRITE, Limits
from reactor.sockets.opening import Socket
from tests.support.clients import connect_small, fill
from tests.support.echo import EchoByHand
from tests.support.loops import connections_of, kernel_socket, turn_idle, turn_until

SMALL_BYTES = 32_768
BOUND_BYTES = 131_072


def test_documented_bound_is_128_kib() -> None:
    """Promise 5: "holds at most the documented bound (default ≤ 128 KiB, by assertion)"."""
    assert Limits().bound_bytes == BOUND_BYTES


@pytest.mark.parametrize(("pipes", "bound_bytes"), [(0, BOUND_BYTES), (1, Limits().pipe_bytes)])
@pytest.mark.parametrize("buffer_bytes", [None, SMALL_BYTES, 300_000])
def test_client_that_never_reads_is_paused_at_the_bound(buffer_bytes: int | None, pipes: int, bound_bytes: int) -> None:
    """Promise 5: "costs bounded memory […], its reading is paused". When it reads later, it gets every byte."""
    with EchoByHand(socket_buffer_bytes=buffer_bytes, pipes=pipes) as echo, echo.connect() as client:
        connection = echo.connections[0]
        sent = echo.fill(client, connection)
        assert connection.interest == WRITE
        assert Limits().high_water_bytes < connection.pending_bytes <= bound_bytes
        assert connection.bytes_received < len(sent), "the kernel holds the rest"
        assert echo.receive(client, len(sent)) == sent
        assert connection.interest == READ
        client.shutdown(socket.SHUT_WR)
        assert echo.receive_to_end(client) == b""


def test_others_are_served_beside_a_client_that_never_reads() -> None:
    """Promise 5: "and others are not slowed" by a client that is stuck."""
    with EchoByHand(socket_buffer_bytes=SMALL_BYTES) as echo, echo.connect() as hog, echo.connect() as client:
        stuck = echo.connections[0]
        echo.fill(hog, stuck)
        for number in range(20):
            client.send(b"ping %d" % number)
            assert echo.receive(client, len(b"ping %d" % number)) == b"ping %d" % number
        with echo.udp() as datagrams:
            datagrams.send(b"ping")
            assert echo.answer(datagrams) == b"ping"
        assert stuck.interest == WRITE, "still paused"


@given(reads=st.lists(st.integers(1, 200_000), max_size=12))
def test_bound_holds_for_a_client_that_reads_now_and_then(reads: list[int]) -> None:
    """Promise 5 at every moment: in any rhythm of pauses, no byte is lost and the bound holds."""
    with EchoByHand(socket_buffer_bytes=SMALL_BYTES, udp=False) as echo:
        client = connect_small(("127.0.0.1", echo.port), SMALL_BYTES)
        client.setblocking(False)
        with client:
            turn_until(echo.reactor, lambda: echo.connections)
            connection = echo.connections[0]
            sent, received = echo.fill(client, connection), b""
            for count in reads:
                with contextlib.suppress(BlockingIOError):
                    received += client.recv(count)
                sent += fill(client, most_bytes=1 << 18)
                for _ in range(8):
                    turn_idle(echo.reactor, 1)
                    assert connection.pending_bytes <= BOUND_BYTES
            client.shutdown(socket.SHUT_WR)
            received += echo.receive_to_end(client)
            assert received == sent


@pytest.mark.parametrize("buffer_bytes", [4096, 65_536])
def test_socket_buffer_caps_the_kernels_memory(buffer_bytes: int) -> None:
    """Promise 5: "`--socket-buffer BYTES` caps it". Linux doubles the figure, for its own overhead (socket(7))."""
    with EchoByHand(socket_buffer_bytes=buffer_bytes) as echo, echo.connect():
        with kernel_socket(echo.connections[0]) as sock:
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                size_bytes = sock.getsockopt(socket.SOL_SOCKET, option)
                assert size_bytes <= max(2 * buffer_bytes, 4608), "4608 is the least that Linux gives"


def test_socket_buffer_caps_what_a_stuck_client_can_send() -> None:
    """Promise 5: a stuck client can send what fits into its own buffers, the bound, and the capped kernel buffers."""
    with EchoByHand(socket_buffer_bytes=SMALL_BYTES) as echo:
        client = connect_small(("127.0.0.1", echo.port), SMALL_BYTES)
        client.setblocking(False)
        with client:
            turn_until(echo.reactor, lambda: echo.connections)
            sent = echo.fill(client, echo.connections[0])
            assert len(sent) <= BOUND_BYTES + 4 * 2 * SMALL_BYTES


# ---------------------------------------------------------------- linear output


class MeteredSocket(socket.socket):
    """Takes at most 512 bytes per send, and adds up how much of the pending output was moved between two sends."""

    meter: Meter

    def send(self, data: Any, flags: int = 0) -> int:
        self.meter.look(data)
        sent = super().send(memoryview(data)[:512], flags)
        self.meter.expect(data, sent)
        return sent

    def accept(self) -> tuple[socket.socket, Any]:
        plain, address = super().accept()
        return adopt(plain, self.meter), address


class Meter:
    """Remembers the address of the pending output, and so notices when it was moved."""

    def __init__(self) -> None:
        self.moved_bytes = self.sends = 0
        self._expected: int | None = None

    def look(self, data: Any) -> None:
        self.sends += 1
        if isinstance(data, bytearray) and self._expected not in (None, address_of(data)):
            self.moved_bytes += len(data)

    def expect(self, data: Any, sent: int) -> None:
        self._expected = address_of(data) + sent if isinstance(data, bytearray) and sent < len(data) else None


class MeteredSockets:
    """A SocketFactory of MeteredSockets that share one meter."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def socket(self, family: int, type: int) -> socket.socket:
        sock = MeteredSocket(family, type)
        sock.meter = self._meter
        return sock

    def socketpair(self) -> tuple[Socket, Socket]:
        return socket.socketpair()


def adopt(plain: socket.socket, meter: Meter) -> MeteredSocket:
    sock = MeteredSocket(plain.family, plain.type, plain.proto, fileno=plain.detach())
    sock.meter = meter
    return sock


def address_of(data: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(data))


def test_output_is_linear_in_its_size() -> None:
    """Promise 6. A buffer that closes the gap after each short send would move the pending output 256 times."""
    meter = Meter()
    with EchoByHand(reactor_options={"sockets": MeteredSockets(meter)}, udp=False) as echo, echo.connect() as client:
        sent = bytes(range(256)) * 16_384
        received = echo.send(client, sent)
        client.shutdown(socket.SHUT_WR)
        received += echo.receive_to_end(client)
        assert received == sent
        assert meter.sends >= len(sent) // 512
        assert meter.moved_bytes <= 4 * len(sent)
        assert not connections_of(echo.reactor)
