"""How many descriptors a process may have, and so how many connections.

Law: the soft limit is a default for programs that don't ask for more. A server raises it to the hard limit at its
start, and keeps some back, in proportion, so that a service with all its connections still has descriptors for itself.
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

# with fewer, the service itself has no room
LEAST_DESCRIPTORS = 16
# the standard ones, the log, the selector, the waker, the notifier
OWN_DESCRIPTORS = 8
# to spare, for a restart, metrics and name look-ups
MOST_SPARE, SPARE_SHARE = 20, 8
# clients of --metrics: a part of all descriptors, within bounds
PLACES_PART, FEWEST_PLACES, MOST_PLACES = 64, 4, 256
# FD_SETSIZE on Windows, the only platform whose default selector is select(2)
SELECT_DESCRIPTORS = 512
# where the system says "unlimited"
WITHOUT_LIMIT = 1_000_000


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open descriptors to the hard limit (getrlimit(2)). Return the new limit."""
    if resource is None:
        return SELECT_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS refuses "unlimited"
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    limit = WITHOUT_LIMIT if soft == resource.RLIM_INFINITY else soft
    by_select = issubclass(selectors.DefaultSelector, selectors.SelectSelector)
    return min(limit, SELECT_DESCRIPTORS) if by_select else limit


def default_pipes(descriptors: int, workers: int = 1) -> int:
    """Return how many bulk connections of one process may have a pipe of two descriptors.

    Their descriptors are at most an eighth of all, and all workers share what one user may have.
    """
    return min(max(1, MOST_PIPES // workers), descriptors // 16) if pipes_on(socket) is not None else 0


def page_places(descriptors: int) -> int:
    """Return how many clients of `--metrics` may be connected at once, each with a descriptor in reserve."""
    return max(FEWEST_PLACES, min(MOST_PLACES, descriptors // PLACES_PART))


def kept_back(descriptors: int, sockets: int = 0) -> int:
    """Return how many descriptors the process keeps for itself: for its sockets, and in proportion to the limit."""
    return OWN_DESCRIPTORS + sockets + min(MOST_SPARE, descriptors // SPARE_SHARE)


def default_max_connections(descriptors: int, sockets: int, pipes: int) -> int:
    """Return how many connections fit, with descriptors left for the service itself, its `sockets` and `pipes`."""
    return max(1, descriptors - kept_back(descriptors, sockets) - 2 * pipes)
