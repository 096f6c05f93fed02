"""What a user of the library implements, and what the loop asks of a handler.

Law: a callback is given everything it needs as arguments, the connection or endpoint first. So one protocol object
may serve one connection or a hundred thousand of them, and holds state only if it wants to. Nothing here does I/O;
each class is a `typing.Protocol` with harmless defaults, to be subclassed or merely matched.

No callback of a connection ever runs inside another: `connection_lost` is queued on the loop, and told soon after.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the arguments' types; these modules import this one at run time
    from reactor.connection import Connection
    from reactor.datagram import Datagram
    from reactor.sockets import Address


class Handler(Protocol):
    """What the selector's `data` must be: the one thing that `Reactor.turn` knows how to call."""

    interest: int  # what the selector watches now; written by `Reactor.set_interest` alone
    closed: bool  # true from the moment of close: a stale event of the same batch is skipped

    def fileno(self) -> int:
        """Return the descriptor to watch; valid until `closed`."""

    def on_event(self, mask: int) -> None:
        """Act on readiness: `mask` holds selectors.EVENT_READ, EVENT_WRITE or both."""

    def abort(self, error: Exception | None = None) -> None:
        """Unregister and close at once; called by the loop when `on_event` has raised `error`."""


class StreamProtocol:
    """The life of a TCP connection, in the order in which the calls come."""

    def connection_made(self, connection: Connection) -> None:
        """Called once, before any data. May write, pause or close."""

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Called with 1 … `Limits.receive_bytes` bytes, in the order of the stream (RFC 9293 §3.8).

        Boundaries mean nothing: the peer's one write may come as ten calls, or ten as one.
        """

    def saturated(self, connection: Connection) -> None:
        """Called after data that filled a whole receive: the peer may be faster than we are (see `splice`)."""

    def drained(self, connection: Connection) -> None:
        """Called when bytes had to wait for the peer and now all have been taken by the kernel."""

    def eof_received(self, connection: Connection) -> bool | None:
        """Called once when the peer has sent FIN; it may still be reading (half-close).

        Return a true value to go on writing until `close()`. By default the connection delivers what
        is pending, sends its own FIN and closes.
        """
        return False

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """Called once, last. `error` is None after an orderly end, else the reason (often OSError)."""


class DatagramProtocol:
    """What a UDP endpoint calls."""

    def datagram_received(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
        """Called with one whole datagram of 0 … 65,527 bytes (RFC 768).

        `path` says which local address was asked; hand it back to `Datagram.send` and the answer
        comes from that address (RFC 1122 §4.1.3.5). It is empty where the socket's own address says so.
        """

    def error_received(self, endpoint: Datagram, error: OSError) -> None:
        """Called when a datagram couldn't be sent, or ICMP has told of one that was (with a peer only: udp(7))."""

    def dropped(self, endpoint: Datagram, reason: str, peer: Address | None) -> None:
        """Called for each that is counted in `drops`, from or to `peer` (None: unknown). For logs; mustn't raise."""

    def endpoint_lost(self, endpoint: Datagram, error: Exception | None) -> None:
        """Called once, last. `error` is None after `close()`, else why the socket had to go."""
