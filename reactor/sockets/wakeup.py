"""WakePair: two connected sockets. A byte written to one makes the other readable, which wakes the loop.

Law: the bytes carry no work, so losing some is harmless.
"""

from __future__ import annotations

import contextlib

from reactor.limits import WAKE_BYTES_PER_TURN
from reactor.sockets.errors import WOULD_BLOCK
from reactor.sockets.factory import SocketFactory
from reactor.sockets.opening import close_socket


class WakePair:
    """A socket pair, non-blocking at both ends. The loop watches `fileno()`; others write to `writer`."""

    __slots__ = ("_reader", "_writer", "detach", "fileno", "writer")

    def __init__(self, sockets: SocketFactory) -> None:
        self._reader, self._writer = sockets.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self.fileno, self.detach = self._reader.fileno, self._reader.detach
        self.writer = self._writer.fileno()

    def wake(self) -> None:
        """Make the reading end readable. Any thread may call this; it never blocks."""
        with contextlib.suppress(OSError):  # a full pair already holds a wake-up; a closed one has no reader
            self._writer.send(b"\0")

    def receive(self) -> bytes:
        """Return the bytes that wait, at most WAKE_BYTES_PER_TURN. Raise OSError as recv(2), but b"" for EAGAIN."""
        with contextlib.suppress(*WOULD_BLOCK):
            return self._reader.recv(WAKE_BYTES_PER_TURN)
        return b""

    def close(self) -> None:
        """Close both ends."""
        close_socket(self._reader)
        close_socket(self._writer)
