"""Sockets that systemd has bound: port 7 without any privilege (sd_listen_fds(3)).

Law: each socket is checked before it is served. The variables are meant for one process: LISTEN_PID must be ours, and
they are removed, so that no child takes them for its own. A descriptor that is neither a listening TCP socket nor a UDP
socket is refused by name.

    [Socket]
    ListenStream=7
    ListenDatagram=7
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from echo7.sockets.adoption import HandedIn, adopted
from echo7.sockets.binding import BindError, Bound
from reactor.limits import BACKLOG

# SD_LISTEN_FDS_START
FIRST_DESCRIPTOR = 3
LONGEST_COUNT = 20


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
    if not (count.isascii() and count.isdigit() and len(count) <= LONGEST_COUNT):
        raise BindError(f"LISTEN_FDS is {count[:LONGEST_COUNT]!r}, not a number: let systemd set it, or unset it")
    bound, seen = Bound(is_prepared=True), set[tuple[int, int]]()
    for index in range(int(count)):
        name = names[index] if index < len(names) else ""
        sock = adopted(HandedIn, FIRST_DESCRIPTOR + index, f"({name or 'unnamed'}) from systemd")
        status = os.fstat(sock.fileno())
        if (identity := (status.st_dev, status.st_ino)) in seen:
            # the same socket under another number: served once
            sock.close()
        else:
            seen.add(identity)
            (bound.tcp if sock.type == socket.SOCK_STREAM else bound.udp).append(sock)
    if not count.strip("0"):
        return None
    for wanted, found in ((tcp, bound.tcp), (udp, bound.udp)):
        while found and not wanted:
            found.pop().close()
    if not (bound.tcp or bound.udp):
        raise BindError("systemd hands in no socket of the transport that is left; drop --no-tcp or --no-udp")
    bound.configure(backlog, buffer_bytes)
    return bound
