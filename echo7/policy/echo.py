"""What an echo server does with what it receives. Pure policy: no sockets, no time.

Law (RFC 862): over TCP, data received is sent back until the client terminates the connection. Over UDP, each
datagram gets one answering datagram with the data received. Nothing is added, changed, or sent unasked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from echo7.policy.guard import Guard
from echo7.policy.loops import LoopWatch
from echo7.policy.shares import Shares
from echo7.policy.sources import DatagramGate
from reactor.connection import Connection, StreamProtocol
from reactor.fastpath.batch import BatchProtocol, Endpoint
from reactor.fastpath.datagrams import Batch
from reactor.sockets.addresses import Address


class StreamEcho(StreamProtocol):
    """TCP: writes back what arrives. One object serves all connections of a listener.

    The Connection handles backpressure, half-close and lingering; its defaults are what the RFC wants.
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
        """Tell the server about a new connection."""
        self._made(connection)

    # This is the echo. A method of its own would cost 50 ns more.
    data_received = staticmethod(Connection.write)  # type: ignore[assignment]

    def saturated(self, connection: Connection) -> None:
        """Tell the server that a client sends a lot: splice(2) may be faster."""
        if self._saturated is not None:
            self._saturated(connection)

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """Tell the server that a connection is over."""
        self._lost(connection, error)


Dropped = Callable[[str, Address | None, int], None]


class DatagramEcho(BatchProtocol):
    """UDP: sends each datagram back to its source, unless the guard, a suspected loop or a limit refuses it.

    `lost(endpoint, error)` is called when an endpoint has closed, `dropped(reason, peer, count)` for datagrams without
    an answer; `peer` is the source of one of them, None if it is unknown.
    """

    def __init__(
        self,
        guard: Guard,
        lost: Callable[[Endpoint, Exception | None], None],
        gate: DatagramGate | None = None,
        dropped: Dropped | None = None,
        loops: LoopWatch | None = None,
        shares: Shares | None = None,
    ) -> None:
        self._guarded = guard.refusals
        self._loops, self._shares = loops, shares
        self._lost = lost
        self._gate = gate
        self._dropped = dropped

    def batch_received(self, endpoint: Endpoint, batch: Batch, count: int) -> Mapping[int, str]:
        """Return which datagrams get no answer, and why. Only those that nothing else refuses take a token."""
        refused: Mapping[int, str] = self._guarded(batch, count)
        if self._loops is not None:
            refused = self._loops.refusals(batch, count, refused)
        if self._shares is not None:
            refused = self._shares.refusals(batch, count, refused)
        if self._gate is None:
            return refused
        hosts = batch.hosts(count)
        if not refused:
            return self._gate.refusals(hosts, batch.packed)
        passing = [index for index in range(count) if index not in refused]
        more = self._gate.refusals([hosts[index] for index in passing], batch.packed)
        return {**refused, **{passing[place]: reason for place, reason in more.items()}}

    def dropped(self, endpoint: Endpoint, reason: str, peer: Address | None, count: int = 1) -> None:
        """Tell the server about datagrams without an answer."""
        if self._dropped is not None:
            self._dropped(reason, peer, count)

    def endpoint_lost(self, endpoint: Endpoint, error: Exception | None) -> None:
        """Tell the server that an endpoint has closed."""
        self._lost(endpoint, error)
