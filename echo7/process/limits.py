"""How many descriptors the process may have, and so how many connections.

Law: the soft limit is a default for programs that don't ask; a server asks. It is raised to the hard one at start, and
what the service itself needs is kept back, so that a full house doesn't leave it without a descriptor.
"""

from __future__ import annotations

import contextlib
import selectors
import socket

from reactor.fastpath.splice import MOST_PIPES, pipes_on

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

KEPT_BACK = 32  # for listeners, endpoints, the log, the waker, the selector, and a little room
SELECT_DESCRIPTORS = 512  # FD_SETSIZE on Windows, the only platform whose default selector is select(2)
WITHOUT_LIMIT = 1_000_000  # where the system says "unlimited"


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open descriptors to the hard one (getrlimit(2)). Return what holds now."""
    if resource is None:
        return SELECT_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS refuses to go to "unlimited"
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    limit = WITHOUT_LIMIT if soft == resource.RLIM_INFINITY else soft
    by_select = issubclass(selectors.DefaultSelector, selectors.SelectSelector)
    return min(limit, SELECT_DESCRIPTORS) if by_select else limit


def default_pipes(descriptors: int) -> int:
    """Return how many bulk connections may have a pipe of two descriptors: an eighth of all at the most."""
    return min(MOST_PIPES, descriptors // 16) if pipes_on(socket) is not None else 0


def default_max_connections(descriptors: int, pipes: int = 0) -> int:
    """Return how many connections leave the service the descriptors that it needs itself, and `pipes` theirs."""
    return max(1, descriptors - KEPT_BACK - 2 * pipes)
