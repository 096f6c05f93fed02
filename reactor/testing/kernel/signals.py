"""SimulatedSignals: replaces the module `signal`, and sends no real signal.

Law: a signal comes in two steps, as in CPython. At once, in the middle of a system call, a byte is written to the
wake-up descriptor. A little later, between two steps of the program, the handler is called.
"""

from __future__ import annotations

import collections
import signal
from collections.abc import Callable
from typing import Any

from reactor.testing.kernel.ports import Descriptors
from reactor.testing.kernel.stream import StreamSocket


class SimulatedSignals:
    """A signal source for `Reactor(signals=…)`."""

    __slots__ = ("_descriptors", "_handlers", "_noted", "_wakeup_fd", "at_random", "raised")

    def __init__(self, descriptors: Descriptors) -> None:
        self._descriptors = descriptors
        self._handlers: dict[int, Any] = {}
        self._noted: list[int] = []
        self._wakeup_fd = -1
        self.raised: collections.Counter[int] = collections.Counter()  # signals that had a handler
        self.at_random: tuple[int, ...] = ()  # signals for the fault `step.signal`

    def signal(self, signum: int, handler: Any, /) -> Any:
        """Set a handler and return the previous one, as signal.signal does."""
        before = self.getsignal(signum)
        self._handlers[signum] = handler
        return before

    def getsignal(self, signum: int, /) -> Any:
        """Return a signal's handler."""
        return self._handlers.get(signum, signal.SIG_DFL)

    def set_wakeup_fd(self, fd: int, /, *, warn_on_full_buffer: bool = True) -> int:
        """Write a byte to `fd` at every signal from now on; return the previous descriptor, -1 for none."""
        before, self._wakeup_fd = self._wakeup_fd, fd
        self.deliver()  # as CPython does after each call into C
        return before

    def write_wakeup(self, fd: int, data: bytes) -> None:
        """Pass wake-up bytes on to their previous user's descriptor, as write(2)."""
        sock = self._descriptors.open.get(fd)
        if isinstance(sock, StreamSocket):
            sock.write_from_kernel(data)

    def raise_signal(self, signum: int) -> None:
        """Send the program a signal now. A signal without a handler is ignored."""
        if not callable(self.getsignal(signum)):
            return
        self._noted.append(signum)
        self.raised[signum] += 1
        sock = self._descriptors.open.get(self._wakeup_fd)
        if isinstance(sock, StreamSocket):
            sock.write_from_kernel(bytes([signum]))

    def deliver(self) -> None:
        """Call the handlers of the signals that have arrived."""
        while self._noted:
            signum = self._noted.pop(0)
            handler: Callable[[int, Any], object] = self.getsignal(signum)
            if callable(handler):
                handler(signum, None)
