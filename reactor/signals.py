"""A signal, or another thread, becomes one more readable descriptor.

Law: what must be done is remembered in memory; a byte in the socket pair only says "look". So it does no harm when
the pair is full and a byte is lost: a full pair is readable, the loop wakes, and it finds everything. A signal is
remembered once however often it came, as the kernel itself does (signal(7)), so a storm of one can't push out
another, nor grow anything.

Two things wake the loop for a signal, and each covers the other's gap: `set_wakeup_fd` writes from the C handler, also
just before the loop goes to sleep; the Python handler, a little later, remembers the signal and writes once more.
"""

import contextlib
import signal
from collections.abc import Callable
from types import FrameType

from reactor.limits import WAKE_BYTES_PER_TURN
from reactor.sockets import WOULD_BLOCK, SocketFactory


class Waker:
    """A socket pair whose one end the loop watches; threads and signals write to the other.

    Only one loop, in the main thread, can have the process's signals.
    """

    __slots__ = (
        "_call_soon", "_callbacks", "_pending", "_previous", "_previous_fd", "_reader", "_writer",
        "closed", "fileno", "interest",
    )  # fmt: skip

    def __init__(self, sockets: SocketFactory, call_soon: Callable[..., None]) -> None:
        self.interest, self.closed = 0, False
        self._call_soon = call_soon
        self._callbacks: dict[int, Callable[[], object]] = {}
        self._pending: dict[int, None] = {}  # an ordered set: each signal once, oldest first
        self._previous: dict[int, signal._HANDLER] = {}
        self._previous_fd = -1
        self._reader, self._writer = sockets.socketpair()
        self.fileno = self._reader.fileno
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def wake(self) -> None:
        """Make the loop's select return. Safe from any thread and from a signal handler; never blocks."""
        with contextlib.suppress(OSError):  # full: it will wake anyway. Closed: there is nobody to wake
            self._writer.send(b"\0")

    def add_signal(self, signum: int, callback: Callable[[], object]) -> None:
        """See `Reactor.add_signal_handler`."""
        previous = signal.signal(signum, self._remember)
        if not self._callbacks:
            self._previous_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._previous.setdefault(signum, previous)
        self._callbacks[signum] = callback

    def remove_signal(self, signum: int) -> None:
        """See `Reactor.remove_signal_handler`."""
        if self._callbacks.pop(signum, None) is None:
            return
        previous = self._previous.pop(signum)  # None: it wasn't set from Python, and can't be put back from it
        if signal.getsignal(signum) == self._remember:  # else somebody has taken it over meanwhile
            signal.signal(signum, signal.SIG_DFL if previous is None else previous)
        self._pending.pop(signum, None)
        if not self._callbacks:
            signal.set_wakeup_fd(self._previous_fd)

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

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self._pending[signum] = None
        self.wake()
