"""SignalTable: one loop's entries in the process's signal table, and the process's one wake-up descriptor.

Law: several loops and other code share both, and close in any order. A handler knows what it replaced, and restoring
skips the handlers that were removed meanwhile. The wake-up descriptor is taken when a loop starts to run and given back
when it stops, so loops that run inside each other's callbacks nest. Meanwhile the bytes of signals that this loop
doesn't handle are passed on to the descriptor's previous user.
"""

import contextlib
import functools
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, cast

from reactor.sockets.factory import SignalSource
from reactor.sockets.wakeup import WakePair
from reactor.sockets.watchlist import PROCESS


class SignalHandler(functools.partial[object]):
    """A handler that runs in C: many signals would interrupt a Python function again and again."""

    previous: Any  # None: Python didn't set it
    live = True

    def earlier(self) -> Any:
        """Return the newest earlier disposition that isn't a removed handler of another loop."""
        found = self.previous
        while isinstance(found, SignalHandler) and not found.live:
            found = found.previous
        return found


class SignalTable:
    """The signals of one loop. A wake-up makes it look at `pending`."""

    __slots__ = (
        "_closed", "_handlers", "_pair", "_previous_fd", "_process_id", "_running", "_signals", "_write", "callbacks",
        "pending",
    )  # fmt: skip

    def __init__(self, signals: SignalSource, pair: WakePair) -> None:
        self._signals, self._pair = signals, pair  # the interpreter's C handler writes a signal's number to the pair
        self._write: Callable[[int, bytes], object] = getattr(signals, "write_wakeup", os.write)
        self._closed, self._process_id = False, PROCESS.id
        self.callbacks: dict[int, Callable[[], object]] = {}
        self.pending: dict[int, FrameType | None] = {}  # oldest first; the frame isn't used
        self._handlers: dict[int, SignalHandler] = {}
        self._running = False
        self._previous_fd: int | None = None  # while the bytes are ours

    def add(self, signum: int, callback: Callable[[], object]) -> None:
        """Call `callback()` on the loop after this signal.

        Raise ValueError outside the main thread, in which the loop must run too; RuntimeError if the loop is closed.
        """
        if self._closed:
            raise RuntimeError("the reactor is closed and handles no signal: make a new one")
        if self._signals.getsignal(signum) is not self._handlers.get(signum, self):
            self.remove(signum)
            handler = SignalHandler(self.pending.setdefault)
            handler.previous = previous = self._signals.signal(signum, handler)
            if isinstance(previous, SignalHandler):
                previous.previous = previous.earlier()  # or the chain would grow with every change
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
            earlier = handler.earlier()
            self._signals.signal(signum, signal.SIG_DFL if earlier is None else earlier)
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
            # other code may have taken it meanwhile
            wanted = self._previous_fd if current in (self._pair.writer, -1) else current
            with contextlib.suppress(OSError):
                while self._has_another_reader() and (data := self._pair.receive()):
                    self.pass_on(data)
            with contextlib.suppress(OSError, ValueError):  # closed meanwhile
                self._signals.set_wakeup_fd(wanted, warn_on_full_buffer=False)
            self._previous_fd = None

    def pass_on(self, data: bytes) -> None:
        """Write the bytes of signals that aren't ours to the previous user's descriptor."""
        foreign = data.translate(None, bytes((0, *self.callbacks)))
        if foreign and self._has_another_reader():
            with contextlib.suppress(OSError):  # full, or closed meanwhile
                self._write(cast(int, self._previous_fd), foreign)

    def _has_another_reader(self) -> bool:
        """Tell whether the bytes had a reader before. A forked child reads none: they are its parent's too."""
        return self._previous_fd not in (None, -1) and PROCESS.id == self._process_id

    def close(self) -> None:
        """Restore everything."""
        self._closed = True
        for signum in tuple(self.callbacks):
            self.remove(signum)
        self.finish()

    def _take_wakeups(self) -> None:
        if self._previous_fd is None:
            self._process_id = PROCESS.id
            self._previous_fd = self._signals.set_wakeup_fd(self._pair.writer, warn_on_full_buffer=False)
        if self.pending:
            self._pair.wake()
