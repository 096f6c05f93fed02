"""A signal, or another thread, becomes one more readable descriptor.

Law: the work is kept in memory, and a byte in the socket pair only wakes the loop, so a full pair may lose bytes. A
pending signal is kept once, however often it arrives (signal(7)). The interpreter's C handler writes the byte
(`set_wakeup_fd`). Our handler is a method of a dict, in C: many signals would interrupt a Python function again and
again, until RecursionError.
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
    """A socket pair: the loop watches one end; threads and signals write to the other."""

    __slots__ = (
        "_call_soon", "_callbacks", "_previous", "_previous_fd", "_reader", "_signals", "_writer", "closed", "fileno",
        "interest", "pending",
    )  # fmt: skip

    def __init__(self, sockets: SocketFactory, signals: SignalSource, call_soon: Callable[..., None]) -> None:
        self.interest, self.closed = 0, False
        self._signals, self._call_soon = signals, call_soon
        self._callbacks: dict[int, Callable[[], object]] = {}
        self.pending: dict[int, FrameType | None] = {}  # oldest first; the frame isn't used
        self._previous: dict[int, Any] = {}
        self._previous_fd = -1
        self._reader, self._writer = sockets.socketpair()
        self.fileno = self._reader.fileno
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def wake(self) -> None:
        """Make the loop's select return. Any thread may call this; it never blocks."""
        with contextlib.suppress(OSError):  # a full pair already holds a wake-up; a closed one has no reader
            self._writer.send(b"\0")

    def add_signal(self, signum: int, callback: Callable[[], object]) -> None:
        """Call `callback()` on the loop after this signal. Raise ValueError outside the main thread."""
        previous = self._signals.signal(signum, self.pending.setdefault)
        if not self._callbacks:
            self._previous_fd = self._signals.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._previous.setdefault(signum, previous)
        self._callbacks[signum] = callback

    def remove_signal(self, signum: int) -> None:
        """Restore the signal's previous disposition. Does nothing if there is no handler."""
        if self._callbacks.pop(signum, None) is None:
            return
        previous = self._previous.pop(signum)  # None: Python didn't set it and can't restore it
        if self._signals.getsignal(signum) == self.pending.setdefault:  # else other code has replaced it
            self._signals.signal(signum, signal.SIG_DFL if previous is None else previous)
        self.pending.pop(signum, None)
        if not self._callbacks:
            self._signals.set_wakeup_fd(self._previous_fd)

    def on_event(self, mask: int) -> None:
        """Empty the pair, then queue the callbacks of pending signals. The other order could lose a wake-up."""
        with contextlib.suppress(*WOULD_BLOCK):
            self._reader.recv(WAKE_BYTES_PER_TURN)
        for signum in tuple(self.pending):
            del self.pending[signum]
            self._call_soon(lambda signum=signum: self._callbacks.get(signum, int)())  # or removed by then

    def abort(self, error: Exception | None = None) -> None:
        """Restore the signals and close both ends. The loop calls this last, after `unregister`."""
        self.closed = True
        for signum in tuple(self._callbacks):
            self.remove_signal(signum)
        self._reader.close()
        self._writer.close()
