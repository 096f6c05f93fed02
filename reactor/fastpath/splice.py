"""Splice: a bulk connection's bytes go back through a pipe, and none is copied. A room beside the simple path.

    socket ─► splice(2) ─► pipe ─► splice(2) ─► socket

Law: the Connection keeps its states, its computed interest and its bound. While it is OPEN and bulk comes, it uses a
Splice as its transport (`Connection.use_transport`), and goes back to its socket when anything else comes:

    receive     moves pages from the socket to the pipe, and says how many bytes
    send        moves pages from the pipe to the socket
    pending     is what is in the pipe; it counts towards the bound

Only for a protocol whose `data_received` writes back what it gets, and does nothing else with it (an echo): it is
handed a `Moved`, which has a length and no bytes.

A move fills the pipe up to the bound: up to twice what one receive may take, in less time. One move per readiness,
so that a hog waits its turn.

Putting back is always right and never loses a byte: what is still in the pipe is read into a SendBuffer, and the next
receive is the socket's own. So whatever splice(2) isn't sure of is left to recv(2): an urgent mark, at which splice
stops and says that nothing is there (or that the stream has ended!), a FIN, a pipe without room, a kernel that won't.

Linux only. Elsewhere, or without descriptors or pages for a pipe (pipe(7), pipe-user-pages-soft), connections are
copied as before. Measured in `benchmarks/`: a third to a half of the processor time of copying.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Protocol, cast

from reactor.buffer import Bytes, SendBuffer
from reactor.connection import OPEN, Connection
from reactor.sockets.errors import WOULD_BLOCK
from reactor.sockets.factory import SocketFactory
from reactor.sockets.opening import Socket

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has none
    fcntl = None  # type: ignore[assignment]

SMALL_MOVE_BYTES = 8192  # so little at once isn't bulk …
SMALL_MOVES = 16  # … after so many in a row
MOST_PIPES = 64  # two descriptors each
# Slots for 64 segments of 1,448 bytes, so that they aren't used up below the high-water mark of 64 KiB. The bytes in
# it are bounded by the connection. An unprivileged user may have 256 such pipes (pipe(7)).
PIPE_BYTES = 256 * 1024
COPIES_AFTER_TROUBLE = 256  # full receives, before a pipe is asked for again when there was none
WITHOUT_WAITING = getattr(os, "SPLICE_F_NONBLOCK", 2) | getattr(os, "SPLICE_F_MOVE", 1)
WONT_SPLICE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM})  # a kernel or a sandbox that doesn't


class Pipe(Protocol):
    """What is asked of a pipe. `KernelPipe` is one; a simulated network has another."""

    def fill(self, sock: Socket, most_bytes: int) -> int:
        """Move bytes from the socket into the pipe; 0 for none, whatever the reason. Raise OSError as recv(2)."""

    def drain(self, sock: Socket, most_bytes: int) -> int:
        """Move bytes from the pipe to the socket. Raise OSError as send(2)."""

    def read(self, most_bytes: int) -> bytes:
        """Take bytes out of the pipe."""

    def close(self) -> None:
        """Give the descriptors back, with whatever is in the pipe."""


class KernelPipe:
    """A pipe of Linux, as wide as we want it. Raise OSError when there are no descriptors or no pages for it."""

    __slots__ = ("_reader", "_writer")

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.fcntl(self._writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            self.close()
            raise

    def fill(self, sock: Socket, most_bytes: int) -> int:
        """Move bytes from the socket into the pipe: splice(2)."""
        try:
            return os.splice(sock.fileno(), self._writer, most_bytes, flags=WITHOUT_WAITING)
        except WOULD_BLOCK:
            return 0
        except OSError as error:
            if error.errno in WONT_SPLICE:
                return 0
            raise

    def drain(self, sock: Socket, most_bytes: int) -> int:
        """Move bytes from the pipe to the socket: splice(2)."""
        return os.splice(self._reader, sock.fileno(), most_bytes, flags=WITHOUT_WAITING)

    def read(self, most_bytes: int) -> bytes:
        """Take bytes out of the pipe: read(2)."""
        return os.read(self._reader, most_bytes)

    def close(self) -> None:
        """Close both ends."""
        os.close(self._reader)
        os.close(self._writer)


def pipes_on(sockets: SocketFactory) -> Callable[[], Pipe] | None:
    """Return what makes pipes on this network, or None where bytes can only be copied.

    A factory that has pipes of its own (`pipe()`) is asked; the sockets of any other must be the kernel's.
    """
    own: Callable[[], Pipe] | None = getattr(sockets, "pipe", None)
    if own is not None:
        return own
    return KernelPipe if hasattr(os, "splice") and hasattr(fcntl, "F_SETPIPE_SZ") else None


class Moved:
    """Bytes on their way through the pipe: what a protocol is handed in place of them, to be written back."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def __len__(self) -> int:
        """How many there are."""
        return self.count


class Splice:
    """One connection's pipe: a `Transport`."""

    __slots__ = (
        "_bytes_seen", "_connection", "_in_pipe_bytes", "_moved", "_pipe", "_small_moves", "_socket", "done", "useful",
    )  # fmt: skip

    def __init__(self, connection: Connection, pipe: Pipe) -> None:
        self._connection, self._socket, self._pipe = connection, connection.socket, pipe
        self._in_pipe_bytes = 0
        self._small_moves = 0  # in a row
        self._bytes_seen = 0
        self._moved = Moved()
        self.useful = False  # it has moved something
        self.done = False
        connection.use_transport(self)

    def __len__(self) -> int:
        """The number of bytes still to be sent."""
        return self._in_pipe_bytes

    def recv(self, size_bytes: int) -> Moved | bytes:
        """Fill the pipe up to the connection's bound; if that won't do, put everything back and receive bytes."""
        connection, count = self._connection, 0
        if connection.state is OPEN and self._small_moves < SMALL_MOVES:
            count = self._pipe.fill(self._socket, connection.limits.bound_bytes - self._in_pipe_bytes)
        if not count:
            self.give_back()
            return self._socket.recv(size_bytes)
        self.useful = True
        self._in_pipe_bytes += count
        self._small_moves = self._small_moves + 1 if count < SMALL_MOVE_BYTES else 0
        self._moved.count = count
        return self._moved

    def send(self, data: Bytes | Moved | Splice) -> int:
        """Send what is in the pipe; other bytes are written in the ordinary way."""
        if data is not self._moved and data is not self:
            self.give_back()
            return self._socket.send(cast(Bytes, data))
        count = self._pipe.drain(self._socket, self._in_pipe_bytes)
        self._in_pipe_bytes -= count
        return count

    def append(self, data: Bytes | Moved, start: int = 0) -> None:
        """Nothing is to be done for what is in the pipe already; other bytes must come after it."""
        if data is not self._moved:
            self.give_back().append(cast(Bytes, data), start)

    def peek(self) -> Splice:
        """Return what `send` takes for all that is pending."""
        return self

    def consume(self, count: int) -> None:
        """Nothing is to be done: `send` has counted."""

    def clear(self) -> None:
        """Forget what is in the pipe: the connection is lost, and closes it."""
        self._in_pipe_bytes = 0

    def rests(self) -> bool:
        """Tell whether nothing has come since this was last asked."""
        before, self._bytes_seen = self._bytes_seen, self._connection.bytes_received
        return before == self._bytes_seen

    def give_back(self) -> SendBuffer:
        """Let the connection copy again. What is in the pipe is pending still, and in order. Return its buffer."""
        rest = bytearray()
        while len(rest) < self._in_pipe_bytes:
            rest += self._pipe.read(self._in_pipe_bytes - len(rest))
        self.close()
        return self._connection.use_socket(rest)

    def close(self) -> None:
        """Give the pipe back, and forget what is in it."""
        if not self.done:
            self.done = True
            self._pipe.close()


class Splicer:
    """Who has a pipe, and who gets one. For protocols that echo.

    They call `consider` from `saturated`, and `forget` from `connection_lost`. The first full receive counts: waiting
    for more lets a queue grow in the kernel, after which each byte costs twice as much, spliced or not.
    `most_pipes` bounds the descriptors (two each) and the kernel's pages. When all are taken, one that rests is taken
    back; while none rests, the others are copied.
    """

    __slots__ = ("_most_pipes", "_new_pipe", "_splices", "_trouble")

    def __init__(self, new_pipe: Callable[[], Pipe], *, most_pipes: int = MOST_PIPES) -> None:
        self._new_pipe, self._most_pipes = new_pipe, most_pipes
        self._splices: dict[Connection, Splice] = {}  # longest without a look first
        self._trouble = 0  # so many more are copied before a pipe is asked for again

    def __len__(self) -> int:
        """How many connections have a pipe."""
        return sum(not splice.done for splice in self._splices.values())

    def consider(self, connection: Connection) -> None:
        """Give a pipe to a connection that is bulk, if there is one, and nothing of it is pending."""
        before = self._splices.get(connection)
        if before is not None and not before.done:
            return
        if before is not None and not before.useful:
            self._trouble = COPIES_AFTER_TROUBLE
            self.forget(connection)
        if connection.pending_bytes or connection.state is not OPEN:
            return
        if self._trouble:
            self._trouble -= 1
        elif len(self._splices) < self._most_pipes or self._take_one_back():
            try:
                pipe = self._new_pipe()
            except OSError:  # EMFILE, ENFILE, EPERM, ENOMEM: there is always copying
                self._trouble = COPIES_AFTER_TROUBLE
            else:
                self._splices[connection] = Splice(connection, pipe)

    def forget(self, connection: Connection) -> None:
        """A connection is lost: close its pipe."""
        splice = self._splices.pop(connection, None)
        if splice is not None:
            splice.close()

    def _take_one_back(self) -> bool:
        connection, splice = next(iter(self._splices.items()))
        del self._splices[connection]
        if splice.done or connection.closed:
            splice.close()
            return True
        if splice.rests():
            splice.give_back()
            return True
        self._splices[connection] = splice  # behind the others, to be looked at again
        return False
