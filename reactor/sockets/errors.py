"""What the errors of system calls mean for the owner of the socket.

Law: EAGAIN is not an error. An error caused by one peer's packet never stops the service; a shortage (descriptors,
memory) passes, so its owner waits; only a broken socket is given up.
"""

from __future__ import annotations

import errno
import os

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


def os_error(code: int) -> OSError:
    """Return the exception for an errno, of the right subclass (BlockingIOError for EAGAIN, and so on)."""
    return OSError(code, os.strerror(code))


def errno_name(error: OSError) -> str:
    """Return `ECONNRESET` and the like, or the number for one that has no name."""
    code = error.errno or 0
    return errno.errorcode.get(code, str(code))
