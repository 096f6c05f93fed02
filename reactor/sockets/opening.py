"""Make sockets and set their options.

Law: no module of `reactor` or `echo7` makes a socket except through a `SocketFactory`: the module `socket`, or a
simulated network. All options are set here.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
from collections.abc import Iterator

from reactor.limits import UDP_BUFFER_BYTES
from reactor.sockets.addresses import WILDCARDS, Address, family_of, is_mapped
from reactor.sockets.factory import SocketFactory
from reactor.sockets.pktinfo import report_paths

Socket = socket.socket
RESET_ON_CLOSE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)  # struct linger, socket(7)
SEND_BUFFER_FORCED = [32] if sys.platform == "linux" else []  # SO_SNDBUFFORCE, which Python's socket module lacks
# A silent peer counts as dead after 180 + 4 × 30 s = five minutes (tcp(7)).
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 180, 30, 4
KEEPALIVE = {"TCP_KEEPINTVL": KEEPALIVE_INTERVAL_S, "TCP_KEEPCNT": KEEPALIVE_PROBES}
KEEPALIVE["TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE"] = KEEPALIVE_IDLE_S
STREAM_OPTIONS: list[tuple[int, int, int]] = [
    (socket.SOL_SOCKET, socket.SO_OOBINLINE, 1),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *((socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in KEEPALIVE.items() if hasattr(socket, name)),
]


class ServingSocket(socket.socket):
    """A bound socket that looks up its family and type once: `accept` asks for both each time, which takes 2 µs.

    `multiprocessing` can't send it to another process.
    """

    __slots__ = ("_family", "_type")

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
        super().__init__(family, type, proto, fileno)
        self._family, self._type = super().family, super().type

    @property
    def family(self) -> socket.AddressFamily:
        """The address family."""
        return self._family

    @property
    def type(self) -> socket.SocketKind:
        """The type."""
        return self._type


@contextlib.contextmanager
def closed_on_error(sock: Socket) -> Iterator[Socket]:
    """Close `sock` if the block raises."""
    try:
        yield sock
    except BaseException:
        sock.close()
        raise


def bind_tcp(sockets: SocketFactory, address: Address, *, buffer_bytes: int | None = None) -> Socket:
    """Return a bound, non-blocking TCP socket, not yet listening. Raise OSError as bind(2), ValueError for a name.

    Accepted sockets inherit these options (Linux, BSD), so a new connection costs no system call for them.
    """
    with closed_on_error(_new(sockets, address, socket.SOCK_STREAM, buffer_bytes)) as sock:
        set_stream_options(sock)
        if sys.platform == "win32":  # pragma: no cover - no other system has SO_EXCLUSIVEADDRUSE
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:  # bind even while old connections are in TIME_WAIT (socket(7))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        if type(sock) is not socket.socket:  # a simulated one, or another program's
            return sock
        serving = ServingSocket(sock.family, sock.type, sock.proto, sock.detach())
        serving.setblocking(False)
        return serving


def bind_udp(sockets: SocketFactory, address: Address, *, buffer_bytes: int | None = None) -> Socket:
    """Return a bound, non-blocking UDP socket that reports the address asked. Raise as `bind_tcp` does.

    Without `buffer_bytes`, both buffers are as large as the system allows, up to `UDP_BUFFER_BYTES`. Packets that wait
    for ARP fill the send buffer, so with CAP_NET_ADMIN it may exceed net.core.wmem_max.
    SO_REUSEADDR is never set: on UDP it would let a second process take every datagram unnoticed.
    """
    with closed_on_error(_new(sockets, address, socket.SOCK_DGRAM, buffer_bytes)) as sock:
        if address[0] in WILDCARDS:  # any other socket can only answer from its own address
            report_paths(sock)
        if buffer_bytes is None:
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF, *SEND_BUFFER_FORCED):
                with contextlib.suppress(OSError):  # BSD refuses too much; Linux reduces it
                    sock.setsockopt(socket.SOL_SOCKET, option, UDP_BUFFER_BYTES)
        sock.bind(address)
        return sock


def new_client(sockets: SocketFactory, address: Address, *, buffer_bytes: int | None = None) -> Socket:
    """Return a non-blocking TCP socket for connecting to `address`. Raise as `bind_tcp` does."""
    with closed_on_error(_new(sockets, address, socket.SOCK_STREAM, buffer_bytes)) as sock:
        set_stream_options(sock)
        return sock


def set_stream_options(sock: Socket) -> None:
    """Keep urgent bytes in the stream, turn Nagle's delay off, find dead peers with keepalive."""
    for option in STREAM_OPTIONS:
        sock.setsockopt(*option)


def set_buffers(sock: Socket, size_bytes: int) -> None:
    """Cap the kernel's receive and send buffers. The kernel doubles the size for its bookkeeping (socket(7))."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size_bytes)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size_bytes)


def reset_on_close(sock: Socket) -> None:
    """Make close(2) send RST in place of FIN, so the peer knows that the stream is incomplete (SO_LINGER)."""
    with contextlib.suppress(OSError):  # EINVAL on macOS, after the peer's RST
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


def close_socket(sock: Socket) -> None:
    """Close a socket. Ignore an error: other code may have closed the descriptor (EBADF)."""
    try:  # noqa: SIM105 - faster than contextlib.suppress, for each connection
        sock.close()
    except OSError:
        pass


def connect_result(sock: Socket) -> int:
    """Return the errno of a finished non-blocking connect, 0 for success (connect(2), SO_ERROR).

    A socket that connected to itself counts as refused. It happens on a local port with no listener, if the kernel
    chooses that port as the source (RFC 9293 §3.5, simultaneous open).
    """
    code: int = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    try:
        return code or (errno.ECONNREFUSED if sock.getsockname() == sock.getpeername() else 0)
    except OSError as error:  # ENOTCONN: connected, and reset since
        return error.errno or errno.ENOTCONN


def _new(sockets: SocketFactory, address: Address, kind: int, buffer_bytes: int | None) -> Socket:
    family = family_of(address)
    with closed_on_error(sockets.socket(family, kind)) as sock:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not is_mapped(address)))
        if buffer_bytes is not None:  # before listen(2): the handshake fixes the window scale (tcp(7))
            set_buffers(sock, buffer_bytes)
        return sock
