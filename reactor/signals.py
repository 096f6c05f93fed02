"""A signal, or another thread, becomes one more readable descriptor.

Law: what must be done is remembered in memory; a byte in the socket pair only says "look". So it does no harm when
the pair is full and a byte is lost: a full pair is readable, the loop wakes, and it finds everything. A signal is
remembered once however often it came (as in signal(7)): a storm of one can't push out another, nor grow anything.

Two things happen to a signal. The interpreter's own C handler notes it and then writes the byte (`set_wakeup_fd`), also
just before the loop goes to sleep. At the next bytecode it calls our handler, which is a method of a dict, in C: a
handler in Python would itself be interrupted by the next signal, and a storm would pile up calls until RecursionError.
"""

import contextlib
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from reactor.doors import SignalSource, SocketFactory
from reactor.limits import WAKE_BYTES_PER_TURN
from reactor.sockets.errors import WOULD_BLOCK


class Waker:
    """A socket pair: the loop watches one end, threads write to the other, and signals, if it is the main thread's."""

    __slots__ = (
        "_call_soon", "_callbacks", "_pending", "_previous", "_previous_fd", "_reader", "_signals",
        "_writer", "closed", "fileno", "interest",
    )  # fmt: skip

    def __init__(self, sockets: SocketFactory, signals: SignalSource, call_soon: Callable[..., None]) -> None:
        self.interest, self.closed = 0, False
        self._signals, self._call_soon = signals, call_soon
        self._callbacks: dict[int, Callable[[], object]] = {}
        self._pending: dict[int, FrameType | None] = {}  # each signal once, oldest first; the frame is of no use
        self._previous: dict[int, Any] = {}
        self._previous_fd = -1
        self._reader, self._writer = sockets.socketpair()
        self.fileno = self._reader.fileno
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    @property
    def signals_pending(self) -> bool:
        """Whether a signal has come that `on_event` hasn't looked at."""
        return bool(self._pending)

    def wake(self) -> None:
        """Make the loop's select return. Safe from any thread; never blocks."""
        with contextlib.suppress(OSError):  # full: it will wake anyway. Closed: there is nobody to wake
            self._writer.send(b"\0")

    def add_signal(self, signum: int, callback: Callable[[], object]) -> None:
        """See `Reactor.add_signal_handler`."""
        previous = self._signals.signal(signum, self._pending.setdefault)
        if not self._callbacks:
            self._previous_fd = self._signals.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._previous.setdefault(signum, previous)
        self._callbacks[signum] = callback

    def remove_signal(self, signum: int) -> None:
        """See `Reactor.remove_signal_handler`."""
        if self._callbacks.pop(signum, None) is None:
            return
        previous = self._previous.pop(signum)  # None: it wasn't set from Python, and can't be put back from it
        if self._signals.getsignal(signum) == self._pending.setdefault:  # else somebody has taken it over meanwhile
            self._signals.signal(signum, signal.SIG_DFL if previous is None else previous)
        self._pending.pop(signum, None)
        if not self._callbacks:
            self._signals.set_wakeup_fd(self._previous_fd)

    def on_event(self, mask: int) -> None:
        """Empty the pair, then look at what is remembered: in this order, or a wake-up could be lost."""
        with contextlib.suppress(*WOULD_BLOCK):
            self._reader.recv(WAKE_BYTES_PER_TURN)
        for signum in tuple(self._pending):
            del self._pending[signum]
            self._call_soon(lambda signum=signum: self._callbacks.get(signum, int)())  # it may be removed before

    def abort(self, error: Exception | None = None) -> None:
        """Put the signals back and close both ends. The loop does this last, and has unregistered us."""
        self.closed = True
        for signum in tuple(self._callbacks):
            self.remove_signal(signum)
        self._reader.close()
        self._writer.close()
