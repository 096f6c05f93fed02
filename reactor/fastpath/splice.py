"""Splice: sends a bulk connection's bytes back through a pipe, without copying them.

    socket ─► splice(2) ─► pipe ─► splice(2) ─► socket

Law: the Connection keeps its states, its computed interest and its high-water mark. While it is OPEN and bulk data
arrives, it uses a Splice as its transport (`Connection.use_transport`):

    receive     move pages from the socket to the pipe; then again, if all of them could be sent
    send        move pages from the pipe to the socket
    pending     the bytes in the pipe: at most `Limits.pipe_bytes` or `bound_bytes`, whichever is more

Only for a protocol that does nothing with data but write it back (an echo): it gets a `Moved`, which has a length and
no bytes.

Going back to the socket is always correct: the bytes in the pipe are read into a SendBuffer, and recv(2) comes next.
So recv(2) handles every case in which splice(2) moves nothing: an urgent mark (splice reports "nothing", or even the
end of the stream), a FIN, a full pipe, a kernel without splice.

Linux only. Elsewhere, or without descriptors or pages for a pipe (pipe(7), pipe-user-pages-soft), bytes are copied.
Measured in `benchmarks/`: about half of the processor time of copying.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Protocol, cast

from reactor.buffer import Bytes, SendBuffer
from reactor.connection import OPEN, Connection
from reactor.loop import READ
from reactor.sockets.errors import WOULD_BLOCK
from reactor.sockets.factory import SocketFactory
from reactor.sockets.opening import Socket
from reactor.sockets.watchlist import PROCESS

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has none
    fcntl = None  # type: ignore[assignment]

SMALL_MOVE_BYTES = 8192  # fewer bytes aren't bulk …
SMALL_MOVES = 16  # … after this many small moves in a row
# Half of what the pipes of an unprivileged user may have together (pipe(7), pipe-user-pages-soft: 64 MiB). Beyond that,
# every new pipe of the user, in any program, is tiny. Each pipe takes two descriptors.
MOST_PIPES = 32
# The largest pipe that the kernel gives everybody by default, and one for a system that allows less.
PIPE_BYTES, SMALLER_PIPE_BYTES = 1024 * 1024, 256 * 1024
# One connection's moves come in a row while its bytes are in the processor's caches, and its client is woken once for
# all. A round is bounded for all together, because every other client waits for the end of it.
MOVES_IN_A_ROW, ROUND_BYTES = 4, 16 * 1024 * 1024
COPIES_AFTER_TROUBLE = 256  # full receives until the next attempt to get a pipe
WITHOUT_WAITING = getattr(os, "SPLICE_F_NONBLOCK", 2) | getattr(os, "SPLICE_F_MOVE", 1)
WONT_SPLICE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM})  # a kernel or sandbox without splice


class Pipe(Protocol):
    """A pipe: `KernelPipe`, or a simulated network's."""

    def fill(self, sock: Socket, most_bytes: int) -> int:
        """Move bytes from the socket into the pipe. Return 0 for none. Raise OSError as recv(2)."""

    def drain(self, sock: Socket, most_bytes: int) -> int:
        """Move bytes from the pipe to the socket. Raise OSError as send(2)."""

    def read(self, most_bytes: int) -> bytes:
        """Read bytes from the pipe."""

    def close(self) -> None:
        """Close both ends and drop what is in the pipe."""


class KernelPipe:
    """A pipe of PIPE_BYTES or SMALLER_PIPE_BYTES, on Linux. Raise OSError without descriptors or pages for it."""

    __slots__ = ("_reader", "_writer")

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            try:
                fcntl.fcntl(self._writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            except PermissionError:
                fcntl.fcntl(self._writer, fcntl.F_SETPIPE_SZ, SMALLER_PIPE_BYTES)
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
        """Read bytes from the pipe: read(2)."""
        return os.read(self._reader, most_bytes)

    def close(self) -> None:
        """Close both ends."""
        os.close(self._reader)
        os.close(self._writer)


def pipes_on(sockets: SocketFactory) -> Callable[[], Pipe] | None:
    """Return a function that makes pipes: the factory's `pipe`, else `KernelPipe`, or None if there is no splice(2)."""
    own: Callable[[], Pipe] | None = getattr(sockets, "pipe", None)
    if own is not None:
        return own
    return KernelPipe if hasattr(os, "splice") and hasattr(fcntl, "F_SETPIPE_SZ") else None


class Moved:
    """Stands for bytes in the pipe: a protocol gets it in place of data, and writes it back."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def __len__(self) -> int:
        """The number of bytes."""
        return self.count


class Splice:
    """One connection's pipe: a `Transport`."""

    __slots__ = (
        "_bytes_seen", "_connection", "_in_pipe_bytes", "_in_run", "_moved", "_moved_much", "_open", "_pipe",
        "_process_id", "_small_moves", "_socket", "done", "useful",
    )  # fmt: skip

    def __init__(self, connection: Connection, pipe: Pipe, splices: set[Splice]) -> None:
        self._connection, self._socket, self._pipe = connection, connection.socket, pipe
        self._in_pipe_bytes = 0
        self._small_moves = 0  # in a row
        self._bytes_seen = 0
        self._moved = Moved()
        self._in_run = self._moved_much = False
        self._process_id = PROCESS.id
        self.useful = False  # has moved bytes
        self.done = False
        self._open = splices  # all that share a round
        splices.add(self)
        connection.use_transport(self)

    def __len__(self) -> int:
        """The number of bytes still to be sent."""
        return self._in_pipe_bytes

    def recv(self, size_bytes: int) -> Moved | bytes:
        """Fill the pipe up to its limit. If nothing moves, go back to the socket and receive bytes.

        Raise BlockingIOError if nothing moves within a run.
        """
        connection, count = self._connection, 0
        if not self._in_run:
            self._process_id = PROCESS.id
        if connection.state is OPEN and self._small_moves < SMALL_MOVES:
            limits = connection.limits
            most_bytes = max(limits.bound_bytes, min(limits.pipe_bytes, self._share_bytes()))
            count = self._pipe.fill(self._socket, most_bytes - self._in_pipe_bytes)
        if not count:
            if self._in_run:
                # the selector reports what is left (an urgent mark, a FIN) again
                raise BlockingIOError
            self.give_back()
            return self._socket.recv(size_bytes)
        self.useful = True
        self._in_pipe_bytes += count
        self._small_moves = self._small_moves + 1 if count < SMALL_MOVE_BYTES else 0
        self._moved.count = count
        return self._moved

    def send(self, data: Bytes | Moved | Splice) -> int:
        """Send what is in the pipe. For other bytes, go back to the socket."""
        if data is not self._moved and data is not self:
            self.give_back()
            return self._socket.send(cast(Bytes, data))
        count = self._pipe.drain(self._socket, self._in_pipe_bytes)
        self._in_pipe_bytes -= count
        return count

    def append(self, data: Bytes | Moved, start: int = 0) -> None:
        """Do nothing for bytes in the pipe. For other bytes, which come after them, go back to the socket."""
        if data is not self._moved:
            self.give_back().append(cast(Bytes, data), start)

    def peek(self) -> Splice:
        """Return what stands for all pending bytes."""
        return self

    def consume(self, count: int) -> None:
        """Do nothing: `send` has counted."""

    def clear(self) -> None:
        """Forget what is in the pipe: the connection is lost and closes it."""
        self._in_pipe_bytes = 0

    def go_on(self) -> None:
        """Move more after a large move, as long as each move is large and the client takes all of it."""
        self._moved_much = True
        if self._in_run:
            return
        self._in_run, connection = True, self._connection
        try:
            for _ in range(min(MOVES_IN_A_ROW, self._share_bytes() // PIPE_BYTES) - 1):
                if not self._moved_much or connection.closed or connection.pending_bytes:
                    break
                if PROCESS.id != self._process_id:  # a callback has forked: the next bytes are the parent's
                    break
                self._moved_much = False
                connection.on_event(READ)
        finally:
            self._in_run = False

    def _share_bytes(self) -> int:
        return ROUND_BYTES // len(self._open)

    def is_idle(self) -> bool:
        """Tell whether nothing was received since the last call."""
        before, self._bytes_seen = self._bytes_seen, self._connection.bytes_received
        return before == self._bytes_seen

    def give_back(self) -> SendBuffer:
        """Go back to the socket. Bytes in the pipe stay pending, in order. Return the connection's buffer."""
        rest = bytearray()
        while len(rest) < self._in_pipe_bytes:
            rest += self._pipe.read(self._in_pipe_bytes - len(rest))
        self.close()
        return self._connection.use_socket(rest)

    def close(self) -> None:
        """Close the pipe."""
        if not self.done:
            self.done = True
            self._open.discard(self)
            self._pipe.close()


class Splicer:
    """Assigns pipes to bulk connections. Only for protocols that echo what they receive.

    A protocol calls `consider` from `saturated`, from the first full receive on: waiting lets a queue grow in the
    kernel, and then each byte costs twice as much, spliced or not. It calls `forget` from `connection_lost`.
    `most_pipes` bounds descriptors (two each) and pages. When all are in use, an idle connection loses its pipe. It
    keeps it if giving back would copy more than its bound into this process. If no connection is idle, the others copy.
    """

    __slots__ = ("_most_pipes", "_new_pipe", "_open", "_splices", "_trouble")

    def __init__(self, new_pipe: Callable[[], Pipe], *, most_pipes: int = MOST_PIPES) -> None:
        self._new_pipe, self._most_pipes = new_pipe, most_pipes
        self._splices: dict[Connection, Splice] = {}  # the least recently checked first
        self._open: set[Splice] = set()
        self._trouble = 0  # full receives until the next attempt to get a pipe

    def __len__(self) -> int:
        """The number of connections with a pipe."""
        return len(self._open)

    def consider(self, connection: Connection) -> None:
        """Give a pipe to a bulk connection with nothing pending, if there is one. If it has one, move more bytes."""
        before = self._splices.get(connection)
        if before is not None and not before.done:
            before.go_on()
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
            except OSError:  # EMFILE, ENFILE, EPERM, ENOMEM: copy for a while
                if not (self._splices and self._take_one_back()):
                    self._trouble = COPIES_AFTER_TROUBLE
            else:
                self._splices[connection] = Splice(connection, pipe, self._open)

    def forget(self, connection: Connection) -> None:
        """Close the pipe of a lost connection."""
        splice = self._splices.pop(connection, None)
        if splice is not None:
            splice.close()

    def _take_one_back(self) -> bool:
        connection, splice = next(iter(self._splices.items()))
        del self._splices[connection]
        if splice.done or connection.closed:
            splice.close()
            return True
        # giving back would copy up to a MiB into this process, for a client that doesn't read
        if splice.is_idle() and len(splice) <= connection.limits.bound_bytes:
            splice.give_back()
            return True
        self._splices[connection] = splice  # to be checked again after the others
        return False
