"""What is logged about those who get no answer: a few lines of each kind, each with a source.

Law: a flood costs a counter, not log lines: these are limited by kind, and each reason is one. Where nobody reads lines
of this level, nothing is looked up and nothing put into words.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from echo7.logs.log import event as log_event
from echo7.logs.quiet import Quiet, also
from reactor.sockets.addresses import Address, format_address

LEVEL = logging.INFO

logger = logging.getLogger("echo7")


class DropLog:
    """Says what was dropped, for one server. `now` gives monotonic seconds."""

    __slots__ = ("_enabled", "_now", "_quiet")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._quiet = Quiet()
        self._enabled = logger.isEnabledFor(LEVEL)

    def note(self, reason: str, source: Callable[[], str], count: int = 1, event: str = "dropped") -> None:
        """Log that `count` were dropped for one reason, if a line about it is due; `source()` names one of them."""
        if not self._enabled:
            return
        held_back = self._quiet.ask(f"{event} {reason}", self._now(), count)
        if held_back is not None:
            name = source()
            text = f"{event.replace('_', ' ')}: {reason} of {name}{also(held_back)}"
            log_event(logger, LEVEL, event, text, reason=reason, source=name, held_back=held_back)


def describe_peer(peer: Address | None) -> str:
    """Return an address as a person writes it, also where there is none: errors from ICMP come without."""
    return "a source that isn't known" if peer is None else format_address(peer)


def describe_source(source: bytes) -> str:
    """Return what counts as one source (`rate.source_of`) as a person writes it; b"" stands for all of them."""
    if not source:
        return "all sources together"
    if len(source) == 4:
        return socket.inet_ntop(socket.AF_INET, source)
    return socket.inet_ntop(socket.AF_INET6, source.ljust(16, b"\0")) + "/64"
