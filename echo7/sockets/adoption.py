"""Sockets that another process or the library's user has made: checked, and made like our own.

Law: an adopted socket is served as one that `binding` has made, or it is refused in one line that names it. Its maker
may have set options that change what a read, a write or readiness means (several datagrams in one, errors in a queue
that keeps the socket ready, a close that resets). They are reset. Options that only tune or restrict (buffers, marks,
interfaces, filters, deferred accepts) stay as they are.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import sys
from typing import Any

from echo7.sockets.binding import BindError, Bound, reaches_many
from reactor.sockets.addresses import WILDCARDS, format_address
from reactor.sockets.opening import STREAM_OPTIONS, ServingSocket, closed_on_error
from reactor.sockets.pktinfo import report_paths

INTERNET = (socket.AF_INET, socket.AF_INET6)
# Linux's number, which some Pythons lack a name for
SO_PROTOCOL: int = getattr(socket, "SO_PROTOCOL", 38 if sys.platform == "linux" else -1)
MPTCP = 262
PROTOCOLS = {socket.SOCK_STREAM: {0, socket.IPPROTO_TCP, MPTCP}, socket.SOCK_DGRAM: {0, socket.IPPROTO_UDP}}
BY_SYSTEMD = "use ListenStream= and ListenDatagram= with a port or an IP address, and Accept=no"
NO_LINGER = struct.pack("ii", 0, 0)

# (level, option, the value of a new socket). The numbers are Linux's; elsewhere few of them exist.
Option = tuple[int, int, int | bytes]
EVERYWHERE: list[Option] = [
    (socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER),
    (socket.SOL_SOCKET, socket.SO_DONTROUTE, 0),
    (socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1),
    # with it, the kernel would answer from a subnet's broadcast address
    (socket.SOL_SOCKET, socket.SO_BROADCAST, 0),
]
LINUX: list[Option] = [
    # no checksum; time stamps, counts of losses, marks and priorities, as control data or in the error queue
    *((socket.SOL_SOCKET, number, 0) for number in (11, 29, 35, 37, 40, 41, 63, 64, 65, 75, 82)),
    # SO_PEEK_OFF
    (socket.SOL_SOCKET, 42, -1),
    # TCP_CORK, TCP_INQ
    *((socket.IPPROTO_TCP, number, 0) for number in (3, 36)),
    # UDP_CORK, UDP_ENCAP, UDP_NO_CHECK6_TX, UDP_SEGMENT, UDP_GRO: held back, decapsulated, cut up, put together
    *((socket.IPPROTO_UDP, number, 0) for number in (1, 100, 101, 103, 104)),
    # IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, IPV6_DONTFRAG: fragment what is too large, as by default
    (socket.IPPROTO_IP, 10, 1),
    (socket.IPPROTO_IPV6, 23, 1),
    (socket.IPPROTO_IPV6, 62, 0),
    # the error queues, and control data beside the address that was asked
    *((socket.IPPROTO_IP, number, 0) for number in (6, 7, 11, 12, 13, 18, 20, 23, 25, 26)),
    *((socket.IPPROTO_IPV6, number, 0) for number in (2, 3, 4, 5, 8, 11, 25, 31, 33, 51, 53, 56, 58, 60, 66, 74, 77)),
]


class HandedIn(ServingSocket):
    """A socket that another process has made and bound."""

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept, and set the options that connections queued before our start couldn't inherit from the listener."""
        sock, address = super().accept()
        _set_options(sock)
        return sock, address


def adopted(kind: type[ServingSocket], descriptor: int, origin: str) -> socket.socket:
    """Return a prepared socket for an inherited descriptor, which no child inherits. Raise BindError and close it."""
    try:
        sock = kind(fileno=descriptor)
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BindError(f"descriptor {descriptor} {origin} is no socket: {reason}") from None
    with closed_on_error(sock):
        prepare(sock, f"descriptor {descriptor} {origin}", BY_SYSTEMD)
        sock.set_inheritable(False)
        return sock


def check(bound: Bound) -> None:
    """Prepare sockets that a caller of the library has made. Raise BindError; then they are still the caller's."""
    seen: set[int] = set()
    for transport, kind, found in (("tcp", socket.SOCK_STREAM, bound.tcp), ("udp", socket.SOCK_DGRAM, bound.udp)):
        for sock in found:
            name = f"the {transport} socket with descriptor {sock.fileno()}"
            prepare(sock, name, f"give {'a listening' if transport == 'tcp' else 'an unconnected'} socket")
            if sock.type != kind:
                raise BindError(f"{name} is of type {sock.type.name}; give it under its own transport")
            if sock.fileno() in seen:
                raise BindError(f"{name} is given twice; give it once")
            seen.add(sock.fileno())
    bound.is_prepared = True


def prepare(sock: socket.socket, name: str, remedy: str) -> None:
    """Make a socket like our own: non-blocking, without options that change what it does. Raise BindError."""
    try:
        fault = _fault_of(sock)
    except OSError as error:
        raise BindError(f"{name} can't be used: {error.strerror}; {remedy}") from None
    if fault:
        raise BindError(f"{name} can't be served over TCP or UDP: {fault}; {remedy}")
    sock.setblocking(False)
    _stop_signals(sock)
    _set_options(sock)
    # any other socket can only answer from its own address
    if sock.type == socket.SOCK_DGRAM and sock.getsockname()[0] in WILDCARDS:
        report_paths(sock)


def _fault_of(sock: socket.socket) -> str:
    """Return why a socket can't be served, or an empty text."""
    if sock.family not in INTERNET:
        return f"its address family is {getattr(sock.family, 'name', sock.family)}"
    protocol = 0
    # only Linux and FreeBSD tell
    with contextlib.suppress(OSError):
        protocol = sock.getsockopt(socket.SOL_SOCKET, SO_PROTOCOL)
    if protocol not in PROTOCOLS.get(sock.type, ()):
        return f"it is of type {getattr(sock.type, 'name', sock.type)}, IP protocol {protocol}"
    with contextlib.suppress(OSError):
        return f"it is connected to {format_address(sock.getpeername())}"
    if sock.type == socket.SOCK_STREAM:
        return "" if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) else "it doesn't listen"
    if not sock.getsockname()[1]:
        return "it isn't bound to a port"
    if _is_shut_down(sock):
        return "it has been shut down"
    return "its address is a multicast or broadcast address" if reaches_many(socket, sock.getsockname()) else ""


def _is_shut_down(sock: socket.socket) -> bool:
    """Tell whether a UDP socket was shut down for reading: it would be ready for ever."""
    hung_up = getattr(select, "POLLRDHUP", 0)
    if not hung_up:  # pragma: no cover - this system has no POLLRDHUP
        return False
    poll = select.poll()
    poll.register(sock, hung_up)
    return any(mask & (hung_up | select.POLLHUP) for _, mask in poll.poll(0))


def _stop_signals(sock: socket.socket) -> None:
    """Turn O_ASYNC off: the kernel would send SIGIO, which ends a process, at each arrival."""
    if hasattr(socket, "AF_UNIX"):  # pragma: no branch - Windows has no fcntl
        import fcntl

        flags = fcntl.fcntl(sock, fcntl.F_GETFL)
        fcntl.fcntl(sock, fcntl.F_SETFL, flags & ~fcntl.FASYNC)


def _set_options(sock: socket.socket) -> None:
    options = [*EVERYWHERE, *(LINUX if sys.platform == "linux" else ())]
    if sock.type == socket.SOCK_STREAM:
        options += STREAM_OPTIONS
    for level, name, value in options:
        # another protocol, family or kernel lacks it, or the client has gone already
        with contextlib.suppress(OSError):
            sock.setsockopt(level, name, value)
