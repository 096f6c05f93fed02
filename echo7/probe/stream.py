"""A flow over TCP: probes are frames in one stream, told apart by their place in it.

    send ─► held, while there is no connection ─► written ─► expected, in this order ─► compared as the bytes come

Laws. What comes back must be what was sent, in order (RFC 862, RFC 9293), so the bytes in a frame's place are its
answer, whatever its size. Bytes that nothing had asked for, or that look like no echo at all, end the connection: who
sends for ever or at random costs one receive, and no more. When a connection is lost, so are the probes in it; the next
probe that is due makes another. What waits is bounded on both sides.
"""

from __future__ import annotations

import collections
import socket
import time
from collections.abc import Callable

from echo7.probe.roles import Run
from reactor.connection import Connection, StreamProtocol
from reactor.connector import Connector
from reactor.limits import DEFAULT_LIMITS
from reactor.loop import Reactor
from reactor.sockets.addresses import Address, unspecified
from reactor.sockets.opening import closed_on_error, new_client

MOST_WAITING = 4096  # frames on their way, or held for a connection
CLOSED_BY_PEER = "the connection was closed by the other end"


class StreamFlow(StreamProtocol):
    """See `roles.Flow`. Connects when the first probe is due. Raises OSError for a source port that is taken."""

    __slots__ = (
        "_address", "_clock_ns", "_connection", "_connector", "_expected", "_held", "_port", "_reactor", "_received",
        "_run", "_timeout_s", "index", "source_port",
    )  # fmt: skip

    def __init__(
        self,
        reactor: Reactor,
        address: Address,
        run: Run,
        index: int,
        *,
        source_port: int = 0,
        timeout_s: float = 2.0,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.index = index
        self._clock_ns = clock_ns
        self._reactor, self._run, self._address = reactor, run, address
        self._port = self.source_port = source_port  # that was asked for; that we have
        self._timeout_s = timeout_s
        self._connection: Connection | None = None
        self._connector: Connector | None = None
        self._held: collections.deque[int] = collections.deque()  # sequence numbers that wait for a connection
        self._expected: collections.deque[tuple[int, int]] = collections.deque()  # (sequence, size) in the stream
        self._received = bytearray()  # less than the next frame, between two callbacks
        if source_port:  # whoever asks for one that is taken shall know before anything is sent
            with new_client(reactor.sockets, address) as sock:
                self._bind(sock)

    def has_room(self) -> bool:
        """See `roles.Flow`: a peer that doesn't read isn't sent more than a bound."""
        if self._connection is not None and self._connection.pending_bytes > DEFAULT_LIMITS.high_water_bytes:
            return False
        return len(self._held) + len(self._expected) < MOST_WAITING

    def send(self, sequence: int, payload: bytes) -> tuple[int, int]:
        """Write a frame, or hold it until there is a connection. Always (0, when)."""
        now_ns = self._clock_ns()
        if self._connection is not None:
            self._write(self._connection, sequence, payload)
        else:
            self._held.append(sequence)
            if self._connector is None:
                self._reactor.call_soon(self._connect)
        return 0, now_ns

    def path_mtu_bytes(self) -> int | None:
        """Return None: a stream has no size."""
        return None

    def close(self) -> None:
        """Send FIN, and tell nothing any more."""
        self._held.clear()
        self._expected.clear()
        if self._connector is not None:
            self._connector.abort()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # ------------------------------------------------------------ connecting

    def _connect(self) -> None:
        if not self._held or self._connector is not None or self._connection is not None:
            return
        try:
            with closed_on_error(new_client(self._reactor.sockets, self._address)) as sock:
                if self._port:
                    self._bind(sock)
                self._connector = Connector(
                    self._reactor, sock, self, self._not_connected, self._timeout_s, DEFAULT_LIMITS
                )
                self._connector.start(self._address)
        except OSError as error:  # EMFILE; the source port is taken; a scope that isn't there
            self._not_connected(error)

    def _bind(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # to come back while the last one is in TIME_WAIT
        sock.bind((unspecified(self._address)[0], self._port))

    def _not_connected(self, error: OSError) -> None:
        self._connector = None
        held = list(self._held)
        self._held.clear()
        if held:
            self._run.given_up(self.index, held, error.errno or 0, error.strerror or str(error))

    def connection_made(self, connection: Connection) -> None:
        """Send what has waited, if its time isn't over."""
        self._connector, self._connection = None, connection
        self.source_port = int(connection.socket.getsockname()[1])
        while self._held:
            sequence = self._held.popleft()
            payload = self._run.payload_of(self.index, sequence)
            if payload is not None:
                self._write(connection, sequence, payload)

    def _write(self, connection: Connection, sequence: int, payload: bytes) -> None:
        self._expected.append((sequence, len(payload)))
        connection.write(payload)

    # ------------------------------------------------------------ what comes back

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Cut the stream into frames, and have each compared."""
        at_ns = self._clock_ns()
        self._received += data
        while self._expected and len(self._received) >= self._expected[0][1]:
            sequence, size_bytes = self._expected.popleft()
            frame = bytes(self._received[:size_bytes])
            del self._received[:size_bytes]
            if not self._run.frame(self.index, sequence, frame, at_ns):
                self._expected.appendleft((sequence, size_bytes))
                self._drop(connection, "what came back was no echo")
                return
        if self._received and not self._expected:
            self._run.surplus(self.index, bytes(self._received))
            self._drop(connection, "more came back than was sent")

    def eof_received(self, connection: Connection) -> bool:
        """Give up what was in it: who has sent FIN will echo no more."""
        self._lose(CLOSED_BY_PEER)
        if connection.pending_bytes:  # nor read what waits
            connection.abort()
        return False

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """Give up what was in it."""
        if connection is self._connection:
            self._lose(f"the connection was lost: {getattr(error, 'strerror', None) or error}")

    def _drop(self, connection: Connection, reason: str) -> None:
        connection.abort()
        self._lose(reason)

    def _lose(self, reason: str) -> None:
        self._connection = None
        lost = [sequence for sequence, _ in self._expected]
        self._expected.clear()
        self._received.clear()
        if lost:
            self._run.given_up(self.index, lost, 0, reason)
