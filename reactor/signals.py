"""A signal, or another thread, becomes one more readable descriptor.

Law: the work is kept in memory, and a byte in the socket pair only wakes the loop, so a full pair may lose bytes. A
pending signal is kept once, however often it arrives (signal(7)). The interpreter's C handler writes the byte
(`set_wakeup_fd`), and our handler only remembers the signal (`sockets/signaltable.py`).
"""

import contextlib
from collections.abc import Callable

from reactor.limits import WAKE_BYTES_PER_TURN
from reactor.sockets.errors import WOULD_BLOCK
from reactor.sockets.factory import SignalSource, SocketFactory
from reactor.sockets.signaltable import SignalTable


class Waker:
    """A socket pair: the loop watches one end; threads and signals write to the other."""

    __slots__ = ("_call_soon", "_reader", "_writer", "closed", "detach", "fileno", "interest", "signals")

    def __init__(self, sockets: SocketFactory, signals: SignalSource, call_soon: Callable[..., None]) -> None:
        self.interest, self.closed = 0, False
        self._call_soon = call_soon
        self._reader, self._writer = sockets.socketpair()
        self.fileno, self.detach = self._reader.fileno, self._reader.detach
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self.signals = SignalTable(signals, self.wake, self._writer.fileno())

    def wake(self) -> None:
        """Make the loop's select return. Any thread may call this; it never blocks."""
        with contextlib.suppress(OSError):  # a full pair already holds a wake-up; a closed one has no reader
            self._writer.send(b"\0")

    def on_event(self, mask: int) -> None:
        """Empty the pair, then queue the callbacks of pending signals. The other order could lose a wake-up."""
        with contextlib.suppress(*WOULD_BLOCK):
            self._reader.recv(WAKE_BYTES_PER_TURN)
        pending, callbacks = self.signals.pending, self.signals.callbacks
        for signum in tuple(pending):
            del pending[signum]
            self._call_soon(lambda signum=signum: callbacks.get(signum, int)())  # or removed by then

    def abort(self, error: Exception | None = None) -> None:
        """Restore the signals and close both ends. The loop calls this last, after `unregister`."""
        self.closed = True
        self.signals.close()
        self._reader.close()
        self._writer.close()
