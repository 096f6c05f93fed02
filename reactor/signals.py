"""A signal, or another thread, becomes one more readable descriptor.

Law: the work is kept in memory, and a byte in the socket pair only wakes the loop, so a full pair may lose bytes. A
pending signal is kept once, however often it arrives (signal(7)). The interpreter's C handler writes the byte
(`set_wakeup_fd`), and our handler only remembers the signal (`sockets/signaltable.py`).
"""

from typing import Any

from reactor.limits import FAILURES_IN_A_ROW
from reactor.sockets.factory import SignalSource
from reactor.sockets.signaltable import SignalTable
from reactor.sockets.wakeup import WakePair


class Waker:
    """A socket pair: the loop watches one end; threads and signals write to the other."""

    __slots__ = ("_pair", "_reactor", "closed", "detach", "fileno", "interest", "signals", "wake")

    def __init__(self, reactor: Any, signals: SignalSource) -> None:  # a Reactor
        self.interest, self.closed = 0, False
        self._reactor, self._pair = reactor, WakePair(reactor.sockets)
        self.fileno, self.detach, self.wake = self._pair.fileno, self._pair.detach, self._pair.wake
        self.signals = SignalTable(signals, self._pair)

    def on_event(self, mask: int) -> None:
        """Empty the pair, then queue the callbacks of pending signals. The other order could lose a wake-up."""
        try:
            self.signals.pass_on(self._pair.receive())
        except OSError as error:
            self._reactor.goes_on_after(self, error, FAILURES_IN_A_ROW)
        pending, callbacks = self.signals.pending, self.signals.callbacks
        for signum in tuple(pending):
            del pending[signum]
            self._reactor.call_soon(lambda signum=signum: callbacks.get(signum, int)())  # it may have been removed

    def abort(self, error: Exception | None = None) -> None:
        """Restore the signals and close both ends. The loop calls this last."""
        self.closed = True
        self._reactor.unregister(self, error)
        self.signals.close()
        self._pair.close()
