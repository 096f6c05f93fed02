"""Log lines about connections and datagrams that get no answer: a few for each drop reason, each with a source.

Law: a flood costs a counter, not log lines: each drop reason is a kind with its own limit. When the log level leaves
these lines out, no source is looked up and no text is made.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from echo7.logs.log import event as log_event
from echo7.logs.quiet import Quiet, also
from echo7.policy.rate import DEFAULT_PREFIX, SourcePrefix
from reactor.sockets.addresses import Address, format_address

LEVEL = logging.INFO

logger = logging.getLogger("echo7")


class DropLog:
    """Logs what one server drops. `now` returns monotonic seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._quiet = Quiet()
        self._enabled = logger.isEnabledFor(LEVEL)

    def note(self, reason: str, source: Callable[[], str], count: int = 1, event: str = "dropped") -> None:
        """Log that `count` were dropped for one reason, if a line is due; `source()` names one source."""
        if not self._enabled:
            return
        held_back = self._quiet.ask(f"{event} {reason}", self._now(), count)
        if held_back is not None:
            name = source()
            text = f"{event.replace('_', ' ')}: {reason} of {name}{also(held_back)}"
            log_event(logger, LEVEL, event, text, reason=reason, source=name, held_back=held_back)

    def full(self, limit: int) -> None:
        """Log that the server has no room for more connections, if a line is due."""
        held_back = self._quiet.ask("full", self._now())
        if held_back is not None:
            text = f"full: {limit:,} connections are open, new clients wait; raise --max-connections{also(held_back)}"
            log_event(logger, logging.WARNING, "full", text, limit=limit, held_back=held_back)


def describe_peer(peer: Address | None) -> str:
    """Return an address as text; errors from ICMP come without one."""
    return "an unknown source" if peer is None else format_address(peer)


def describe_source(source: bytes, prefix: SourcePrefix = DEFAULT_PREFIX) -> str:
    """Return a source (`SourcePrefix.source_of`) as text; b"" stands for all of them."""
    if not source:
        return "all sources together"
    host = socket.inet_ntop(socket.AF_INET if len(source) == 4 else socket.AF_INET6, source)
    bits = prefix.bits(source)
    return host if bits == len(source) * 8 else f"{host}/{bits}"
