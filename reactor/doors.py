"""The doors of the core: what comes into a `Reactor` from outside, and what it tells.

    Reactor(selector=…, clock=…, sockets=…, signals=…, observer=…)

Law: the core never asks whether it is tested or watched. Its world comes in by these doors, by default the standard
library's own; a simulated world is anything else of the same shape. A selector is a `selectors.BaseSelector`, a clock
a function that returns monotonic seconds. What observes or speeds up a loop is a wrapper, chosen at construction, so a
plain loop pays nothing for it. With a SelectSelector, keep the limit of descriptors at 1,024 (select(2)).
"""

from __future__ import annotations

from collections.abc import Callable
from selectors import BaseSelector
from typing import Any, Protocol

from reactor.buffer import Bytes, SendBuffer
from reactor.timers import Timers


class Handler(Protocol):
    """What the selector's `data` must be: the one thing that `Reactor.turn` knows how to call."""

    interest: int  # what the selector watches; written by `Reactor.set_interest` alone
    closed: bool  # True from the moment of close: a stale event of the same batch is skipped

    def fileno(self) -> int:
        """Return the descriptor to watch; valid until `closed`."""

    def on_event(self, mask: int) -> None:
        """Act on readiness: `mask` holds selectors.EVENT_READ, EVENT_WRITE or both."""

    def abort(self, error: Exception | None = None) -> None:
        """Unregister and close at once. The loop calls this when `on_event` has raised `error`."""


class Transport(Protocol):
    """What may stand in for a connection's socket and send buffer (`Connection.use_transport`)."""

    def recv(self, size_bytes: int) -> Any:
        """Receive, as socket.recv does. The protocol is given what comes, and the core asks only for its length."""

    def send(self, data: Any) -> int:
        """Send what `recv` or `peek` has returned, or bytes; return how many went, as socket.send does."""

    def __len__(self) -> int:
        """The number of bytes still to be sent."""

    def append(self, data: Any, start: int = 0) -> None:
        """Keep what could not be sent, from byte `start` on."""

    def peek(self) -> Any:
        """Return all that is pending, to be handed to `send`."""

    def consume(self, count: int) -> None:
        """Forget `count` bytes that were sent."""

    def clear(self) -> None:
        """Forget everything that is pending."""


class Observer:
    """Sees what one loop does. Override what you need: everything here does nothing.

    The core asks once, at construction, for what it will use, and tells the rest. An observer changes nothing.
    """

    __slots__ = ()

    def attach(self, reactor: Any) -> None:
        """Called first, by the Reactor that is being made. Raise RuntimeError if it belongs to another loop already."""

    def detach(self) -> None:
        """Called in a child process that takes the loop over: tell nothing more."""

    def selector(self, selector: BaseSelector) -> BaseSelector:
        """Return what the loop is to ask: `selector`, or a wrapper around it."""
        return selector

    def timers(self) -> Timers:
        """Return the loop's timers."""
        return Timers()

    def guard(self, guard: Callable[..., None]) -> Callable[..., None]:
        """Return what calls every callback but `on_event`: `guard`, or a wrapper around it."""
        return guard

    def socket(self, handler: Handler, sock: Any) -> Any:
        """Return the object whose `recv`, `send` and so on `handler` is to call: `sock`, or a wrapper around it."""
        return sock

    def buffer(self, handler: Handler, pending: Bytes) -> SendBuffer:
        """Return a new send buffer for a connection, with `pending` in it."""
        return SendBuffer(pending)

    def tell(self, kind: str, who: object, **facts: Any) -> None:
        """Learn of one event, named by the core: `who` is a handler, a timer or None (`observe.trace` has the list)."""


NOTHING_OBSERVED = Observer()
