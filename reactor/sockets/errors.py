"""What the errors of system calls mean for the owner of the socket.

Law: EAGAIN is not an error. An error caused by one peer's packets never stops the service. Only a broken socket is
closed. Every other error counts as a shortage (descriptors, memory) that will pass: its owner is suspended.
"""

from __future__ import annotations

import errno
import os

WOULD_BLOCK = (BlockingIOError, InterruptedError)
OUT_OF_MEMORY = frozenset({errno.ENOBUFS, errno.ENOMEM})
CONNECTING = frozenset({0, errno.EINPROGRESS, errno.EINTR, getattr(errno, "WSAEWOULDBLOCK", 0)})  # connect(2)
NO_ROOM_TO_WATCH = frozenset({errno.ENOMEM, errno.ENOSPC, errno.EEXIST})  # epoll_ctl(2); EEXIST: after a failed modify
BROKEN_SOCKET = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK})
# Caused by one peer's packets. Linux returns them from accept(2) too; its manual page says to continue.
ONE_PEER = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED ECONNREFUSED ECONNRESET EPROTO ENOPROTOOPT EOPNOTSUPP EPERM EACCES ETIMEDOUT EMSGSIZE "
        "ENETDOWN ENETUNREACH ENETRESET ENONET EHOSTDOWN EHOSTUNREACH ESOCKTNOSUPPORT EPROTONOSUPPORT"
    ).split()
    if hasattr(errno, name)
)

# Drop reasons of an endpoint. The last two are followed by the name of an errno: `send_EPERM`.
BUSY, TRUNCATED, CALLBACK, SEND, RECEIVE = "busy", "truncated", "callback", "send_", "receive_"
DROP_REASONS = {
    BUSY: "the kernel's send buffer stayed full, or an earlier datagram was held for it, or the endpoint closed",
    TRUNCATED: "the datagram was larger than the buffer for it",
    CALLBACK: "the protocol's callback raised an exception",
    SEND: "the kernel refused to send: a firewall (EPERM), no route, no buffer",
    RECEIVE: "the kernel reported an error instead of a datagram",
}


def os_error(code: int) -> OSError:
    """Return the exception for an errno, of the right subclass (BlockingIOError for EAGAIN)."""
    return OSError(code, os.strerror(code))


def errno_name(error: OSError) -> str:
    """Return a name like `ECONNRESET`, or the number of an errno without a name."""
    code = error.errno or 0
    return errno.errorcode.get(code, str(code))
