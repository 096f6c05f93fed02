"""An EchoServer inside the test's own process."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from echo7.policy.echo import StreamEcho
from echo7.server import EchoServer
from echo7.sockets.binding import Bound
from reactor import READ, Connection, Reactor
from reactor.fastpath import splice
from tests.support.basics import PATIENCE_S
from tests.support.clients import connect_small, drain, fill
from tests.support.loops import LoopThread, connections_of, turn_until

PAUSE_S = 0.005
# Without any progress. On a busy machine the kernel drops segments on loopback too, and repeats them after seconds.
STALLED_TURNS = int(PATIENCE_S / PAUSE_S)


class EchoThread(LoopThread):
    """An EchoServer on loopback, any free port, in a thread."""

    def __init__(
        self, hosts: Sequence[str] = ("127.0.0.1",), reactor_options: dict[str, Any] | None = None, **options: Any
    ) -> None:
        super().__init__(**(reactor_options or {}))
        self.server = EchoServer(hosts, 0, **options)
        self.server.start(self.reactor)
        self.port = self.server.addresses[0].port
        self.host = hosts[0]

    def connect(self, host: str | None = None) -> socket.socket:
        """Return a connected TCP client, blocking with a time-out."""
        sock = socket.create_connection((host or self.host, self.port), PATIENCE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def udp(self, host: str | None = None) -> socket.socket:
        """Return a UDP client connected to the server, with a time-out."""
        target = host or self.host
        sock = socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(PATIENCE_S)
        sock.connect((target, self.port))
        return sock


CAN_SPLICE = splice.pipes_on(socket) is not None


@contextlib.contextmanager
def every_connection_spliced() -> Iterator[None]:
    """Make every new server give each connection a pipe with its first byte, and keep it there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splice, "SMALL_MOVES", 1 << 60)
        patch.setattr(splice, "COPIES_AFTER_TROUBLE", 0)

        def data_received(self: StreamEcho, connection: Connection, data: bytes) -> None:
            connection.write(data)
            self.saturated(connection)

        patch.setattr(StreamEcho, "data_received", data_received)
        yield


class EchoByHand:
    """An EchoServer on a loop that the test turns by hand, so nothing happens between two steps of the test."""

    def __init__(
        self,
        hosts: Sequence[str] = ("127.0.0.1",),
        reactor_options: dict[str, Any] | None = None,
        bound: Bound | None = None,
        **options: Any,
    ) -> None:
        self.reactor = Reactor(**(reactor_options or {}))
        self.server = EchoServer(hosts, 0, **options)
        self.may_have_pipes = options.get("pipes", 1) > 0
        try:
            self.server.start(self.reactor, bound)
        except BaseException:
            self.reactor.close()
            raise
        self.port = self.server.addresses[0].port

    def __enter__(self) -> EchoByHand:
        return self

    def __exit__(self, *exception: object) -> None:
        self.reactor.close()

    @property
    def connections(self) -> list[Connection]:
        """The server's connections, oldest first."""
        return connections_of(self.reactor)

    def connect(self, host: str = "127.0.0.1", buffer_bytes: int | None = None) -> socket.socket:
        """Return a non-blocking TCP client that the server has accepted."""
        before = self.server.counters.connections
        sock = connect_small((host, self.port), buffer_bytes)
        sock.setblocking(False)
        turn_until(self.reactor, lambda: self.server.counters.connections > before)
        return sock

    def udp(self, host: str = "127.0.0.1") -> socket.socket:
        """Return a non-blocking UDP client connected to the server."""
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.connect((host, self.port))
        return sock

    def send(self, client: socket.socket, data: bytes) -> bytes:
        """Send all data while turning the loop; return what comes back meanwhile."""
        rest, received, stalled = memoryview(data), bytearray(), 0
        while rest:
            try:
                rest, stalled = rest[client.send(rest) :], 0
            except BlockingIOError:
                stalled += 1
            self._turn(stalled)
            received += drain(client)
        return bytes(received)

    def receive(self, client: socket.socket, count: int) -> bytes:
        """Turn the loop until the client has received `count` bytes, or FIN; return them."""
        received, stalled = bytearray(), 0
        while len(received) < count:
            try:
                piece = client.recv(min(1 << 16, count - len(received)))
            except BlockingIOError:
                stalled += 1
                self._turn(stalled)
                continue
            if not piece:
                break
            received += piece
            stalled = 0
        return bytes(received)

    def fill(self, client: socket.socket, connection: Connection) -> bytes:
        """Send until `connection`, the client's peer, has paused reading and the kernel takes no more.

        Return what was sent. The bound is checked after every turn.
        """
        sent, stalled = bytearray(), 0
        while stalled < 3 or connection.interest & READ:
            piece = fill(client, most_bytes=1 << 18)
            sent += piece
            stalled = 0 if piece else stalled + 1
            for turn in range(8):
                self._turn(stalled if turn == 0 else 0)
                limits = connection.limits
                bound_bytes = max(limits.bound_bytes, limits.pipe_bytes * self.may_have_pipes)
                assert connection.pending_bytes <= bound_bytes
        return bytes(sent)

    def answer(self, client: socket.socket) -> bytes:
        """Turn the loop until the UDP client has received a datagram; return it."""
        for stalled in range(STALLED_TURNS + 1):
            with contextlib.suppress(BlockingIOError):
                return client.recv(1 << 17)
            self._turn(stalled)
        raise AssertionError("unreachable: _turn raises first")

    def _turn(self, stalled: int) -> None:
        """Turn once. Wait a little if nothing has moved lately, and fail if nothing has moved for long."""
        assert stalled < STALLED_TURNS, "no byte has moved for a long time"
        waker = self.reactor.call_later(PAUSE_S if stalled > 1 else 0.0, int)
        self.reactor.turn()
        waker.cancel()

    def receive_to_end(self, client: socket.socket) -> bytes:
        """Turn the loop until the client has received FIN; return what came before it. A reset raises."""
        return self.receive(client, 1 << 62)
