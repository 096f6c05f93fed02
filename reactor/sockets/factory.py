"""What the core needs of the system. A simulation has its own sockets and signals, and splice its own transport."""

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
