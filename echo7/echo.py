"""What an echo server does with what it gets. Pure policy: no sockets, no time.

Law (RFC 862): over TCP, data received is sent back until the caller terminates the connection; over UDP, each
datagram gets one answering datagram with the data received. Nothing is added, changed, or sent unasked.
"""

from __future__ import annotations

from collections.abc import Callable

from echo7.guard import Guard
from reactor.connection import Connection
from reactor.datagram import Datagram
from reactor.protocol import DatagramProtocol, StreamProtocol
from reactor.sockets import Address


class StreamEcho(StreamProtocol):
    """TCP: what arrives is written. One object serves all connections of a server.

    Backpressure, half-close and lingering are the Connection's business, and its defaults are what the RFC wants.
    """

    def __init__(
        self,
        made: Callable[[Connection], None],
        lost: Callable[[Connection, Exception | None], None],
        saturated: Callable[[Connection], None] | None = None,
    ) -> None:
        self._made = made
        self._lost = lost
        self._saturated = saturated

    def connection_made(self, connection: Connection) -> None:
        """Tell the server that a caller is here."""
        self._made(connection)

    data_received = staticmethod(Connection.write)  # type: ignore[assignment]  # the echo, and 50 ns less than a method

    def saturated(self, connection: Connection) -> None:
        """Tell the server that a caller sends a lot: it may know a faster way."""
        if self._saturated is not None:
            self._saturated(connection)

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """Tell the server that a caller has gone."""
        self._lost(connection, error)


class DatagramEcho(DatagramProtocol):
    """UDP: what arrives is sent back to where it came from, from where it was sent to, unless the guard objects."""

    def __init__(self, guard: Guard, lost: Callable[[Datagram, Exception | None], None]) -> None:
        self._refusal = guard.refusal
        self._lost = lost

    def datagram_received(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
        """Echo, or count why not."""
        reason = self._refusal(source, path)
        if reason is None:
            endpoint.send(data, source, path)
        else:
            endpoint.drop(reason)

    def endpoint_lost(self, endpoint: Datagram, error: Exception | None) -> None:
        """Tell the server."""
        self._lost(endpoint, error)
