"""A signal, or another thread, becomes one more readable descriptor.

Law: what must be done is kept in memory; a byte in the socket pair only says "look", so a full pair may lose one. A
signal is kept once, however often it came (signal(7)). The interpreter's C handler writes the byte (`set_wakeup_fd`);
our handler is a method of a dict, in C, because a storm of signals would interrupt one in Python again and again, up
to RecursionError.
"""

import contextlib
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from reactor.limits import WAKE_BYTES_PER_TURN
from reactor.sockets.errors import WOULD_BLOCK
from reactor.sockets.factory import SignalSource, SocketFactory


class Waker:
    """A socket pair: the loop watches one end; other threads write to the other, and so do signals."""

    __slots__ = (
        "_call_soon", "_callbacks", "_previous", "_previous_fd", "_reader", "_signals", "_writer", "closed", "fileno",
        "interest", "pending",
    )  # fmt: skip

    def __init__(self, sockets: SocketFactory, signals: SignalSource, call_soon: Callable[..., None]) -> None:
        self.interest, self.closed = 0, False
        self._signals, self._call_soon = signals, call_soon
        self._callbacks: dict[int, Callable[[], object]] = {}
        self.pending: dict[int, FrameType | None] = {}  # each signal once, oldest first; the frame is of no use
        self._previous: dict[int, Any] = {}
        self._previous_fd = -1
        self._reader, self._writer = sockets.socketpair()
        self.fileno = self._reader.fileno
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def wake(self) -> None:
        """Make the loop's select return. Safe from any thread; never blocks."""
        with contextlib.suppress(OSError):  # a full pair already holds a wake-up; a closed one has no reader
            self._writer.send(b"\0")

    def add_signal(self, signum: int, callback: Callable[[], object]) -> None:
        """Call `callback()` on the loop after this signal; bursts count once. Raise ValueError in another thread."""
        previous = self._signals.signal(signum, self.pending.setdefault)
        if not self._callbacks:
            self._previous_fd = self._signals.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._previous.setdefault(signum, previous)
        self._callbacks[signum] = callback

    def remove_signal(self, signum: int) -> None:
        """Put back the signal's earlier disposition. Harmless if there was no handler."""
        if self._callbacks.pop(signum, None) is None:
            return
        previous = self._previous.pop(signum)  # None: it wasn't set from Python, and can't be put back from it
        if self._signals.getsignal(signum) == self.pending.setdefault:  # else somebody has taken it over meanwhile
            self._signals.signal(signum, signal.SIG_DFL if previous is None else previous)
        self.pending.pop(signum, None)
        if not self._callbacks:
            self._signals.set_wakeup_fd(self._previous_fd)

    def on_event(self, mask: int) -> None:
        """Empty the pair, then look at what is remembered: in this order, or a wake-up could be lost."""
        with contextlib.suppress(*WOULD_BLOCK):
            self._reader.recv(WAKE_BYTES_PER_TURN)
        for signum in tuple(self.pending):
            del self.pending[signum]
            self._call_soon(lambda signum=signum: self._callbacks.get(signum, int)())  # it may be removed before

    def abort(self, error: Exception | None = None) -> None:
        """Put the signals back and close both ends. The loop does this last, and has unregistered us."""
        self.closed = True
        for signum in tuple(self._callbacks):
            self.remove_signal(signum)
        self._reader.close()
        self._writer.close()
