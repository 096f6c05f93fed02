"""Descriptors that only the pages use, so that they can be fetched when all others are taken.

    spare, spare, spare ─► accept: one is closed, the connection takes its place ─► close: a new spare takes its place

Law: between closing a spare and accept(2), and between closing a connection and the new spare, nothing else runs. So
no other part of the process can take the descriptor.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

from reactor.sockets.factory import SocketFactory
from reactor.sockets.opening import Socket


class Reserve:
    """Up to `count` spare descriptors; one more is what they are copied from."""

    __slots__ = ("_count", "_lent", "_origin", "_spares")

    def __init__(self, sockets: SocketFactory, count: int) -> None:
        self._origin = sockets.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._count, self._lent = count, 0
        self._spares: list[Socket] = []
        self._fill()

    def accept(self, accept: Callable[[], tuple[socket.socket, Any]]) -> tuple[Socket, Any]:
        """Accept a connection in the place of a spare. Raise OSError as accept(2) does."""
        if self._spares:
            self._spares.pop().close()
        try:
            accepted, peer = accept()
        except OSError:
            self._fill()
            raise
        self._lent += 1
        return Lent(self, accepted), peer

    def returned(self) -> None:
        """Take a new spare for a connection that has just been closed."""
        self._lent -= 1
        self._fill()

    def close(self) -> None:
        """Close the spares; open connections keep theirs."""
        self._count = 0
        for sock in (self._origin, *self._spares):
            sock.close()
        self._spares.clear()

    def _fill(self) -> None:
        with contextlib.suppress(OSError):  # EMFILE: the rest is taken later
            while len(self._spares) + self._lent < self._count:
                self._spares.append(self._origin.dup())


class Lent(socket.socket):
    """An accepted socket in the place of a spare."""

    def __init__(self, reserve: Reserve, accepted: socket.socket) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, accepted.detach())
        self._reserve = reserve

    def close(self) -> None:
        """Close the socket, and give the place back."""
        if self.fileno() >= 0:
            super().close()
            self._reserve.returned()


class ReservedListening(socket.socket):
    """A listening socket that accepts into a reserve. It owns the descriptor of `listening` from now on."""

    def __init__(self, reserve: Reserve, listening: socket.socket) -> None:
        super().__init__(listening.family, listening.type, listening.proto, listening.detach())
        self._reserve = reserve

    def accept(self) -> tuple[Socket, Any]:
        """Accept a connection: accept(2)."""
        return self._reserve.accept(super().accept)
