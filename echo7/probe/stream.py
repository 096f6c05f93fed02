"""StreamFlow: a flow over TCP. Probes are frames in one stream, and their place identifies them.

    send ─► held, until there is a connection ─► written ─► expected, in this order ─► compared when the bytes come

Laws. The stream must come back in order (RFC 862, RFC 9293), so the bytes in a frame's place are its answer, also of a
small frame. Bytes that come when no probe is outstanding, or that don't look like an echo, end the connection, so
endless or random data costs one receive. When a connection is lost, its probes are lost too; the next due probe makes
another connection. Held and expected frames are bounded.
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

MOST_WAITING = 4096  # frames held or expected
CLOSED_BY_PEER = "the connection was closed by the other end"


class StreamFlow(StreamProtocol):
    """See `roles.Flow`. Connects when the first probe is due. Raises OSError if its source port is taken."""

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
        self._port = self.source_port = source_port  # the wanted and the present one
        self._timeout_s = timeout_s
        self._connection: Connection | None = None
        self._connector: Connector | None = None
        self._held: collections.deque[int] = collections.deque()  # sequence numbers
        self._expected: collections.deque[tuple[int, int]] = collections.deque()  # (sequence, size) in the stream
        self._received = bytearray()  # a part of the next frame
        if source_port:
            # raise now if it is taken, before the first probe
            with new_client(reactor.sockets, address) as sock:
                self._bind(sock)

    def has_room(self) -> bool:
        """Whether another probe may be sent: the bytes for a server that doesn't read are bounded."""
        if self._connection is not None and self._connection.pending_bytes > DEFAULT_LIMITS.high_water_bytes:
            return False
        return len(self._held) + len(self._expected) < MOST_WAITING

    def send(self, sequence: int, payload: bytes) -> tuple[int, int]:
        """Write a frame, or hold it until there is a connection. Return (0, the time in ns)."""
        now_ns = self._clock_ns()
        if self._connection is not None:
            self._write(self._connection, sequence, payload)
        else:
            self._held.append(sequence)
            if self._connector is None:
                self._reactor.call_soon(self._connect)
        return 0, now_ns

    def path_mtu_bytes(self) -> int | None:
        """Return None: TCP cuts its stream to fit."""
        return None

    def close(self) -> None:
        """Send FIN, and report nothing more."""
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
        except OSError as error:
            # EMFILE, a source port in use, an unknown scope
            self._not_connected(error)

    def _bind(self, sock: socket.socket) -> None:
        # the last connection from this port may be in TIME_WAIT
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((unspecified(self._address)[0], self._port))

    def _not_connected(self, error: OSError) -> None:
        self._connector = None
        held = list(self._held)
        self._held.clear()
        if held:
            self._run.given_up(self.index, held, error.errno or 0, error.strerror or str(error))

    def connection_made(self, connection: Connection) -> None:
        """Send the held probes that are outstanding."""
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

    # ------------------------------------------------------------ receiving

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Cut the stream into frames, and report each."""
        at_ns = self._clock_ns()
        self._received += data
        while self._expected and len(self._received) >= self._expected[0][1]:
            sequence, size_bytes = self._expected.popleft()
            frame = bytes(self._received[:size_bytes])
            del self._received[:size_bytes]
            if not self._run.frame(self.index, sequence, frame, at_ns):
                self._expected.appendleft((sequence, size_bytes))
                connection.abort()
                self._lose("the bytes that came back were no echo")
                return
        if self._received and not self._expected:
            self._run.surplus(self.index, bytes(self._received))
            connection.abort()
            self._lose("more came back than was sent")

    def eof_received(self, connection: Connection) -> bool:
        """Give up the probes in this connection: after its FIN a server echoes nothing."""
        self._lose(CLOSED_BY_PEER)
        if connection.pending_bytes:
            # the server won't read the pending bytes either
            connection.abort()
        return False

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """Give up the probes in this connection."""
        if connection is self._connection:
            self._lose(f"the connection was lost: {getattr(error, 'strerror', None) or error}")

    def _lose(self, reason: str) -> None:
        self._connection = None
        lost = [sequence for sequence, _ in self._expected]
        self._expected.clear()
        self._received.clear()
        if lost:
            self._run.given_up(self.index, lost, 0, reason)
