"""Sockets that systemd has bound: port 7 without any privilege (sd_listen_fds(3)).

Law: each socket is checked before it is served. The variables are meant for one process: LISTEN_PID must be ours, and
they are removed, so that no child takes them for its own. A descriptor that is neither a listening TCP socket nor a UDP
socket is refused by name.

    [Socket]
    ListenStream=7
    ListenDatagram=7
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping
from typing import Any

from echo7.sockets.binding import BindError, Bound
from reactor.limits import BACKLOG
from reactor.sockets.opening import set_stream_options
from reactor.sockets.pktinfo import report_paths

# SD_LISTEN_FDS_START
FIRST_DESCRIPTOR = 3


def inherited(
    environment: MutableMapping[str, str] = os.environ,
    *,
    tcp: bool = True,
    udp: bool = True,
    backlog: int = BACKLOG,
    buffer_bytes: int | None = None,
) -> Bound | None:
    """Return the sockets that systemd hands in, or None when there are none. Raise BindError for a wrong kind.

    The options are those of `bind_all`. Sockets of a transport that isn't wanted are closed.
    """
    pid, count = environment.get("LISTEN_PID"), environment.get("LISTEN_FDS")
    if pid != str(os.getpid()) or not count:
        return None
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    for variable in ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        environment.pop(variable, None)
    if not (count.isascii() and count.isdigit()):
        raise BindError(f"LISTEN_FDS is {count!r}, not a number: let systemd set it, or unset it")
    bound = Bound()
    for index in range(int(count)):
        name = names[index] if index < len(names) else ""
        _take(bound, FIRST_DESCRIPTOR + index, name or "unnamed")
    if not count.strip("0"):
        return None
    for wanted, found in ((tcp, bound.tcp), (udp, bound.udp)):
        while found and not wanted:
            found.pop().close()
    if not (bound.tcp or bound.udp):
        raise BindError("systemd hands in no socket of the transport that is left; drop --no-tcp or --no-udp")
    bound.configure(backlog, buffer_bytes)
    return bound


class HandedIn(socket.socket):
    """A socket that another process has made and bound."""

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept, and set the options that connections queued before our start couldn't inherit from the listener."""
        sock, address = super().accept()
        # the client has gone already
        with contextlib.suppress(OSError):
            set_stream_options(sock)
        return sock, address


def adopted(kind: type[socket.socket], descriptor: int, origin: str) -> socket.socket:
    """Return a socket for an inherited descriptor, which no child inherits. Raise BindError."""
    try:
        sock = kind(fileno=descriptor)
    except OSError as error:
        raise BindError(f"descriptor {descriptor} {origin} is no socket: {error.strerror}") from None
    sock.setblocking(False)
    sock.set_inheritable(False)
    return sock


def _take(bound: Bound, descriptor: int, name: str) -> None:
    sock = adopted(HandedIn, descriptor, f"({name}) from systemd")
    internet = sock.family in (socket.AF_INET, socket.AF_INET6)
    if internet and sock.type == socket.SOCK_DGRAM:
        report_paths(sock)
        bound.udp.append(sock)
    elif internet and sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        set_stream_options(sock)
        bound.tcp.append(sock)
    else:
        raise BindError(
            f"descriptor {descriptor} ({name}) from systemd is neither a listening TCP nor a UDP socket over IP: "
            "use ListenStream= and ListenDatagram= with a port or an IP address, and Accept=no"
        )
