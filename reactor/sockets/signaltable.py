"""SignalTable: one loop's entries in the process's signal table, and the process's one wake-up descriptor.

Law: several loops and other code share both, and close in any order. A handler knows what it replaced, and restoring
skips the handlers that were removed meanwhile. The wake-up descriptor is taken when a loop starts to run and given back
when it stops, so loops that run inside each other's callbacks nest.
"""

import contextlib
import functools
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from reactor.sockets.factory import SignalSource


class SignalHandler(functools.partial[object]):
    """A handler that runs in C: many signals would interrupt a Python function again and again."""

    previous: Any  # None: Python didn't set it
    live = True

    def to_restore(self) -> Any:
        """Return the newest earlier disposition that isn't a removed handler of another loop."""
        found: Any = self
        while isinstance(found, SignalHandler) and not found.live:
            found = found.previous
        return signal.SIG_DFL if found is None else found


class SignalTable:
    """The signals of one loop. `wake` makes the loop look at `pending`."""

    __slots__ = ("_handlers", "_number", "_previous_fd", "_running", "_signals", "_wake", "callbacks", "pending")

    def __init__(self, signals: SignalSource, wake: Callable[[], None], number: int) -> None:
        self._signals, self._wake = signals, wake
        self._number = number  # the descriptor to which the interpreter's C handler writes a byte
        self.callbacks: dict[int, Callable[[], object]] = {}
        self.pending: dict[int, FrameType | None] = {}  # oldest first; the frame isn't used
        self._handlers: dict[int, SignalHandler] = {}
        self._running = False
        self._previous_fd: int | None = None  # while the bytes are ours

    def add(self, signum: int, callback: Callable[[], object]) -> None:
        """Call `callback()` on the loop after this signal. Raise ValueError outside the main thread."""
        if self._signals.getsignal(signum) is not self._handlers.get(signum, self):
            self.remove(signum)
            handler = SignalHandler(self.pending.setdefault)
            handler.previous = self._signals.signal(signum, handler)
            self._handlers[signum] = handler
        self.callbacks[signum] = callback
        if self._running:
            self._take_wakeups()

    def remove(self, signum: int) -> None:
        """Restore the signal's previous disposition. Does nothing if there is no handler."""
        if self.callbacks.pop(signum, None) is None:
            return
        handler = self._handlers.pop(signum)
        handler.live = False
        if self._signals.getsignal(signum) is handler:  # else other code has replaced it
            self._signals.signal(signum, handler.to_restore())
        self.pending.pop(signum, None)

    def start(self) -> None:
        """Wake the loop at each signal from now on, and at once for what arrived before."""
        self._running = True
        if self.callbacks:
            self._take_wakeups()

    def finish(self) -> None:
        """Give the wake-up descriptor back to its previous user."""
        self._running = False
        if self._previous_fd is not None:
            current = self._signals.set_wakeup_fd(-1)
            wanted = self._previous_fd if current == self._number else current
            with contextlib.suppress(OSError, ValueError):  # closed meanwhile
                self._signals.set_wakeup_fd(wanted, warn_on_full_buffer=False)
            self._previous_fd = None

    def close(self) -> None:
        """Restore everything."""
        for signum in tuple(self.callbacks):
            self.remove(signum)
        self.finish()

    def _take_wakeups(self) -> None:
        if self._previous_fd is None:
            self._previous_fd = self._signals.set_wakeup_fd(self._number, warn_on_full_buffer=False)
        if self.pending:
            self._wake()
