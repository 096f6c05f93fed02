"""Make sockets, and ask the kernel for what ours need.

Law: no module of `reactor` or `echo7` makes a socket except through a `SocketFactory`. The real one is the standard
library's `socket` module; a simulated network is anything else of the same shape. Options and addresses are decided
here, once, so that the modules about readiness need not speak of them.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
from collections.abc import Iterator

from reactor.limits import UDP_RECEIVE_BYTES
from reactor.sockets.addresses import WILDCARDS, Address, family_of
from reactor.sockets.factory import SocketFactory
from reactor.sockets.pktinfo import report_paths

Socket = socket.socket


RESET_ON_CLOSE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)  # struct linger, socket(7)


# A silent peer is given up after 180 + 4 × 30 s = five minutes (tcp(7)). The names differ by platform.
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 180, 30, 4


@contextlib.contextmanager
def closed_on_error(sock: Socket) -> Iterator[Socket]:
    """Close `sock` if the block raises: whoever makes a socket closes it if the next step fails."""
    try:
        yield sock
    except BaseException:
        sock.close()
        raise


def bind_tcp(sockets: SocketFactory, address: Address, *, buffer_bytes: int | None = None) -> Socket:
    """Return a bound, non-blocking TCP socket, not yet listening. Raise OSError as bind(2), ValueError for a name.

    Accepted sockets inherit what is set here (Linux and BSD), so a new connection costs no system call for it.
    """
    with closed_on_error(_new(sockets, address, socket.SOCK_STREAM, buffer_bytes)) as sock:
        set_stream_options(sock)
        if sys.platform == "win32":  # pragma: no cover - no other system has SO_EXCLUSIVEADDRUSE
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:  # only to be able to come back while old connections are in TIME_WAIT (socket(7))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        return sock


def bind_udp(sockets: SocketFactory, address: Address, *, buffer_bytes: int | None = None) -> Socket:
    """Return a bound, non-blocking UDP socket that reports the address asked. Raise as `bind_tcp` does.

    Without `buffer_bytes` it asks for a receive buffer as large as the system allows, up to `UDP_RECEIVE_BYTES`.
    SO_REUSEADDR is never set: on UDP it would let a second daemon steal every datagram in silence.
    """
    with closed_on_error(_new(sockets, address, socket.SOCK_DGRAM, buffer_bytes)) as sock:
        if address[0] in WILDCARDS:  # a socket with an address of its own can only answer from that
            report_paths(sock)
        if buffer_bytes is None:
            with contextlib.suppress(OSError):  # BSD refuses more than it allows; Linux gives what it allows
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_RECEIVE_BYTES)
        sock.bind(address)
        return sock


def new_client(sockets: SocketFactory, address: Address, *, buffer_bytes: int | None = None) -> Socket:
    """Return a non-blocking TCP socket for connecting to `address`. Raise as `bind_tcp` does."""
    with closed_on_error(_new(sockets, address, socket.SOCK_STREAM, buffer_bytes)) as sock:
        set_stream_options(sock)
        return sock


def set_stream_options(sock: Socket) -> None:
    """Ask for what every stream of ours needs: urgent bytes in their place, no Nagle delay, dead peers found."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # we write as much as we have at once anyway
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
    ):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def set_buffers(sock: Socket, size_bytes: int) -> None:
    """Cap the kernel's receive and send buffer; it takes twice this, for its own bookkeeping (socket(7))."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size_bytes)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size_bytes)


def reset_on_close(sock: Socket) -> None:
    """Have close(2) send RST instead of FIN, so that the peer can't take half a stream for a whole one (SO_LINGER)."""
    with contextlib.suppress(OSError):  # the peer has gone already (EINVAL on macOS)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


def connect_result(sock: Socket) -> int:
    """Return the errno with which a non-blocking connect has ended, 0 for success (connect(2), SO_ERROR).

    A connect to a port of this machine on which nobody listens can meet itself: the kernel picks the very port as
    the source, and the socket is its own peer (RFC 9293 §3.5, simultaneous open). Such a "connection" echoes
    everything and proves nothing. It counts as refused, which it was.
    """
    code: int = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    try:
        return code or (errno.ECONNREFUSED if sock.getsockname() == sock.getpeername() else 0)
    except OSError as error:  # ENOTCONN: connected, and reset before we came
        return error.errno or errno.ENOTCONN


def _new(sockets: SocketFactory, address: Address, kind: int, buffer_bytes: int | None) -> Socket:
    family = family_of(address)
    with closed_on_error(sockets.socket(family, kind)) as sock:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if buffer_bytes is not None:  # before listen(2): the window is agreed on in the handshake (tcp(7))
            set_buffers(sock, buffer_bytes)
        return sock
