"""The seams: where the world comes in, and where a simulated one can take its place.

Law: the product never asks whether it is being tested. It takes a selector, a clock, sockets and signals from whoever
makes the Reactor, and by default they are the standard library's. The first is a `selectors.BaseSelector`, the second a
function that returns monotonic seconds. The shapes of the others are here; the modules `socket` and `signal` have them.
"""

from __future__ import annotations

from socket import socket as Socket
from typing import Any, Protocol


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
