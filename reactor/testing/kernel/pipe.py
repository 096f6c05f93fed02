"""SplicePipe: a pipe that moves bytes from one simulated socket to another, as splice(2) does.

Law: splice says less than recv. At an urgent mark it stops and returns 0, and at the end of a stream it returns 0 too.
So 0 means only "ask recv".
"""

from __future__ import annotations

from typing import cast

from reactor.sockets.errors import WOULD_BLOCK
from reactor.sockets.opening import Socket
from reactor.testing.kernel.endpoint import SimulatedSocket
from reactor.testing.kernel.stream import StreamSocket
from reactor.testing.world import World


class SplicePipe:
    """See `reactor.fastpath.splice.Pipe`. It takes two descriptors; raise EMFILE when none are left."""

    __slots__ = ("_bytes", "_numbers", "_world", "faulty")

    def __init__(self, world: World) -> None:
        self.faulty = False  # no handler owns it, so no call on it fails
        self._world = world
        self._bytes = bytearray()
        self._numbers: list[int] = []
        fault = world.enter("pipe")
        try:
            if fault is not None:
                raise world.inject(fault).error()
            for _ in range(2):
                self._numbers.append(world.descriptors.take(cast(SimulatedSocket, self), is_socket=False))
        except OSError:
            self.close()
            raise

    def fill(self, sock: Socket, most_bytes: int) -> int:
        """Move bytes from a socket into the pipe; return 0 if splice finds none."""
        source = cast(StreamSocket, sock)
        if source.incoming is not None and source.incoming.mark == source.incoming.received:
            return 0
        try:
            data = source.recv(most_bytes)
        except WOULD_BLOCK:
            return 0
        self._bytes += data
        return len(data)

    def drain(self, sock: Socket, most_bytes: int) -> int:
        """Move bytes from the pipe to a socket. Raise OSError as send(2)."""
        count = sock.send(self._bytes[:most_bytes])
        del self._bytes[:count]
        return count

    def read(self, most_bytes: int) -> bytes:
        """Take bytes out of the pipe."""
        data = bytes(self._bytes[:most_bytes])
        del self._bytes[:most_bytes]
        return data

    def close(self) -> None:
        """Give the descriptors back."""
        while self._numbers:
            self._world.descriptors.give_back(self._numbers.pop())
