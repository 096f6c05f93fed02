"""The one door through which sockets enter, and what their addresses and errors are called.

Law: no module of `reactor` or `echo7` makes a socket but through a `SocketFactory`. The real one is the standard
library's `socket` module itself; a simulated network is anything else of the same shape. What the kernel is asked for
at birth (options, addresses) is decided here, once, so that the chapters about readiness don't have to speak of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Any

from reactor.control import report_paths
from reactor.limits import UDP_RECEIVE_BYTES
from reactor.seams import SocketFactory

Socket = socket.socket
Address = tuple[Any, ...]  # (host, port) for IPv4; (host, port, flow, scope id) for IPv6

# What an errno means for whoever holds the socket. Any other is taken for a shortage that will pass.
WOULD_BLOCK = (BlockingIOError, InterruptedError)  # not an error: the kernel says "later"
OUT_OF_MEMORY = frozenset({errno.ENOBUFS, errno.ENOMEM})  # the kernel's trouble, not the peer's: try again soon
CONNECTING = frozenset({0, errno.EINPROGRESS, errno.EINTR, getattr(errno, "WSAEWOULDBLOCK", 0)})  # connect(2)
NO_ROOM_TO_WATCH = frozenset({errno.ENOMEM, errno.ENOSPC})  # epoll_ctl(2)
BROKEN_SOCKET = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK})
# Errors that one peer's packets have caused. Linux hands them to accept(2) too, which says to go on as after EAGAIN.
ONE_PEER = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED ECONNREFUSED ECONNRESET EPROTO ENOPROTOOPT EOPNOTSUPP EPERM EACCES ETIMEDOUT EMSGSIZE "
        "ENETDOWN ENETUNREACH ENETRESET ENONET EHOSTDOWN EHOSTUNREACH ESOCKTNOSUPPORT EPROTONOSUPPORT"
    ).split()
    if hasattr(errno, name)
)
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - to recognise them
RESET_ON_CLOSE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)  # struct linger, socket(7)

# A silent peer is given up after 180 + 4 × 30 s = five minutes (tcp(7)). The names differ by platform.
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 180, 30, 4


def family_of(address: Address) -> socket.AddressFamily:
    """Return AF_INET or AF_INET6 for a numeric address. Raise ValueError for a name.

    Names are refused because looking one up blocks, and nothing on a loop may block: resolve them before the loop
    runs, or in a thread that hands the result in with `call_soon_threadsafe`.
    """
    host = address[0]
    number, percent, scope = host.partition("%")
    for family in (socket.AF_INET, socket.AF_INET6):
        if bool(percent) == bool(scope) and not (percent and family == socket.AF_INET):
            with contextlib.suppress(OSError):
                socket.inet_pton(family, number)
                return family
    raise ValueError(f"{host!r} is not a numeric IPv4 or IPv6 address; resolve names before they reach the loop")


def unspecified(address: Address) -> Address:
    """Return the wildcard of an address's family, with no port: bound to it, a socket gets both when it connects."""
    return WILDCARDS[family_of(address) == socket.AF_INET6], 0


def pack_host(host: str) -> bytes:
    """Return the 4 or 16 bytes of a numeric address, less its scope. Raise OSError for a name."""
    return socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host.partition("%")[0])


def os_error(code: int) -> OSError:
    """Return the exception for an errno, of the right subclass (BlockingIOError for EAGAIN, and so on)."""
    return OSError(code, os.strerror(code))


def errno_name(error: OSError) -> str:
    """Return `ECONNRESET` and the like, or the number for one that has no name."""
    code = error.errno or 0
    return errno.errorcode.get(code, str(code))


def format_address(address: Address) -> str:
    """Return `127.0.0.1:7` or `[fe80::1%eth0]:7`."""
    host, port = address[0], address[1]
    if ":" not in host:
        return f"{host}:{port}"
    scope = address[3] if len(address) > 3 and "%" not in host else 0
    return f"[{host}%{_interface_name(scope)}]:{port}" if scope else f"[{host}]:{port}"


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


def _interface_name(scope_id: int) -> str:
    with contextlib.suppress(OSError, AttributeError):
        return socket.if_indextoname(scope_id)
    return str(scope_id)
