"""The seams: where the world comes in, and where a simulated one can take its place.

Law: the product never asks whether it is being tested. It takes a selector, a clock, sockets and signals from whoever
makes the Reactor, and by default they are the standard library's. The first is a `selectors.BaseSelector`, the second a
function that returns monotonic seconds. The shapes of the others are here; the modules `socket` and `signal` have them.

With a SelectSelector, keep the process's limit of descriptors at 1,024: select(2) can't watch greater numbers.

A fifth seam goes the other way: an observer is told what the loop does.
"""

from __future__ import annotations

from collections.abc import Callable
from socket import socket as Socket
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from reactor.loop import Reactor
    from reactor.observe.trace import Event, Trace

Observer = Callable[["Event"], object]


class Handler(Protocol):
    """What the selector's `data` must be: the one thing that `Reactor.turn` knows how to call."""

    interest: int  # what the selector watches now; written by `Reactor.set_interest` alone
    closed: bool  # true from the moment of close: a stale event of the same batch is skipped

    def fileno(self) -> int:
        """Return the descriptor to watch; valid until `closed`."""

    def on_event(self, mask: int) -> None:
        """Act on readiness: `mask` holds selectors.EVENT_READ, EVENT_WRITE or both."""

    def abort(self, error: Exception | None = None) -> None:
        """Unregister and close at once; called by the loop when `on_event` has raised `error`."""


class SocketFactory(Protocol):
    """What is needed of a network. The `socket` module is one."""

    def socket(self, family: int, type: int) -> Socket:
        """Return a new socket, or raise OSError as socket(2) does."""

    def socketpair(self) -> tuple[Socket, Socket]:
        """Return two connected stream sockets (socketpair(2)), for wake-ups."""


class SignalSource(Protocol):
    """Where signals come from. The module `signal` is one; `reactor.testing` has another."""

    def signal(self, signum: int, handler: Any, /) -> Any:
        """Set a signal's handler and return the one before, as signal.signal does."""

    def getsignal(self, signum: int, /) -> Any:
        """Return a signal's handler."""

    def set_wakeup_fd(self, fd: int, /, *, warn_on_full_buffer: bool = True) -> int:
        """Have a byte written to `fd` for every signal; return the descriptor before, -1 for none."""


def new_trace(reactor: Reactor, observer: Observer) -> Trace:
    """Have a reactor that is being made tell an observer what it does (see `trace`), and import that only now."""
    from reactor.observe.trace import Trace

    return Trace(reactor, observer)
