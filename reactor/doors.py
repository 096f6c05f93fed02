"""The doors of the core: the interfaces by which a `Reactor` gets its parts and reports its events.

    Reactor(selector=…, clock=…, sockets=…, signals=…, observer=…)

Law: the core doesn't know whether it is tested or observed. The defaults are the standard library's; a simulation
passes objects of the same shape. A selector is a `selectors.BaseSelector`, a clock a function that returns monotonic
seconds. An observer or a faster part is chosen at construction, so a plain loop pays nothing for it. With a
SelectSelector, limit the process to 1,024 descriptors (select(2)).
"""

from __future__ import annotations

from collections.abc import Callable
from selectors import BaseSelector
from typing import Any, Protocol

from reactor.buffer import Bytes, SendBuffer
from reactor.timers import Timers


class Handler(Protocol):
    """What the selector keeps as `data`, and `Reactor.turn` calls."""

    interest: int  # what the selector watches; only `Reactor.set_interest` writes it
    closed: bool  # once True, a stale event of the same batch is skipped

    def fileno(self) -> int:
        """Return the descriptor, which is valid until `closed`."""

    def on_event(self, mask: int) -> None:
        """Act on readiness: `mask` is READ, WRITE or both."""

    def abort(self, error: Exception | None = None) -> None:
        """Unregister and close now. The loop calls this if `on_event` raises `error`."""


class Transport(Protocol):
    """Replaces a connection's socket and send buffer (`Connection.use_transport`)."""

    def recv(self, size_bytes: int) -> Any:
        """Receive, as socket.recv does. The core uses only the result's length and passes it to the protocol."""

    def send(self, data: Any) -> int:
        """Send bytes, or a result of `recv` or `peek`. Return the number sent, as socket.send does."""

    def __len__(self) -> int:
        """The number of bytes still to be sent."""

    def append(self, data: Any, start: int = 0) -> None:
        """Keep the unsent part, `data[start:]`."""

    def peek(self) -> Any:
        """Return all pending bytes, for `send`."""

    def consume(self, count: int) -> None:
        """Remove `count` sent bytes."""

    def clear(self) -> None:
        """Drop all pending bytes."""


class Observer:
    """Sees what one loop does, and changes nothing. By default each method does nothing: override what you need.

    The core asks it for parts once, when the loop or a handler is made. It reports other events with `tell`.
    """

    __slots__ = ()

    def attach(self, reactor: Any) -> None:
        """Called first, once, by the Reactor's constructor."""

    def detach(self) -> None:
        """Called in a forked child: report nothing more."""

    def selector(self, selector: BaseSelector) -> BaseSelector:
        """Return the loop's selector: `selector` or a wrapper around it."""
        return selector

    def timers(self) -> Timers:
        """Return the loop's timers."""
        return Timers()

    def guard(self, guard: Callable[..., None]) -> Callable[..., None]:
        """Return what calls every callback but `on_event`: `guard` or a wrapper around it."""
        return guard

    def socket(self, handler: Handler, sock: Any) -> Any:
        """Return the socket that `handler` will use: `sock` or a wrapper around it."""
        return sock

    def buffer(self, handler: Handler, pending: Bytes) -> SendBuffer:
        """Return a new send buffer for a connection, holding `pending`."""
        return SendBuffer(pending)

    def tell(self, kind: str, who: object, **facts: Any) -> None:
        """Receive one event (`observe.narrate` has the kinds). `who` is a handler, a timer or None."""


NOTHING_OBSERVED = Observer()
