"""SimulatedSignals: in place of the module `signal`, with no real signal sent.

Law: a signal comes in two steps, as in CPython. A byte is written to the wake-up descriptor at once, in the middle of
a system call. The handler is called a little later, between two steps of the program.
"""

from __future__ import annotations

import collections
import signal
from collections.abc import Callable
from typing import Any

from reactor.testing.kernel.ports import Descriptors
from reactor.testing.kernel.stream import StreamSocket


class SimulatedSignals:
    """To be handed to `Reactor(signals=…)`."""

    __slots__ = ("_descriptors", "_handlers", "_noted", "_wakeup_fd", "at_random", "raised")

    def __init__(self, descriptors: Descriptors) -> None:
        self._descriptors = descriptors
        self._handlers: dict[int, Any] = {}
        self._noted: list[int] = []
        self._wakeup_fd = -1
        self.raised: collections.Counter[int] = collections.Counter()  # those that had a handler
        self.at_random: tuple[int, ...] = ()  # those that the fault `step.signal` raises

    def signal(self, signum: int, handler: Any, /) -> Any:
        """Set a handler and return the one before, as signal.signal does."""
        before = self.getsignal(signum)
        self._handlers[signum] = handler
        return before

    def getsignal(self, signum: int, /) -> Any:
        """Return a signal's handler."""
        return self._handlers.get(signum, signal.SIG_DFL)

    def set_wakeup_fd(self, fd: int, /, *, warn_on_full_buffer: bool = True) -> int:
        """Have a byte written to `fd` for every signal; return the descriptor before, -1 for none."""
        before, self._wakeup_fd = self._wakeup_fd, fd
        return before

    def raise_signal(self, signum: int) -> None:
        """Send the program a signal now. One that has no handler is ignored."""
        if not callable(self.getsignal(signum)):
            return
        self._noted.append(signum)
        self.raised[signum] += 1
        sock = self._descriptors.open.get(self._wakeup_fd)
        if isinstance(sock, StreamSocket):
            sock.write_from_kernel(bytes([signum]))

    def deliver(self) -> None:
        """Call the handlers of the signals that have come."""
        while self._noted:
            signum = self._noted.pop(0)
            handler: Callable[[int, Any], object] = self.getsignal(signum)
            if callable(handler):
                handler(signum, None)
