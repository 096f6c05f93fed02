"""The four functions to start with: `listen_tcp`, `connect_tcp`, `open_udp`, `connect_udp`.

Law: the function that makes a socket closes it if a later step fails. Addresses are numeric: a name raises ValueError,
because looking it up would block (`sockets.addresses.family_of`).
"""

from __future__ import annotations

from collections.abc import Callable

from reactor.connection import StreamProtocol
from reactor.connector import Connector
from reactor.datagram import Datagram, DatagramProtocol
from reactor.limits import BACKLOG, DEFAULT_LIMITS, Limits
from reactor.listener import Listener
from reactor.loop import Reactor
from reactor.sockets.addresses import Address, unspecified
from reactor.sockets.opening import bind_tcp, bind_udp, closed_on_error, new_client
from reactor.sockets.seconds import check_s


def listen_tcp(
    reactor: Reactor,
    address: Address,
    factory: Callable[[], StreamProtocol],
    *,
    backlog: int = BACKLOG,
    limits: Limits = DEFAULT_LIMITS,
) -> Listener:
    """Listen on (host, port), port 0 for any free port. Call `factory()` for each connection's protocol.

    Urgent data stays in the stream, keepalive finds dead peers, IPv6 sockets carry IPv6 only (see `bind_tcp`).
    Raise OSError as bind(2) and listen(2) do, ValueError for limits with a time-out that no timer can have.
    """
    check_s("linger_timeout_s", limits.linger_timeout_s)
    with closed_on_error(bind_tcp(reactor.sockets, address)) as sock:
        sock.listen(backlog)
        return Listener(reactor, sock, factory, limits)


def connect_tcp(
    reactor: Reactor,
    address: Address,
    protocol: StreamProtocol,
    failed: Callable[[OSError], object],
    *,
    timeout_s: float = 10.0,
    limits: Limits = DEFAULT_LIMITS,
    buffer_bytes: int | None = None,
) -> Connector:
    """Connect to (host, port) and give the connection to `protocol`, or call `failed(error)`.

    The error is what connect(2) would raise, or ETIMEDOUT after `timeout_s`. `buffer_bytes` caps the kernel's buffers.
    Raise ValueError for a time-out that no timer can have, OSError if there is no socket (EMFILE, EAFNOSUPPORT).
    """
    check_s("linger_timeout_s", limits.linger_timeout_s)
    with closed_on_error(new_client(reactor.sockets, address, buffer_bytes=buffer_bytes)) as sock:
        connector = Connector(reactor, sock, protocol, failed, timeout_s, limits)
        connector.start(address)
        return connector


def open_udp(reactor: Reactor, address: Address, protocol: DatagramProtocol) -> Datagram:
    """Bind a UDP socket to (host, port), port 0 for any free port. Raise OSError as bind(2) does.

    A port in use is refused (EADDRINUSE): SO_REUSEADDR is never set.
    """
    with closed_on_error(bind_udp(reactor.sockets, address)) as sock:
        return Datagram(reactor, sock, protocol)


def connect_udp(reactor: Reactor, peer: Address, protocol: DatagramProtocol) -> Datagram:
    """Return a UDP socket that sends to `peer` and receives only from it. Raise OSError as connect(2) does.

    `send` needs no destination. ICMP errors reach `error_received`: "port unreachable" as ECONNREFUSED (udp(7)).
    """
    with closed_on_error(bind_udp(reactor.sockets, unspecified(peer))) as sock:
        sock.connect(peer)
        return Datagram(reactor, sock, protocol)
