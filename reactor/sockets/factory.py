"""What the core needs of the operating system: sockets and signals. A simulation has its own."""

from __future__ import annotations

from socket import socket as Socket
from typing import Any, Protocol


class SocketFactory(Protocol):
    """Makes sockets. The module `socket` is one."""

    def socket(self, family: int, type: int) -> Socket:
        """Return a new socket, or raise OSError as socket(2) does."""

    def socketpair(self) -> tuple[Socket, Socket]:
        """Return two connected stream sockets (socketpair(2)), for wake-ups."""


class SignalSource(Protocol):
    """Delivers signals. The module `signal` is one."""

    def signal(self, signum: int, handler: Any, /) -> Any:
        """Set a signal's handler and return the previous one, as signal.signal does."""

    def getsignal(self, signum: int, /) -> Any:
        """Return a signal's handler."""

    def set_wakeup_fd(self, fd: int, /, *, warn_on_full_buffer: bool = True) -> int:
        """Write a byte to `fd` for every signal. Return the previous descriptor, -1 for none."""
