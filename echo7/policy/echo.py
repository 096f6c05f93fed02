"""What an echo server does with what it gets. Pure policy: no sockets, no time.

Law (RFC 862): over TCP, data received is sent back until the caller terminates the connection; over UDP, each
datagram gets one answering datagram with the data received. Nothing is added, changed, or sent unasked.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from echo7.logs.drops import DropLog, describe_peer
from echo7.policy.guard import Guard
from echo7.policy.sources import Admission
from reactor.connection import Connection, StreamProtocol
from reactor.datagram import Datagram, DatagramProtocol
from reactor.sockets.addresses import Address, pack_host


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
    """UDP: what arrives is sent back to where it came from, from where it was sent to.

    Unless the guard objects, or the source has had enough (`admission`).
    """

    def __init__(
        self,
        guard: Guard,
        lost: Callable[[Datagram, Exception | None], None],
        admission: Admission | None = None,
        drop_log: DropLog | None = None,
    ) -> None:
        self._refusal = guard.refusal
        self._lost = lost
        self._admission = admission
        self._drop_log = drop_log

    def datagram_received(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
        """Echo, or count why not."""
        reason = self._refusal(source, path)
        if reason is None and self._admission is not None:
            reason = self._admission.refusal(pack_host(source[0]))
        if reason is None:
            endpoint.send(data, source, path)
        else:
            endpoint.drop(reason, source)

    def dropped(self, endpoint: Datagram, reason: str, peer: Address | None) -> None:
        """Log it."""
        if self._drop_log is not None:
            self._drop_log.note(reason, partial(describe_peer, peer))

    def endpoint_lost(self, endpoint: Datagram, error: Exception | None) -> None:
        """Tell the server."""
        self._lost(endpoint, error)
